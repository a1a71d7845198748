"""Conditions on the status of a job, written into the SQL as constants.

As parameters they would hide from the planner that an index of waiting or of held jobs serves.
"""

from collections.abc import Collection
from typing import Final

from sqlalchemy import ColumnElement, String, literal_column

from service.records import FINAL, HELD, JobStatus
from service.tables import jobs


def _is_one_of(statuses: Collection[JobStatus]) -> ColumnElement[bool]:
    # In the order of the index's own condition, so that SQLite recognizes it.
    return jobs.c.status.in_([literal_column(f"'{each}'", String) for each in JobStatus if each in statuses])


is_queued: Final[ColumnElement[bool]] = jobs.c.status == literal_column("'queued'", String)
is_held: Final = _is_one_of(HELD)
is_final: Final = _is_one_of(FINAL)
