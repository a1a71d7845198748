"""What happens to a job, as it happens: Server-Sent Events (WHATWG HTML, 9.2)."""

import asyncio
import logging
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Annotated, Final

from fastapi import APIRouter, Depends, Header
from fastapi.concurrency import run_in_threadpool
from fastapi.sse import EventSourceResponse, ServerSentEvent
from pydantic_core import to_json
from starlette.requests import Request

from service.api.auth import Reader
from service.api.notifier import Notifier
from service.api.openapi import problems
from service.api.parameters import LARGEST_SEQ, JobId
from service.api.refusals import Fault, InvalidRequest, NothingLeft
from service.api.requests import trace_of
from service.api.services import Injected, Services
from service.api.streams import Streams
from service.errors import NotFound, StoreUnavailable
from service.records import EventRecord, JobRecord

log = logging.getLogger(__name__)

router: Final = APIRouter(prefix="/v1/jobs/{job_id}", tags=["trajectories"])

LIFE_SECONDS: Final = 900.0
"""A stream ends after this and its client comes back: so that load moves to new processes."""

_BATCH: Final = 500
_RETRY_MS: Final = 2000
_RESTART_MS: Final = 1000
_STORE_RETRY_SECONDS: Final = 2.0
_SEQ: Final = re.compile(r"\d{1,19}", re.ASCII)


@dataclass(frozen=True)
class _Subscription:
    """A client that may be served."""

    job_id: str
    after: int
    services: Services
    notifier: Notifier


async def _subscribe(
    request: Request,
    services: Injected,
    _: Reader,
    job_id: JobId,
    last_event_id: Annotated[
        str | None, Header(description="Id of the last event that was received; none: from the first.")
    ] = None,
) -> AsyncIterator[_Subscription]:
    """Refuse what cannot be streamed before the stream begins, and hold a place for it until it ends."""
    after = _seq(last_event_id)
    trace_of(request.scope).is_awaited = True
    await run_in_threadpool(_require_news, services, job_id, after)
    streams: Streams = request.app.state.streams
    with streams.one():
        yield _Subscription(job_id, after, services, request.app.state.notifier)


def _seq(last_event_id: str | None) -> int:
    if not last_event_id:
        return 0
    if not _SEQ.fullmatch(last_event_id) or int(last_event_id) > LARGEST_SEQ:
        raise InvalidRequest([Fault("must be the id of an event of this stream", parameter="last-event-id")])
    return int(last_event_id)


def _require_news(services: Services, job_id: str, after: int) -> None:
    job = services.store.jobs.get(job_id)
    if after and job.status.is_final and not services.store.jobs.events(job_id, after=after, limit=1):
        raise NothingLeft


@router.get(
    "/events",
    summary="Watch a job",
    response_class=EventSourceResponse,
    responses={
        200: {"description": "Events `status`, `point`, `log` and, when the job has ended, `end`."},
        204: {"description": "The job has ended and all its events were received: do not come back."},
        **problems(404),
    },
)
async def watch_job(
    subscription: Annotated[_Subscription, Depends(_subscribe)],
) -> AsyncIterator[ServerSentEvent]:
    """Watch a job from its first event, or from the one after `Last-Event-ID`, without loss or repeat.

    Ids are numbers that grow. The data of `point` is a point of the trajectory, of `status` `{"status", "attempt",
    "reason", "failure", "at"}`, of `log` `{"attempt", "text", "at"}`, of `end` `{"status"}`. Comments are sent while
    nothing happens. A stream that ends without `end` is to be taken up again.
    """
    notifier, services = subscription.notifier, subscription.services
    clock = asyncio.get_running_loop().time
    deadline = clock() + LIFE_SECONDS
    seq = subscription.after
    yield ServerSentEvent(comment="the events of a job", retry=_RETRY_MS)
    while not notifier.is_closed and clock() < deadline:
        try:
            job, found = await run_in_threadpool(_read, services, subscription.job_id, seq)
        except StoreUnavailable:
            log.warning("an event stream waits for the database")
            await asyncio.sleep(_STORE_RETRY_SECONDS)
            continue
        except NotFound:  # deleted while it was watched
            return
        for event in found:
            seq = event.seq
            yield ServerSentEvent(raw_data=to_json(event.body).decode(), event=event.kind, id=str(seq))
        if len(found) == _BATCH:
            continue
        if job.status.is_final:
            # The same id as the last event's: a number of its own would hide the first event of a retry.
            yield ServerSentEvent(raw_data=to_json({"status": job.status}).decode(), event="end", id=str(seq))
            return
        await notifier.wait(job.id, known=job.version, seconds=deadline - clock())
    yield ServerSentEvent(comment="the server lets go of this stream: come back", retry=_RESTART_MS)


def _read(services: Services, job_id: str, after: int) -> tuple[JobRecord, list[EventRecord]]:
    # First the job: what happens between the two reads is then in the events, or wakes the next wait.
    job = services.store.jobs.get(job_id)
    return job, services.store.jobs.events(job_id, after=after, limit=_BATCH)
