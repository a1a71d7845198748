"""For operators and their machines."""

from collections.abc import Callable
from typing import Final, Literal

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from service.api.answers import answer
from service.api.auth import Reader
from service.api.models import HealthView, ReadinessView, VersionView
from service.api.openapi import binary, problems, returns
from service.api.services import Injected, Services
from service.errors import QueueUnavailable, StoreUnavailable
from service.metrics import CONTENT_TYPE, Metrics
from service.version import version

router: Final = APIRouter(tags=["health"])

Check = Literal["ok", "unavailable"]


@router.get("/healthz", summary="Is the process alive?", responses={200: returns(HealthView), **problems(is_open=True)})
async def get_health() -> Response:
    """Answer, without asking anything else: a database that is away is no reason to restart this process."""
    return answer(HealthView("ok"))


@router.get(
    "/readyz",
    summary="Can requests be served?",
    responses={
        200: returns(ReadinessView),
        503: returns(ReadinessView, "The database or the file store is away."),
        **problems(is_open=True),
    },
)
def get_readiness(services: Injected) -> Response:
    """Ask the database, the file store and the queue for a sign of life.

    Without the queue jobs are accepted all the same: workers also look for themselves.
    """
    checks: dict[str, Check] = {
        "database": _check(services.store.database.ping),
        "schema": _check(lambda: _require_head(services)),
        "files": _check(services.files.ping),
        "queue": _check(services.bell.ping),
    }
    if any(checks[name] != "ok" for name in ("database", "schema", "files")):
        return answer(ReadinessView("unavailable", checks), status=503, headers={"Retry-After": "5"})
    return answer(ReadinessView("ready" if checks["queue"] == "ok" else "degraded", checks))


def _check(ping: Callable[[], None]) -> Check:
    try:
        ping()
    except (StoreUnavailable, QueueUnavailable, OSError):
        return "unavailable"
    return "ok"


def _require_head(services: Services) -> None:
    # Here, not above: Alembic takes a tenth of a second, and only this question needs it.
    from service.store.schema import is_at_head

    if not is_at_head(services.store.database):
        raise StoreUnavailable("the tables are not of this version: run `hyperdial migrate`")


@router.get(
    "/metrics",
    summary="Measurements for Prometheus",
    response_class=Response,
    responses={200: binary("Measurements in Prometheus' text format.", "text/plain"), **problems()},
)
def get_metrics(request: Request, _: Reader) -> Response:
    """Read the measurements of this process, and the state of all jobs and workers."""
    metrics: Metrics = request.app.state.metrics
    return Response(metrics.exposition(), media_type=CONTENT_TYPE)


@router.get("/v1/version", summary="Which version is this?", responses={200: returns(VersionView), **problems()})
async def get_version(_: Reader) -> Response:
    """Say which version of the service and of its interface this is."""
    return answer(VersionView(version=version(), api_version="v1"))
