"""Which job a worker takes next, chosen and taken in one statement."""

from sqlalchemy import ColumnElement, Connection, Select, func, insert, or_, select

from service.records import Claim, JobStatus, Lease
from service.spec.job import Device
from service.store.checkpoints import checkpoints_of
from service.store.clock import database_now
from service.store.states import is_queued
from service.store.transitions import Move, move
from service.tables import attempts, jobs, workers


def next_for(device: str) -> Select[tuple[str]]:
    """Choose the id of the job that a worker with `device` takes next."""
    due = or_(jobs.c.not_before.is_(None), jobs.c.not_before <= database_now())
    order: list[ColumnElement[object]] = [jobs.c.queued_at, jobs.c.id]
    fits = [is_queued, due]
    if device == Device.CPU:
        fits.append(jobs.c.device != Device.CUDA.value)
    else:
        order.insert(0, jobs.c.device_rank)
    return select(jobs.c.id).where(*fits).order_by(jobs.c.priority.desc(), *order).limit(1)


def take_next(connection: Connection, worker_id: str, *, device: str, lease_seconds: float) -> Claim | None:
    """Take the next job that fits and note the attempt, within a transaction that writes.

    On PostgreSQL the choice skips rows that another worker is just taking; on SQLite nobody else writes.
    """
    taken = move(
        connection,
        [Move(JobStatus.QUEUED, JobStatus.RUNNING)],
        jobs.c.id == next_for(device).with_for_update(skip_locked=True).scalar_subquery(),
        values={
            "attempt": jobs.c.attempt + 1,
            "worker_id": worker_id,
            "started_at": func.coalesce(jobs.c.started_at, database_now()),
            "held_since": database_now(),
            "renewed_at": database_now(),
            "lease_expires_at": database_now(lease_seconds),
            "not_before": None,
        },
    )
    if not taken:
        return None
    row = taken[0]
    host = select(workers.c.host).where(workers.c.id == worker_id).scalar_subquery()
    connection.execute(
        insert(attempts).values(
            job_id=row["id"],
            number=row["attempt"],
            worker_id=worker_id,
            host=func.coalesce(host, ""),
            device=device,
            started_at=row["held_since"],
            steps_from=row["steps_done"],
            log_tail="",
        )
    )
    return Claim(
        lease=Lease(job_id=row["id"], attempt=row["attempt"]),
        spec=row["spec"],
        checkpoints=tuple(checkpoints_of(connection, row["id"])),
        steps_done=row["steps_done"],
        run_seconds=row["run_seconds"],
        elapsed_s=0.0 if row["latest"] is None else row["latest"]["elapsed_s"],
    )
