"""Records of jobs as clients see them."""

from service.api.models import (
    AttemptView,
    FailureView,
    JobPage,
    JobView,
    ProgressView,
    ReasonView,
)
from service.records import AttemptRecord, Failure, JobRecord, JobStatus, StatusReason

_PARTS = ("attempts", "events", "files", "result", "trajectory")
_VERBS = ("cancel", "clone", "pause", "resume", "retry")


def job_view(job: JobRecord, *, root: str) -> JobView:
    """A job; `root` is the path that a proxy strips."""
    path = f"{root}/v1/jobs/{job.id}"
    links = {"self": path} | {name: f"{path}/{name}" for name in (*_PARTS, *_VERBS)}
    return JobView(
        id=job.id,
        name=job.name,
        labels=job.labels,
        priority=job.priority,
        method=job.method,
        status=job.status,
        status_reason=reason_view(job.status_reason),
        failure=failure_view(job.failure),
        spec=job.spec,
        progress=progress(job),
        latest=job.latest,
        attempt=job.attempt,
        lost_attempts=job.lost_attempts,
        max_attempts=job.max_attempts,
        worker=job.worker_id,
        run_seconds=job.run_seconds,
        created_at=job.created_at,
        queued_at=job.queued_at,
        started_at=job.started_at,
        ended_at=job.ended_at,
        links=links,
    )


def job_page(jobs: list[JobRecord], *, next_cursor: str | None, root: str) -> JobPage:
    """A page of jobs."""
    return JobPage([job_view(job, root=root) for job in jobs], next_cursor)


def progress(job: JobRecord) -> ProgressView:
    """How far a job is, and how long it still takes if it goes on as it did."""
    left = job.steps_of - job.steps_done
    elapsed = job.latest.get("elapsed_s") if job.latest is not None else None
    eta = None
    if job.status.is_held and job.steps_done > 0 and isinstance(elapsed, int | float):
        eta = round(left * elapsed / job.steps_done, 3)
    fraction = 1.0 if job.status is JobStatus.SUCCEEDED else job.steps_done / max(job.steps_of, 1)
    return ProgressView(step=job.steps_done, of=job.steps_of, fraction=min(fraction, 1.0), eta_s=eta)


def attempt_view(attempt: AttemptRecord) -> AttemptView:
    """An attempt."""
    return AttemptView(
        number=attempt.number,
        worker=attempt.worker_id,
        host=attempt.host,
        device=attempt.device,
        started_at=attempt.started_at,
        ended_at=attempt.ended_at,
        outcome=attempt.outcome,
        failure=failure_view(attempt.failure),
        steps_from=attempt.steps_from,
        log_tail=attempt.log_tail,
    )


def reason_view(reason: StatusReason | None) -> ReasonView | None:
    """Why a job stands where it stands, if the status does not say all."""
    return None if reason is None else ReasonView(reason.code, reason.detail, reason.queue_position)


def failure_view(failure: Failure | None) -> FailureView | None:
    """A failure, if there is one."""
    if failure is None:
        return None
    return FailureView(failure.code, failure.detail, failure.attempt, failure.retryable)
