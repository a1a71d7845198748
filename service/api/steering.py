"""Verbs on jobs: cancel, pause, resume, retry."""

from collections.abc import Callable
from typing import Final

from fastapi import APIRouter
from starlette.background import BackgroundTask
from starlette.responses import Response

from service.api import submission
from service.api.answers import JSON, to_json
from service.api.auth import Submitter
from service.api.conditions import etag
from service.api.job_views import job_view
from service.api.models import JobView
from service.api.openapi import problems, returns
from service.api.parameters import JobId
from service.api.services import Injected, Services
from service.records import JobRecord, JobStatus

router: Final = APIRouter(prefix="/v1/jobs/{job_id}", tags=["jobs"])

_ANSWERS: Final = {202: returns(JobView, "The job, or what it is about to be."), **problems(404, 409)}


def _steered(services: Services, job_id: str, steer: Callable[[str], JobRecord]) -> Response:
    job = steer(job_id)
    rings = BackgroundTask(submission.ring, services) if job.status is JobStatus.QUEUED else None
    view = to_json(job_view(job, root=services.settings.root_path))
    return Response(view, 202, {"ETag": etag(job.version)}, JSON, rings)


@router.post("/cancel", summary="Cancel a job", status_code=202, responses=_ANSWERS)
def cancel_job(services: Injected, _: Submitter, job_id: JobId) -> Response:
    """End a job: a waiting one at once, a running one after its current step. What it recorded stays."""
    return _steered(services, job_id, services.store.jobs.request_cancel)


@router.post("/pause", summary="Pause a job", status_code=202, responses=_ANSWERS)
def pause_job(services: Injected, _: Submitter, job_id: JobId) -> Response:
    """Let a running job save itself and free its worker, or take a waiting one out of the queue."""
    return _steered(services, job_id, services.store.jobs.request_pause)


@router.post("/resume", summary="Resume a job", status_code=202, responses=_ANSWERS)
def resume_job(services: Injected, _: Submitter, job_id: JobId) -> Response:
    """Let a paused job go on from where it stopped."""
    return _steered(services, job_id, services.store.jobs.request_resume)


@router.post("/retry", summary="Retry a job", status_code=202, responses=_ANSWERS)
def retry_job(services: Injected, _: Submitter, job_id: JobId) -> Response:
    """Let a failed or cancelled job go on from its last checkpoint."""
    return _steered(services, job_id, services.store.jobs.retry)
