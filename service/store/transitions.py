"""The one door through which every change of a job's status goes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy import ColumnElement, Connection, RowMapping, and_, case, cast, insert, literal, null, or_, true, update

from service.errors import LeaseLost
from service.records import (
    HELD,
    TRANSITIONS,
    AttemptOutcome,
    FailureCode,
    JobStatus,
    JsonObject,
    Lease,
)
from service.store.clock import database_now, seconds_between
from service.store.outbox import OutboxKind
from service.store.reasons import standing_reason
from service.store.states import is_held
from service.store.text import storable
from service.tables import attempts, events, jobs, outbox


@dataclass(frozen=True)
class Move:
    """A change of status, perhaps only of rows that meet a condition."""

    source: JobStatus
    target: JobStatus
    when: ColumnElement[bool] | None = None

    def __post_init__(self) -> None:
        if self.target not in TRANSITIONS[self.source]:
            raise ValueError(f"{self.source} → {self.target} is not a legal change of status")

    @property
    def lets_go(self) -> bool:
        """True when a worker held the job before and none does after."""
        return self.source in HELD and self.target not in HELD


@dataclass(frozen=True)
class Ending:
    """What is known of a failure, before it is known which attempt of which job it ended."""

    code: FailureCode
    detail: str
    retryable: bool


_OUTCOMES: Final[Mapping[JobStatus, AttemptOutcome]] = {
    JobStatus.SUCCEEDED: AttemptOutcome.SUCCEEDED,
    JobStatus.FAILED: AttemptOutcome.FAILED,
    JobStatus.CANCELLED: AttemptOutcome.CANCELLED,
    JobStatus.PAUSED: AttemptOutcome.PAUSED,
    JobStatus.QUEUED: AttemptOutcome.DRAINED,
}
"""How an attempt ended, by the status in which it left its job, unless it was lost."""


def move(
    connection: Connection,
    moves: Sequence[Move],
    *conditions: ColumnElement[bool],
    values: Mapping[str, object] | None = None,
    failure: Ending | None = None,
    held_until: ColumnElement[datetime] | None = None,
) -> Sequence[RowMapping]:
    """Change the status of the jobs that meet the conditions, in one UPDATE, and say so in their events.

    The first move that fits a row is taken; a row that none fits stays. Version and event number grow in
    the same statement. A job that comes to the queue rings for a worker by the outbox.

    Args:
        connection: within a transaction that writes.
        moves: what may happen; each was checked against `records.TRANSITIONS` when it was made.
        conditions: which jobs.
        values: further columns to set.
        failure: why, when a move leads to `failed`.
        held_until: until when the time of a held job counts; now when None.

    Returns:
        The changed rows, all columns, as they are now.
    """
    fits = [and_(jobs.c.status == each.source.value, true() if each.when is None else each.when) for each in moves]

    def where(applies: Callable[[Move], bool], then: object, *, otherwise: object) -> ColumnElement[object]:
        return case(
            *((fit, then if applies(each) else otherwise) for fit, each in zip(fits, moves, strict=True)),
            else_=otherwise,
        )

    def nothing(name: str) -> ColumnElement[object]:
        # PostgreSQL would take a CASE of bare NULLs for text.
        return cast(null(), jobs.c[name].type)

    targets = [literal(each.target.value) for each in moves]
    settings: dict[str, object] = {
        "status": case(*zip(fits, targets, strict=True), else_=jobs.c.status),
        "version": jobs.c.version + 1,
        "seq": jobs.c.seq + 1,
    }
    if any(each.target.is_final or each.source.is_final for each in moves):
        settings["ended_at"] = where(lambda each: each.target.is_final, database_now(), otherwise=nothing("ended_at"))
    if any(each.lets_go for each in moves):
        until = database_now() if held_until is None else held_until
        total = jobs.c.run_seconds
        spent = total + seconds_between(jobs.c.held_since, until)
        settings["run_seconds"] = where(lambda each: each.lets_go, spent, otherwise=total)
        for name in ("worker_id", "held_since", "renewed_at", "lease_expires_at"):
            settings[name] = where(lambda each: each.lets_go, nothing(name), otherwise=jobs.c[name])
    if any(JobStatus.FAILED in (each.source, each.target) for each in moves):
        for name, value in _failure_columns(failure).items():
            known = literal(value, jobs.c[name].type)
            settings[name] = where(lambda each: each.target is JobStatus.FAILED, known, otherwise=nothing(name))
    settings |= values or {}
    statement = update(jobs).where(*conditions, or_(*fits)).values(settings).returning(*jobs.c)
    rows = connection.execute(statement).mappings().all()
    if rows:
        _announce(connection, rows)
    return rows


def _failure_columns(failure: Ending | None) -> dict[str, object]:
    """Return the columns that jobs and attempts have for a failure."""
    return {
        "failure_code": None if failure is None else failure.code.value,
        "failure_detail": None if failure is None else storable(failure.detail),
        "failure_retryable": None if failure is None else failure.retryable,
    }


def _announce(connection: Connection, rows: Sequence[RowMapping]) -> None:
    connection.execute(
        insert(events).values(at=database_now()),
        [{"job_id": row["id"], "seq": row["seq"], "kind": "status", "body": status_body(row)} for row in rows],
    )
    if queued := [row["id"] for row in rows if row["status"] == JobStatus.QUEUED]:
        ring(connection, queued)


def status_body(row: RowMapping) -> JsonObject:
    """Return the body of a job's `status` event, from its row."""
    reason = standing_reason(row)
    return {
        "status": row["status"],
        "attempt": row["attempt"],
        "reason": None if reason is None else {"code": reason.code.value, "detail": reason.detail},
        "failure": None
        if row["failure_code"] is None
        else {
            "code": row["failure_code"],
            "detail": row["failure_detail"],
            "attempt": row["attempt"],
            "retryable": row["failure_retryable"],
        },
    }


def ring(connection: Connection, job_ids: Sequence[str]) -> None:
    """Put a ring for each of the jobs into the outbox."""
    connection.execute(
        insert(outbox).values(kind=OutboxKind.RING.value, created_at=database_now()),
        [{"subject": job_id} for job_id in job_ids],
    )


def end_attempts(
    connection: Connection,
    rows: Sequence[RowMapping],
    *,
    lost: bool,
    failure: Ending | None,
    log_tail: str | None,
) -> None:
    """Write down how the last attempts of the jobs ended.

    Args:
        connection: within a transaction that writes.
        rows: what `move` returned.
        lost: the worker died or fell silent.
        failure: why the attempt ended, when it was lost or failed.
        log_tail: the end of its log; None keeps what is stored.
    """
    for row in rows:
        settings: dict[str, object] = {
            "ended_at": database_now(),
            "outcome": (AttemptOutcome.LOST if lost else _OUTCOMES[JobStatus(row["status"])]).value,
        }
        if failure is not None:
            settings |= _failure_columns(failure)
        if log_tail is not None:
            settings["log_tail"] = storable(log_tail)
        connection.execute(
            update(attempts).where(attempts.c.job_id == row["id"], attempts.c.number == row["attempt"]).values(settings)
        )


def held_by(lease: Lease) -> ColumnElement[bool]:
    """Return the fence: true of the one row that `lease` may write to, as long as it may."""
    return and_(
        jobs.c.id == lease.job_id,
        jobs.c.attempt == lease.attempt,
        is_held,
    )


def only(rows: Sequence[RowMapping]) -> RowMapping:
    """Return the row that a fenced UPDATE changed.

    Raises:
        LeaseLost: it changed none.
    """
    if not rows:
        raise LeaseLost
    return rows[0]
