"""The checkpoints of a job: the last two, the second for when the first turns out damaged."""

from typing import Final

from sqlalchemy import Connection, delete, insert, select

from service.records import Checkpoint, Lease
from service.tables import checkpoints

_KEPT: Final = 2


def checkpoints_of(connection: Connection, job_id: str) -> list[Checkpoint]:
    """Return the checkpoints of a job, newest first.

    The attempt comes first: one that found the newest checkpoint damaged went on from an older step.
    """
    query = (
        select(checkpoints)
        .where(checkpoints.c.job_id == job_id)
        .order_by(checkpoints.c.attempt.desc(), checkpoints.c.step.desc())
    )
    return [Checkpoint(key=row.key, sha256=row.sha256, step=row.step) for row in connection.execute(query)]


def keep_newest(connection: Connection, lease: Lease, checkpoint: Checkpoint) -> list[str]:
    """Add a checkpoint and keep the last two; the same step again replaces the one before.

    Returns:
        Keys of those that are not kept.
    """
    here = checkpoints.c.job_id == lease.job_id
    again = connection.scalars(
        delete(checkpoints)
        .where(here, checkpoints.c.attempt == lease.attempt, checkpoints.c.step == checkpoint.step)
        .returning(checkpoints.c.key)
    ).all()
    connection.execute(
        insert(checkpoints).values(
            job_id=lease.job_id,
            attempt=lease.attempt,
            step=checkpoint.step,
            key=checkpoint.key,
            sha256=checkpoint.sha256,
        )
    )
    kept = checkpoints_of(connection, lease.job_id)[:_KEPT]
    old = connection.scalars(
        delete(checkpoints)
        .where(here, checkpoints.c.key.not_in([each.key for each in kept]))
        .returning(checkpoints.c.key)
    ).all()
    return [key for key in (*again, *old) if key != checkpoint.key]


def drop_all(connection: Connection, job_id: str) -> list[str]:
    """Delete the checkpoints of a job that will not go on, and return their keys."""
    statement = delete(checkpoints).where(checkpoints.c.job_id == job_id).returning(checkpoints.c.key)
    return list(connection.scalars(statement))
