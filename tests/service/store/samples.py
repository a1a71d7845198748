"""Jobs in every status, for tests of the store."""

from collections.abc import Mapping
from typing import Final

from sqlalchemy import update

from service.records import Checkpoint, Claim, DatasetRecord, FailureCode, JobRecord, JobStatus
from service.spec.job import JobSpec
from service.store import NewDataset, NewPoint, Store
from service.store.clock import database_now
from service.tables import jobs

LEASE: Final = 60.0

DATASET: Final = NewDataset(
    id="ds_1",
    name="numbers",
    format="csv",
    rows=1,
    columns=(),
    is_sparse=False,
    nonzeros=None,
    sha256="a" * 64,
    size_bytes=1,
    key="datasets/ds_1",
)
"""A small dataset."""


def spec(
    *,
    name: str = "",
    labels: Mapping[str, str] | None = None,
    priority: int = 0,
    device: str = "auto",
    max_attempts: int = 3,
    method: str = "implicit",
    dataset: str = "builtin:digits",
) -> JobSpec:
    """A small job."""
    return JobSpec.model_validate(
        {
            "name": name,
            "labels": dict(labels or {}),
            "priority": priority,
            "max_attempts": max_attempts,
            "data": {"dataset": dataset},
            "method": {"kind": method},
            "resources": {"device": device},
        }
    )


def points(first: int, end: int) -> list[NewPoint]:
    """Points of the steps first … end − 1."""
    return [NewPoint(step=step, elapsed_s=step / 8, body={"train_loss": 1 / (1 + step)}) for step in range(first, end)]


def uploaded(store: Store, new: NewDataset = DATASET, *, lost: str | None = None) -> tuple[DatasetRecord, bool]:
    """A dataset, stored as an upload stores it."""
    store.datasets.expect_file(new.key)
    return store.datasets.create(new, lost=lost)


def claimed(store: Store, *, device: str = "cpu", **settings: object) -> Claim:
    """A new job, claimed: it must be the only one that waits."""
    job = store.jobs.create(spec(**settings))  # type: ignore[arg-type]
    claim = store.leases.claim("wk_1", device=device, lease_seconds=LEASE)
    assert claim is not None
    assert claim.lease.job_id == job.id
    return claim


def job_in(store: Store, status: JobStatus) -> JobRecord:
    """A job that has come to `status` on a legal way."""
    if status is JobStatus.QUEUED:
        return store.jobs.create(spec())
    claim = claimed(store)
    lease, job_id = claim.lease, claim.lease.job_id
    match status:
        case JobStatus.RUNNING:
            pass
        case JobStatus.PAUSING | JobStatus.PAUSED:
            store.jobs.request_pause(job_id)
        case JobStatus.CANCELLING | JobStatus.CANCELLED:
            store.jobs.request_cancel(job_id)
        case JobStatus.SUCCEEDED:
            store.leases.succeed(lease, result={"metrics": {}}, files=[], log_tail="")
        case JobStatus.FAILED:
            store.leases.fail(lease, FailureCode.DIVERGED, "the loss is NaN", retryable=True, log_tail="")
    if status in (JobStatus.PAUSED, JobStatus.CANCELLED):
        store.leases.release(lease, status.value, log_tail="")  # type: ignore[arg-type]
    job = store.jobs.get(job_id)
    assert job.status is status
    return job


def checkpoint(step: int) -> Checkpoint:
    """A checkpoint of `step` under a key of its own."""
    return Checkpoint(key=f"checkpoints/{step}", sha256="0" * 64, step=step)


def let_lease_run_out(store: Store, job_id: str) -> None:
    """Make the database believe that the worker has been silent for longer than its lease."""
    with store.database.write() as connection:
        connection.execute(update(jobs).where(jobs.c.id == job_id).values(lease_expires_at=database_now(-0.01)))
