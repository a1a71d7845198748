"""What becomes of jobs whose worker died or fell silent."""

from typing import Final

from sqlalchemy import ColumnElement, Connection, Double, Select, and_, case, cast, literal, select, update

from service.records import FailureCode, JobStatus
from service.store.clock import database_now
from service.store.states import is_held
from service.store.transitions import Ending, Move, end_attempts, move
from service.tables import jobs

_LONGEST_DOUBLING: Final = 10
"""The wait after a loss stops to double at 2¹⁰ times the first."""

RELEASE: Final = (
    Move(JobStatus.RUNNING, JobStatus.QUEUED),
    Move(JobStatus.PAUSING, JobStatus.PAUSED),
    Move(JobStatus.CANCELLING, JobStatus.CANCELLED),
)
LOSE: Final = (
    Move(JobStatus.RUNNING, JobStatus.FAILED, when=jobs.c.lost_attempts + 1 >= jobs.c.max_attempts),
    *RELEASE,
)


_SILENCE: Final = Ending(FailureCode.WORKER_LOST, "the worker fell silent for longer than its lease", retryable=True)


def after_loss(backoff_seconds: float) -> dict[str, object]:
    """Return the columns that a loss sets: one more, and a wait that doubles with each."""
    doublings = case((jobs.c.lost_attempts < _LONGEST_DOUBLING, jobs.c.lost_attempts), else_=_LONGEST_DOUBLING)
    wait = literal(backoff_seconds, Double) * cast(literal(1).bitwise_lshift(doublings), Double)
    requeued = and_(jobs.c.status == JobStatus.RUNNING.value, jobs.c.lost_attempts + 1 < jobs.c.max_attempts)
    return {
        "lost_attempts": jobs.c.lost_attempts + 1,
        "not_before": case((requeued, database_now(wait)), else_=jobs.c.not_before),
    }


def take_silent(connection: Connection, *, backoff_seconds: float) -> list[str]:
    """Take all jobs whose lease has run out, in one UPDATE, within a transaction that writes.

    A worker that writes at the same moment holds the row on PostgreSQL, and is passed over: it is alive,
    or stopped within a transaction that the server will end. One that comes later waits for the reaper,
    looks at the row again, and finds that it has no lease.
    """
    rows = move(
        connection,
        LOSE,
        is_held,
        jobs.c.id.in_(_nobody_is_writing(jobs.c.lease_expires_at < database_now())),
        values=after_loss(backoff_seconds),
        failure=_SILENCE,
        # What it did after its last sign of life is not known and not charged.
        held_until=jobs.c.renewed_at,
    )
    end_attempts(connection, rows, lost=True, failure=_SILENCE, log_tail=None)
    return [row["id"] for row in rows]


def extend_leases(connection: Connection, seconds: float) -> None:
    """Let every lease last for `seconds` from now at least."""
    connection.execute(
        update(jobs)
        .where(jobs.c.id.in_(_nobody_is_writing(jobs.c.lease_expires_at < database_now(seconds))))
        .values(lease_expires_at=database_now(seconds))
    )


def _nobody_is_writing(condition: ColumnElement[bool]) -> Select[tuple[str]]:
    """Choose and lock held jobs that meet the condition, without those that somebody has locked."""
    return select(jobs.c.id).where(is_held, condition).with_for_update(skip_locked=True)
