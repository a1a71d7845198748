"""Uploaded datasets. Those that ship with the service are in `service.builtin`, not here."""

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from pydantic import TypeAdapter
from sqlalchemy import RowMapping, delete, select

from service.errors import DatasetInUse, NotFound
from service.records import ColumnRecord, DatasetRecord, FailureCode, JobStatus
from service.store.clock import database_now
from service.store.database import Database
from service.store.listing import older
from service.store.outbox import forget_files, keep_files
from service.store.states import is_final
from service.store.transitions import Ending, Move, move
from service.tables import datasets, jobs

_FAIL: Final = Move(JobStatus.QUEUED, JobStatus.FAILED)
_DELETED: Final = Ending(FailureCode.BAD_DATA, "the dataset was deleted while the job waited", retryable=False)

_COLUMNS: TypeAdapter[tuple[ColumnRecord, ...]] = TypeAdapter(tuple[ColumnRecord, ...])


@dataclass(frozen=True)
class NewDataset:
    """A dataset before it is stored; the fields are those of `DatasetRecord`."""

    id: str
    name: str
    format: str
    rows: int
    columns: tuple[ColumnRecord, ...]
    is_sparse: bool
    nonzeros: int | None
    sha256: str
    size_bytes: int
    key: str


class Datasets:
    """Datasets by their content: the same bytes in the same format are the same dataset."""

    def __init__(self, database: Database) -> None:
        """Take the database."""
        self._database = database

    def create(self, new: NewDataset) -> tuple[DatasetRecord, bool]:
        """Store a dataset whose file is in the file store.

        Returns:
            The dataset, and True when it is new. False: it was there before, under another id and name,
            and the file under `new.key` is not needed unless it is the record's own key.
        """
        insertion = (
            self._database.insert(datasets)
            .values(
                id=new.id,
                name=new.name,
                format=new.format,
                rows=new.rows,
                columns=_COLUMNS.dump_python(new.columns, mode="json"),
                is_sparse=new.is_sparse,
                nonzeros=new.nonzeros,
                sha256=new.sha256,
                size_bytes=new.size_bytes,
                key=new.key,
                created_at=database_now(),
            )
            # An update that changes nothing locks the row and returns it, in one statement.
            .on_conflict_do_update(
                index_elements=[datasets.c.sha256, datasets.c.format], set_={"format": datasets.c.format}
            )
            .returning(*datasets.c)
        )
        with self._database.write() as connection:
            row = connection.execute(insertion).mappings().one()
            # The same bytes may have been deleted a moment ago under the same key.
            keep_files(connection, [row["key"]])
        return _record(row), row["id"] == new.id

    def get(self, dataset_id: str) -> DatasetRecord:
        """Return a dataset.

        Raises:
            NotFound: there is none.
        """
        with self._database.read() as connection:
            row = connection.execute(select(datasets).where(datasets.c.id == dataset_id)).mappings().first()
        if row is None:
            raise NotFound("there is no such dataset")
        return _record(row)

    def by_name(self, name: str) -> DatasetRecord | None:
        """Return the newest dataset of that name, if there is one."""
        query = (
            select(datasets)
            .where(datasets.c.name == name)
            .order_by(datasets.c.created_at.desc(), datasets.c.id.desc())
            .limit(1)
        )
        with self._database.read() as connection:
            row = connection.execute(query).mappings().first()
        return None if row is None else _record(row)

    def delete(self, dataset_id: str, *, force: bool) -> str:
        """Delete a dataset.

        Args:
            dataset_id: which.
            force: even if a job that has not ended needs it. One that waits in the queue fails at once; another
                when it next wants to read its data.

        Returns:
            The key of its file, to be removed now; the outbox has it too.

        Raises:
            NotFound: there is none.
            DatasetInUse: a job that has not ended needs it, and `force` is False.
        """
        alive = select(jobs.c.id).where(jobs.c.dataset == dataset_id, ~is_final)
        with self._database.write() as connection:
            key = connection.scalar(delete(datasets).where(datasets.c.id == dataset_id).returning(datasets.c.key))
            if key is None:
                raise NotFound("there is no such dataset")
            if not force and connection.scalar(alive.limit(1)) is not None:
                raise DatasetInUse
            move(connection, [_FAIL], jobs.c.dataset == dataset_id, failure=_DELETED)
            forget_files(connection, [key])
            return str(key)

    def list(self, *, limit: int, before: tuple[datetime, str] | None = None) -> list[DatasetRecord]:
        """Return datasets, newest first, those before (created_at, id) of the last one of the page before."""
        query = select(datasets).order_by(datasets.c.created_at.desc(), datasets.c.id.desc()).limit(limit)
        if before is not None:
            query = query.where(older(datasets, before))
        with self._database.read() as connection:
            return [_record(row) for row in connection.execute(query).mappings()]


def _record(row: RowMapping) -> DatasetRecord:
    return DatasetRecord(
        id=row["id"],
        name=row["name"],
        format=row["format"],
        rows=row["rows"],
        columns=_COLUMNS.validate_python(row["columns"]),
        is_sparse=row["is_sparse"],
        nonzeros=row["nonzeros"],
        sha256=row["sha256"],
        size_bytes=row["size_bytes"],
        key=row["key"],
        created_at=row["created_at"],
    )
