"""The trajectory of a job."""

from collections.abc import Iterator

from sqlalchemy import select

from service.errors import NotFound
from service.records import PointRecord
from service.store.database import Database
from service.store.job_rows import point_record
from service.tables import jobs, points


class Points:
    """Points in the order of their steps."""

    def __init__(self, database: Database) -> None:
        """Take the database."""
        self._database = database

    def page(self, job_id: str, *, after: int | None, limit: int) -> list[PointRecord]:
        """Return points with steps above `after`, or from the first.

        Raises:
            NotFound: there is no such job.
        """
        query = select(points).where(points.c.job_id == job_id).order_by(points.c.step).limit(limit)
        if after is not None:
            query = query.where(points.c.step > after)
        with self._database.read() as connection:
            found = [point_record(row) for row in connection.execute(query).mappings()]
            if not found and connection.scalar(select(jobs.c.id).where(jobs.c.id == job_id)) is None:
                raise NotFound("there is no such job")
            return found

    def iterate(self, job_id: str, *, batch: int = 1000) -> Iterator[PointRecord]:
        """Yield all points, a transaction for each `batch`, so that a slow reader holds nothing open.

        Raises:
            NotFound: there is no such job, or no longer.
        """
        after: int | None = None
        while found := self.page(job_id, after=after, limit=batch):
            yield from found
            if len(found) < batch:
                return
            after = found[-1].step
