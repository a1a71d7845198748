"""Why a job stands where it stands: worked out when it is read, never stored."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection, RowMapping, func, literal, select, tuple_

from service.records import JobStatus, ReasonCode, StatusReason, WorkerState
from service.store.clock import database_now, seconds_between
from service.store.states import is_queued
from service.tables import UTCDateTime, jobs, workers

_STANDING: Final[Mapping[JobStatus, StatusReason]] = {
    JobStatus.PAUSING: StatusReason(ReasonCode.PAUSE_REQUESTED, "saves its state and stops at the next step"),
    JobStatus.PAUSED: StatusReason(ReasonCode.PAUSED_BY_USER, "waits until it is resumed"),
    JobStatus.CANCELLING: StatusReason(ReasonCode.CANCEL_REQUESTED, "stops at the next step"),
    JobStatus.CANCELLED: StatusReason(ReasonCode.CANCELLED_BY_USER, "was cancelled"),
}


def standing_reason(row: RowMapping) -> StatusReason | None:
    """Return what the status itself says; None when it says all, or the job waits in the queue.

    A queued job with `not_before` was lost by a worker and waits for its next attempt.
    """
    if row["status"] == JobStatus.QUEUED and row["not_before"] is not None:
        return StatusReason(ReasonCode.BACKOFF, "a worker was lost; waits a moment before the next attempt")
    return _STANDING.get(JobStatus(row["status"]))


_KIND: Final = {False: "", True: " with a GPU"}


@dataclass(frozen=True)
class _Fleet:
    """Workers that are online and take jobs, and how many of them are idle; those with a GPU beside all."""

    online: int
    idle: int
    gpus: int
    idle_gpus: int


def reasons(
    connection: Connection, rows: Sequence[RowMapping], *, worker_timeout_seconds: float
) -> dict[str, StatusReason]:
    """Return the reasons of those jobs that have one, by id.

    Args:
        connection: within a transaction.
        rows: of the table of jobs, with the columns that a record needs.
        worker_timeout_seconds: a worker silent for longer is offline.
    """
    known = {row["id"]: reason for row in rows if (reason := standing_reason(row)) is not None}
    waiting = [row for row in rows if row["status"] == JobStatus.QUEUED]
    if not waiting:
        return known
    positions = _position(connection, waiting[0]) if len(waiting) == 1 else _positions(connection, waiting)
    delays = _delays(connection, waiting)
    fleet = _fleet(connection, worker_timeout_seconds)
    for row in waiting:
        known[row["id"]] = _waiting_reason(row, positions.get(row["id"]), delays.get(row["id"], 0.0), fleet)
    return known


def _waiting_reason(row: RowMapping, position: int | None, delay: float, fleet: _Fleet) -> StatusReason:
    if delay > 0:
        detail = f"attempt {row['attempt'] + 1} begins in {delay:.0f} s at the earliest: a worker was lost"
        return StatusReason(ReasonCode.BACKOFF, detail, position)
    needs_gpu = row["device"] == "cuda"
    online = fleet.gpus if needs_gpu else fleet.online
    if online == 0:
        detail = "no worker with a GPU is online" if needs_gpu else "no worker is online"
        return StatusReason(ReasonCode.NO_WORKER_ONLINE, detail, position)
    idle = fleet.idle_gpus if needs_gpu else fleet.idle
    if position is not None and position <= idle:
        detail = f"{idle} of {online} workers{_KIND[needs_gpu]} idle: the job begins in a moment"
    else:
        detail = f"{online - idle} of {online} workers{_KIND[needs_gpu]} are busy"
    code = ReasonCode.WAITING_FOR_GPU if needs_gpu else ReasonCode.WAITING_FOR_WORKER
    return StatusReason(code, detail, position)


def _position(connection: Connection, row: RowMapping) -> dict[str, int]:
    """Count the jobs before one: two ranges of the queue's index, which one condition with OR would not be."""
    waiting = select(func.count()).select_from(jobs).where(is_queued)
    earlier = tuple_(jobs.c.queued_at, jobs.c.id) < tuple_(literal(row["queued_at"], UTCDateTime()), row["id"])
    above = waiting.where(jobs.c.priority > row["priority"]).scalar_subquery()
    beside = waiting.where(jobs.c.priority == row["priority"], earlier).scalar_subquery()
    return {row["id"]: 1 + (connection.scalar(select(above + beside)) or 0)}


def _positions(connection: Connection, rows: Sequence[RowMapping]) -> dict[str, int]:
    """Number the whole queue once, which is cheaper than counting for each job of a list."""
    order = func.row_number().over(order_by=(jobs.c.priority.desc(), jobs.c.queued_at, jobs.c.id))
    queue = select(jobs.c.id, order.label("position")).where(is_queued).subquery()
    asked = select(queue.c.id, queue.c.position).where(queue.c.id.in_([row["id"] for row in rows]))
    return {row.id: row.position for row in connection.execute(asked)}


def _delays(connection: Connection, rows: Sequence[RowMapping]) -> dict[str, float]:
    """Return the seconds that jobs still wait after a loss, by the database's clock."""
    ids = [row["id"] for row in rows if row["not_before"] is not None]
    if not ids:
        return {}
    rest = seconds_between(database_now(), jobs.c.not_before)
    return {
        row.id: row.rest for row in connection.execute(select(jobs.c.id, rest.label("rest")).where(jobs.c.id.in_(ids)))
    }


def _fleet(connection: Connection, timeout_seconds: float) -> _Fleet:
    idle = workers.c.state == WorkerState.IDLE.value
    gpu = workers.c.device != "cpu"
    row = connection.execute(
        select(
            func.count().label("online"),
            func.count().filter(idle).label("idle"),
            func.count().filter(gpu).label("gpus"),
            func.count().filter(idle, gpu).label("idle_gpus"),
        ).where(
            workers.c.state.in_([WorkerState.IDLE.value, WorkerState.BUSY.value]),
            workers.c.heartbeat_at > database_now(-timeout_seconds),
        )
    ).one()
    return _Fleet(row.online, row.idle, row.gpus, row.idle_gpus)
