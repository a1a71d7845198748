"""What is to be done outside the database after a commit, remembered so that a crash forgets nothing."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum

from sqlalchemy import Connection, delete, exists, func, insert, literal, update

from service.store.clock import database_now
from service.store.states import is_held
from service.tables import jobs, outbox


class OutboxKind(StrEnum):
    """What is to be done."""

    RING = "ring"
    """Tell the workers that there is work; the subject is the job's id."""
    DELETE_FILE = "delete_file"
    """Remove a file that nothing refers to any more; the subject is its key in the file store."""
    EXPECT_FILE = "expect_file"
    """Nothing yet: a file is about to be stored under the key that is the subject, and then to be referred to. If it
    is not, because whoever stored it died in between, the file is to be removed."""


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


def expect_files(connection: Connection, keys: Sequence[str]) -> None:
    """Note within the running transaction that files are about to be stored. Again: their time begins anew."""
    name_files(connection, keys)
    if keys:
        connection.execute(
            insert(outbox).values(kind=OutboxKind.EXPECT_FILE.value, created_at=database_now()),
            [{"subject": key} for key in keys],
        )


def name_files(connection: Connection, keys: Collection[str]) -> int:
    """Note that files which were expected are now referred to, in the transaction that refers to them.

    Returns:
        How many were still expected. The others were never, or were given up, and are or will be removed.
    """
    if not keys:
        return 0
    statement = delete(outbox).where(outbox.c.kind == OutboxKind.EXPECT_FILE.value, outbox.c.subject.in_(keys))
    return connection.execute(statement).rowcount


def give_up_files(connection: Connection, seconds: float) -> list[str]:
    """Give up files that were expected longer than `seconds` ago, and return their keys: they are to be removed.

    From here on nothing can refer to them: `name_files` finds no expectation. Of a job that a worker holds nothing
    is given up, however long the database or the file store was away; an attempt that has lost its job cannot
    refer to anything any more.
    """
    prefix = literal("jobs/") + jobs.c.id + literal("/")
    is_of_held_job = exists().where(is_held, func.substr(outbox.c.subject, 1, func.length(prefix)) == prefix)
    statement = (
        update(outbox)
        .where(
            outbox.c.kind == OutboxKind.EXPECT_FILE.value,
            outbox.c.created_at < database_now(-seconds),
            ~is_of_held_job,
        )
        .values(kind=OutboxKind.DELETE_FILE.value)
        .returning(outbox.c.subject)
    )
    return list(connection.scalars(statement))
