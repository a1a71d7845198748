"""The schema's versions: upgrade to the code's, and refuse a database that is ahead of it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text

import migrations
from service.store.backup import back_up
from service.store.database import Database

_LOCK: Final = 0x6879706572646961
"""Of PostgreSQL's advisory locks, ours: `hyperdia` in ASCII."""


class SchemaTooNew(RuntimeError):
    """The database was upgraded by a newer version of hyperdial: install that version, or restore a backup."""

    def __init__(self, found: str, head: str) -> None:
        """Say which revision was found, and which is the newest that this version knows."""
        RuntimeError.__init__(
            self,
            f"the database is at revision {found}, which this version of hyperdial does not know (its newest is "
            f"{head}): it was upgraded by a newer version; install that one, or restore a backup",
        )


def head_revision() -> str:
    """Return the newest revision that the code knows."""
    head = _scripts().get_current_head()
    assert head is not None  # noqa: S101  (there is at least the first migration, and one head)
    return head


def current_revision(database: Database) -> str | None:
    """Return the revision of the database; None when it is empty.

    Raises:
        StoreUnavailable: the database cannot be reached.
    """
    with database.read() as connection:
        return _current(connection)


def is_at_head(database: Database) -> bool:
    """Tell whether the database's schema is the code's.

    Raises:
        StoreUnavailable: the database cannot be reached.
    """
    return current_revision(database) == head_revision()


def upgrade(database: Database, *, saved: Callable[[Path], None] = lambda _: None) -> str:
    """Bring the schema to the code's; no change when it is there.

    Several processes may do this at once: the first does it, the others wait for it. A SQLite database that holds
    something is first copied beside itself, by the one who upgrades, while nobody else writes to it.

    Args:
        database: which.
        saved: told where the copy is, if one was made.

    Returns:
        The revision that the database has now.

    Raises:
        BackupFailed: it could not be copied; nothing was changed.
        SchemaTooNew: the database is ahead of the code; nothing was changed.
        StoreUnavailable: the database cannot be reached.
    """
    head = head_revision()
    with _alone(database) as connection:
        found = _current(connection)
        if found == head:
            return head
        if found is not None and found not in {script.revision for script in _scripts().walk_revisions()}:
            raise SchemaTooNew(found, head)
        if found is not None and database.path is not None:
            saved(back_up(database.path, revision=found))
        config = _config()
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
    return head


@contextmanager
def _alone(database: Database) -> Iterator[Connection]:
    """Open a transaction in which nobody else upgrades; a failure leaves the schema as it was."""
    with database.migrate() as connection:
        if not database.is_sqlite:
            # A migration of much data takes its time, and so does waiting for another process's.
            connection.execute(text("SET LOCAL statement_timeout = 0"))
            connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
        yield connection


def _current(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


def _config() -> Config:
    config = Config()
    folder = Path(next(iter(migrations.__path__)))
    config.set_main_option("script_location", str(folder).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config


def _scripts() -> ScriptDirectory:
    return ScriptDirectory.from_config(_config())
