"""Making jobs: by a specification, or as the copy of another job."""

import asyncio
from typing import Annotated, Final

from fastapi import APIRouter, Query
from fastapi.concurrency import run_in_threadpool
from pydantic import JsonValue
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import Response

from service.api import submission
from service.api.answers import JSON, answer
from service.api.auth import Submitter
from service.api.body import JsonBody, parse
from service.api.conditions import Prefer, asked_wait, etag
from service.api.idempotency import IdempotencyKey, replay
from service.api.job_views import job_view
from service.api.models import DryRunView, JobView
from service.api.notifier import Notifier
from service.api.openapi import header, json_request, one_of, problems, returns
from service.api.parameters import JobId
from service.api.requests import trace_of
from service.api.services import Injected, Services
from service.errors import NotFound, StoreUnavailable
from service.records import JobRecord, StoredAnswer
from service.spec.job import JobSpec

router: Final = APIRouter(prefix="/v1/jobs", tags=["jobs"])

_EXAMPLES: Final[dict[str, JsonValue]] = {
    "shortest": {"data": {"dataset": "builtin:digits"}},
    "one strength": {
        "name": "digits",
        "labels": {"team": "vision"},
        "data": {"dataset": "builtin:digits", "split": {"kind": "holdout", "valid": 0.25, "test": 0.25}},
        "regularizers": [{"kind": "l2", "strength": {"init": 0.01, "low": 1e-8, "high": 1e4, "per": "model"}}],
        "method": {"kind": "implicit", "solver": {"kind": "cg"}},
    },
}
_HEADERS: Final = {
    "ETag": header("The version of the job."),
    "Location": header("Where the job is."),
    "Idempotency-Replayed": header("`true` when an earlier request had this answer."),
}


@router.post(
    "",
    status_code=202,
    summary="Submit a job",
    responses={
        200: one_of(
            "With `Prefer: wait`: the job, which has ended. With `dry_run`: what would be made of it.",
            JobView,
            DryRunView,
        ),
        202: returns(JobView, "The job was queued.", headers=_HEADERS),
        **problems(400, 409, 413, 415),
    },
    openapi_extra=json_request(JobSpec, examples=_EXAMPLES),
)
async def create_job(
    request: Request,
    services: Injected,
    caller: Submitter,
    body: JsonBody,
    *,
    dry_run: Annotated[bool, Query(description="Check it and fill in its defaults; nothing is stored.")] = False,
    idempotency_key: IdempotencyKey = None,
    prefer: Prefer = None,
) -> Response:
    """Queue a job.

    It is durable once this answers. A specification that cannot be learned is refused here, before it is queued.
    """
    if dry_run:
        return await run_in_threadpool(_rehearse, services, body)

    def work() -> submission.Submitted:
        spec = parse(JobSpec, body)
        return submission.submit(services, spec, caller=caller, key=idempotency_key, path=request.url.path)

    submitted = await run_in_threadpool(work)
    if submitted.job is None:
        return replay(submitted.answer)
    wait = asked_wait(prefer, None)
    if not wait.seconds:
        return _stored(submitted.answer, BackgroundTask(submission.ring, services))
    await run_in_threadpool(submission.ring, services)
    trace_of(request.scope).is_awaited = True
    try:
        job = await _ended(request, services, submitted.job, seconds=wait.seconds)
    except (StoreUnavailable, NotFound):
        # The job was stored: an error would make the client submit it again.
        return _stored(submitted.answer)
    headers = {"Location": submitted.answer.headers["Location"], "ETag": etag(job.version), **wait.headers}
    view = job_view(job, root=services.settings.root_path)
    return answer(view, status=200 if job.status.is_final else 202, headers=headers)


def _rehearse(services: Services, body: bytes) -> Response:
    spec = parse(JobSpec, body)
    admission = submission.judge(services, spec)
    return answer(
        DryRunView(
            valid=True,
            spec=spec.model_dump(mode="json"),
            estimate=admission.estimate,
            warnings=list(admission.warnings),
        )
    )


def _stored(stored: StoredAnswer, background: BackgroundTask | None = None) -> Response:
    return Response(stored.body, stored.status, stored.headers, JSON, background)


async def _ended(request: Request, services: Services, job: JobRecord, *, seconds: float) -> JobRecord:
    notifier: Notifier = request.app.state.notifier
    clock = asyncio.get_running_loop().time
    deadline = clock() + seconds
    while not job.status.is_final and not notifier.is_closed and (left := deadline - clock()) > 0:
        await notifier.wait(job.id, known=job.version, seconds=left)
        job = await run_in_threadpool(services.store.jobs.get, job.id)
    return job


@router.post(
    "/{job_id}/clone",
    status_code=202,
    summary="Clone a job",
    responses={
        202: returns(JobView, "The new job was queued.", headers=_HEADERS),
        **problems(400, 404, 409),
    },
)
def clone_job(
    request: Request, services: Injected, caller: Submitter, job_id: JobId, idempotency_key: IdempotencyKey = None
) -> Response:
    """Queue a new job with the same specification."""
    spec = submission.spec_of(services.store.jobs.get(job_id))
    made = submission.submit(services, spec, caller=caller, key=idempotency_key, path=request.url.path)
    if made.job is None:
        return replay(made.answer)
    return _stored(made.answer, BackgroundTask(submission.ring, services))
