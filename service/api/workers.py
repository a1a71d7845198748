"""Who is alive, and what it does."""

from typing import Final

from fastapi import APIRouter
from starlette.responses import Response

from service.api.answers import answer
from service.api.auth import Reader
from service.api.models import WorkerList, WorkerView
from service.api.openapi import problems, returns
from service.api.services import Injected

router: Final = APIRouter(prefix="/v1/workers", tags=["workers"])


@router.get("", summary="List workers", responses={200: returns(WorkerList), **problems()})
def list_workers(services: Injected, _: Reader) -> Response:
    """List the workers that were heard of lately, the last to begin first."""
    found = services.store.workers.list(timeout_seconds=services.settings.worker_timeout_seconds)
    return answer(
        WorkerList(
            [
                WorkerView(
                    id=worker.id,
                    host=worker.host,
                    pid=worker.pid,
                    device=worker.device,
                    device_name=worker.device_name,
                    version=worker.version,
                    state=worker.state,
                    job=worker.job_id,
                    started_at=worker.started_at,
                    heartbeat_at=worker.heartbeat_at,
                )
                for worker in found
            ]
        )
    )
