"""Uploaded datasets. Those that ship with the service are in `service.builtin`, not here."""

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from pydantic import TypeAdapter
from sqlalchemy import RowMapping, case, delete, or_, select

from service.errors import DatasetInUse, FileForgotten, NotFound
from service.records import ColumnRecord, DatasetRecord, FailureCode, JobStatus
from service.store.clock import database_now
from service.store.database import Database
from service.store.listing import older
from service.store.outbox import expect_files, forget_files, name_files
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

    def expect_file(self, key: str) -> None:
        """Say that a file is about to be stored for a dataset: it is removed some time later, unless one names it.

        Args:
            key: of the file; it was never used before.
        """
        with self._database.write() as connection:
            expect_files(connection, [key])

    def create(self, new: NewDataset, *, lost: str | None = None) -> tuple[DatasetRecord, bool]:
        """Store a dataset whose file was expected and is in the file store.

        Args:
            new: the dataset.
            lost: a key under which the file store has lost these bytes: a dataset that lies there moves to
                `new.key`.

        Returns:
            The dataset, and True when it is new. False: it was there before, under another id and name; the file
            under `new.key`, if it is not the record's, is removed.

        Raises:
            FileForgotten: the file was expected for too long and has been given up.
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
            # An update, if only of what is equal, locks the row and returns it, in one statement.
            .on_conflict_do_update(
                index_elements=[datasets.c.sha256, datasets.c.format],
                set_={"key": case((datasets.c.key == lost, new.key), else_=datasets.c.key)},
            )
            .returning(*datasets.c)
        )
        with self._database.write() as connection:
            row = connection.execute(insertion).mappings().one()
            if name_files(connection, [new.key]) == 0:
                raise FileForgotten
            if row["key"] != new.key:
                forget_files(connection, [new.key])
            elif lost is not None:
                forget_files(connection, [lost])
        return _record(row), row["id"] == new.id

    def by_content(self, sha256: str, kind: str) -> DatasetRecord | None:
        """Return the dataset of these bytes in this format, if there is one."""
        query = select(datasets).where(datasets.c.sha256 == sha256, datasets.c.format == kind)
        with self._database.read() as connection:
            row = connection.execute(query).mappings().first()
        return None if row is None else _record(row)

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
        needed = or_(jobs.c.dataset == dataset_id, jobs.c.weights_dataset == dataset_id)
        alive = select(jobs.c.id).where(needed, ~is_final)
        with self._database.write() as connection:
            key = connection.scalar(delete(datasets).where(datasets.c.id == dataset_id).returning(datasets.c.key))
            if key is None:
                raise NotFound("there is no such dataset")
            if not force and connection.scalar(alive.limit(1)) is not None:
                raise DatasetInUse
            move(connection, [_FAIL], needed, failure=_DELETED)
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
