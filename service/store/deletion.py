"""Deleting jobs with all that belongs to them."""

from collections.abc import Sequence

from sqlalchemy import Connection, delete, select

from service.store.outbox import forget_files
from service.tables import checkpoints, files, jobs


def delete_jobs(connection: Connection, job_ids: Sequence[str]) -> list[str]:
    """Delete jobs within the running transaction, note their files in the outbox, return the keys."""
    keys = [
        key
        for table in (files, checkpoints)
        for key in connection.scalars(select(table.c.key).where(table.c.job_id.in_(job_ids)))
    ]
    connection.execute(delete(jobs).where(jobs.c.id.in_(job_ids)))
    forget_files(connection, keys)
    return keys
