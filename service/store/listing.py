"""Finding jobs: each filter has an index that gives the jobs in the order of the list."""

from collections.abc import Mapping, Sequence
from datetime import datetime

from sqlalchemy import ColumnElement, Select, Table, literal, select, tuple_

from service.records import JobStatus
from service.tables import UTCDateTime, job_labels, jobs


def older(table: Table, before: tuple[datetime, str]) -> ColumnElement[bool]:
    """Return what is true of the rows that follow (created_at, id) in a list with the newest first."""
    moment, identifier = before
    return tuple_(table.c.created_at, table.c.id) < tuple_(literal(moment, UTCDateTime()), identifier)


def newest_first(
    *,
    statuses: Sequence[JobStatus],
    method: str | None,
    labels: Mapping[str, str],
    created_after: datetime | None,
    before: tuple[datetime, str] | None,
) -> Select[*tuple[object, ...]]:
    """Return the query for jobs that meet all filters, newest first; the filters are those of `Jobs.list`."""
    query = select(jobs).order_by(jobs.c.created_at.desc(), jobs.c.id.desc())
    if statuses:
        query = query.where(jobs.c.status.in_([status.value for status in statuses]))
    if method is not None:
        query = query.where(jobs.c.method == method)
    for key, value in labels.items():
        query = query.where(
            select(job_labels.c.job_id)
            .where(job_labels.c.job_id == jobs.c.id, job_labels.c.key == key, job_labels.c.value == value)
            .exists()
        )
    if created_after is not None:
        query = query.where(jobs.c.created_at > created_after)
    if before is not None:
        query = query.where(older(jobs, before))
    return query
