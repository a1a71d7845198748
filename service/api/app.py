"""The application: routers, and what happens to every request."""

import asyncio
import signal
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import cache
from types import FrameType
from typing import Any, Final

from fastapi import Depends, FastAPI
from starlette.types import Scope

from service.api import (
    catalogue,
    creation,
    datasets,
    events,
    files,
    health,
    jobs,
    models,
    openapi,
    problems,
    steering,
    trajectories,
    workers,
)
from service.api.head import Head
from service.api.jobs import JobChanges
from service.api.limits import make_rates
from service.api.middleware import BodyLimit, Observed
from service.api.notifier import Notifier
from service.api.parameters import refuse_unknown_parameters
from service.api.requests import note_route
from service.api.services import Services
from service.api.streams import Streams
from service.api.uploads import FORM_ALLOWANCE_BYTES, remove_abandoned
from service.metrics import Metrics
from service.rates import Rates
from service.spec.job import JobSpec
from service.version import version

JSON_LIMIT_BYTES: Final = 2**20
"""Largest body of a request that is no upload."""

_ROUTERS: Final = (creation, jobs, steering, trajectories, events, files, datasets, catalogue, workers, health)
_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)

Handler = Callable[[int, FrameType | None], Any]


def create_app(services: Services) -> FastAPI:
    """Build the API on `services`; it opens and closes none of them."""
    settings, store = services.settings, services.store
    app = FastAPI(
        title="hyperdial",
        version=version(),
        openapi_url="/v1/openapi.json",
        # Both pages would load scripts from a CDN; any OpenAPI viewer reads the document.
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        generate_unique_id_function=openapi.operation_id,
        dependencies=[Depends(note_route), Depends(refuse_unknown_parameters)],
        lifespan=_lifespan,
    )
    for module in _ROUTERS:
        app.include_router(module.router)
    app.state.routes = [route for module in _ROUTERS for route in module.router.routes]
    problems.install(app)
    metrics = Metrics(
        job_counts=store.jobs.counts,
        workers=lambda: store.workers.list(timeout_seconds=settings.worker_timeout_seconds),
    )
    app.state.services = services
    app.state.rates = make_rates(settings)
    app.state.metrics = metrics
    app.state.notifier = Notifier(store.jobs.versions)
    app.state.streams = Streams(most=settings.max_streams, metrics=metrics)
    # Written when it is first asked for; this is FastAPI's documented way to write it oneself.
    document = cache(lambda: openapi.document(app, bodies=(JobSpec, JobChanges), views=models.VIEWS))
    app.openapi = document  # type: ignore[method-assign]

    def limit_of(scope: Scope) -> int:
        is_upload = scope["method"] == "POST" and scope["path"].rstrip("/").endswith("/v1/datasets")
        return settings.upload_limit_bytes + FORM_ALLOWANCE_BYTES if is_upload else JSON_LIMIT_BYTES

    # The last one added is the outermost.
    app.add_middleware(Head)
    app.add_middleware(BodyLimit, limit_of=limit_of)
    app.add_middleware(Observed, metrics=metrics)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    notifier: Notifier = app.state.notifier
    services: Services = app.state.services
    remove_abandoned(services.settings.data_dir / datasets.UPLOADS)
    loop = asyncio.get_running_loop()
    # Not from the handler itself: the event loop's thread may hold the notifier's lock just then.
    with _on_termination(lambda: loop.call_soon_threadsafe(notifier.close)):
        yield
    notifier.close()
    rates: Rates | None = app.state.rates
    if rates is not None:
        await rates.close()


@contextmanager
def _on_termination(act: Callable[[], object]) -> Iterator[None]:
    """Do `act` when the process is asked to end, before what else happens then.

    uvicorn first waits for open connections, and an event stream would stay open for as long as its client likes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are the main thread's business; in a test there is none
        return
    before = {number: signal.getsignal(number) for number in _SIGNALS}

    def chained(number: signal.Signals) -> Handler:
        def handle(received: int, frame: FrameType | None) -> None:
            act()
            previous = before[number]
            if callable(previous):
                previous(received, frame)

        return handle

    for number in _SIGNALS:
        signal.signal(number, chained(number))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
