"""Appending to a trajectory: one UPDATE and one INSERT a batch, as it is done many times a second."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection, Integer, bindparam, case, insert, select, update

from service.errors import LeaseLost
from service.records import JobStatus, JsonObject, Lease
from service.store.clock import database_now
from service.store.states import is_held
from service.store.text import storable
from service.tables import events, jobs, points


@dataclass(frozen=True)
class NewPoint:
    """A point of a trajectory before it is recorded; the database adds the moment."""

    step: int
    elapsed_s: float
    """Of the run, over all attempts."""
    body: JsonObject
    """The remaining fields of the contract's trajectory point."""


_FENCE: Final = (
    jobs.c.id == bindparam("the_job"),
    jobs.c.attempt == bindparam("the_attempt"),
    is_held,
)

_END: Final = bindparam("end", type_=Integer)
_LINES: Final = bindparam("lines", type_=Integer)
_IS_NEWS: Final = jobs.c.steps_done < _END

# Built once: putting these together takes longer than running them.
_APPEND: Final = (
    update(jobs)
    .where(*_FENCE, jobs.c.steps_done >= bindparam("first", type_=Integer))
    .values(
        steps_before=jobs.c.steps_done,
        steps_done=case((_IS_NEWS, _END), else_=jobs.c.steps_done),
        seq=jobs.c.seq + _LINES + case((_IS_NEWS, _END - jobs.c.steps_done), else_=0),
        version=jobs.c.version + case((_IS_NEWS, 1), (_LINES > 0, 1), else_=0),
        latest=case((_IS_NEWS, bindparam("last_point", type_=jobs.c.latest.type)), else_=jobs.c.latest),
        latest_at=case((_IS_NEWS, database_now()), else_=jobs.c.latest_at),
        renewed_at=database_now(),
        lease_expires_at=database_now(bindparam("lease_seconds")),
    )
    .returning(jobs.c.status, jobs.c.seq, jobs.c.steps_before, jobs.c.latest_at, jobs.c.renewed_at)
)
_INSERT_POINTS: Final = insert(points)
_INSERT_LINES: Final = insert(events)


def record(
    connection: Connection, lease: Lease, new: Sequence[NewPoint], *, lease_seconds: float, logs: Sequence[str]
) -> JobStatus:
    """Do what `Leases.record` says, within a transaction that writes."""
    _check(new)
    # Without points the fence must hold all the same: no number of steps is below 0, and none is news.
    first, end = (new[0].step, new[-1].step + 1) if new else (0, 0)
    row = connection.execute(
        _APPEND,
        {
            "the_job": lease.job_id,
            "the_attempt": lease.attempt,
            "first": first,
            "end": end,
            "lines": len(logs),
            "last_point": _latest(new[-1], lease) if new else None,
            "lease_seconds": lease_seconds,
        },
    ).first()
    if row is None:
        raise _refusal(connection, lease, first)
    fresh = [point for point in new if point.step >= row.steps_before]
    seq = row.seq - len(fresh) - len(logs)
    if fresh:
        connection.execute(
            _INSERT_POINTS,
            [
                {
                    "job_id": lease.job_id,
                    "step": point.step,
                    "seq": seq + place,
                    "attempt": lease.attempt,
                    "at": row.latest_at,
                    "elapsed_s": point.elapsed_s,
                    "body": point.body,
                }
                for place, point in enumerate(fresh, start=1)
            ],
        )
    if logs:
        connection.execute(
            _INSERT_LINES,
            [
                {
                    "job_id": lease.job_id,
                    "seq": seq + len(fresh) + place,
                    "kind": "log",
                    "body": {"attempt": lease.attempt, "text": storable(line)},
                    "at": row.renewed_at,
                }
                for place, line in enumerate(logs, start=1)
            ],
        )
    return JobStatus(row.status)


def _check(new: Sequence[NewPoint]) -> None:
    for place, point in enumerate(new):
        expected = new[0].step + place
        if point.step != expected or point.step < 0:
            raise ValueError(f"step {point.step} came where step {max(0, expected)} was expected: steps have no gaps")
        if not math.isfinite(point.elapsed_s):
            raise ValueError(f"elapsed_s of step {point.step} is {point.elapsed_s}: it must be finite")


def _latest(point: NewPoint, lease: Lease) -> JsonObject:
    # The moment is null here: it is the database's, in a column of its own.
    return {"step": point.step, "attempt": lease.attempt, "at": None, "elapsed_s": point.elapsed_s, **point.body}


def _refusal(connection: Connection, lease: Lease, first: int) -> Exception:
    done = connection.scalar(
        select(jobs.c.steps_done).where(*_FENCE), {"the_job": lease.job_id, "the_attempt": lease.attempt}
    )
    if done is None:
        return LeaseLost()
    return ValueError(f"the points begin with step {first}, but {done} are recorded: steps have no gaps")
