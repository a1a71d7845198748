"""The one place that tells a database that is away from a statement that is wrong."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from sqlalchemy.exc import DataError, DBAPIError, InterfaceError, OperationalError, StatementError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from service.errors import StoreUnavailable

_PROGRAMMING_CODES: Final = frozenset(
    {
        sqlite3.SQLITE_ERROR,
        sqlite3.SQLITE_CONSTRAINT,
        sqlite3.SQLITE_MISMATCH,
        sqlite3.SQLITE_MISUSE,
        sqlite3.SQLITE_RANGE,
        sqlite3.SQLITE_TOOBIG,
    }
)
"""SQLite's answers that are a mistake of ours; every other says that the file, the disk or a lock is in the way."""

_AWAY_CLASSES: Final = frozenset({"08", "40", "53", "55", "57", "58", "XX"})
"""Classes of SQLSTATE: connection, deadlock, resources, not in the state needed, operator, system, internal."""

_AWAY_STATES: Final = frozenset({"25006", "25P03", "25P04"})
"""A server that has become a read-only standby, and transactions that it ended for their age."""


_OLD_TABLES_STATES: Final = frozenset({"42P01", "42703"})
"""No such table, no such column."""

_OLD_TABLES: Final = "The database's tables are missing or older than this version: run `hyperdial migrate`."


@contextmanager
def translated() -> Iterator[None]:
    """Raise what the block raises, in the words of the domain.

    Raises:
        StoreUnavailable: the database is away, full, read-only, locked for too long, or all
            connections are in use. The cause is chained, for the log; the message has nothing of it.
        ValueError: a value cannot be stored.
        TypeError: it is none that documents know.
    """
    try:
        yield
    except PoolTimeout as error:
        raise StoreUnavailable from error
    except sqlite3.Error as error:
        # A transaction that could not begin: the driver was asked directly.
        if _is_away(error):
            raise StoreUnavailable from error
        raise
    except DBAPIError as error:
        if _has_old_tables(error.orig):
            raise StoreUnavailable(_OLD_TABLES) from error
        if error.connection_invalidated or _is_away(error.orig):
            raise StoreUnavailable from error
        if isinstance(error, OperationalError | InterfaceError) and _has_no_code(error.orig):
            # Without a code the server did not say it: the connection failed, or was lost.
            raise StoreUnavailable from error
        if isinstance(error, DataError):
            raise ValueError("the database cannot hold a value: NUL in a text, or a number out of range") from error
        raise
    except StatementError as error:
        # Refused before the database saw it, such as NaN in a document.
        if isinstance(error.orig, ValueError | TypeError):
            raise error.orig from error
        raise


def _is_away(cause: BaseException | None) -> bool:
    if isinstance(cause, sqlite3.Error):
        code: int | None = getattr(cause, "sqlite_errorcode", None)
        return code is not None and code & 0xFF not in _PROGRAMMING_CODES
    state: str | None = getattr(cause, "sqlstate", None)
    return state is not None and (state[:2] in _AWAY_CLASSES or state in _AWAY_STATES)


def _has_old_tables(cause: BaseException | None) -> bool:
    if isinstance(cause, sqlite3.Error):
        # SQLite has one code for every mistake in a statement.
        return str(cause).startswith(("no such table", "no such column"))
    return getattr(cause, "sqlstate", None) in _OLD_TABLES_STATES


def _has_no_code(cause: BaseException | None) -> bool:
    return not isinstance(cause, sqlite3.Error) and getattr(cause, "sqlstate", None) is None
