"""What is to be done outside the database after a commit, remembered so that a crash forgets nothing."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum

from sqlalchemy import Connection, delete, insert

from service.store.clock import database_now
from service.tables import outbox


class OutboxKind(StrEnum):
    """What is to be done."""

    RING = "ring"
    """Tell the workers that there is work; the subject is the job's id."""
    DELETE_FILE = "delete_file"
    """Remove a file that nothing refers to any more; the subject is its key in the file store."""


@dataclass(frozen=True)
class OutboxEntry:
    """Something to be done, perhaps more than once: doing it again must do no harm."""

    id: int
    kind: OutboxKind
    subject: str


def forget_files(connection: Connection, keys: Sequence[str]) -> None:
    """Note within the running transaction that the files are to be removed."""
    if keys:
        connection.execute(
            insert(outbox).values(kind=OutboxKind.DELETE_FILE.value, created_at=database_now()),
            [{"subject": key} for key in keys],
        )


def keep_files(connection: Connection, keys: Collection[str]) -> None:
    """Withdraw the removal of files that are referred to again."""
    if keys:
        connection.execute(
            delete(outbox).where(outbox.c.kind == OutboxKind.DELETE_FILE.value, outbox.c.subject.in_(keys))
        )
