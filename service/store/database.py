"""The connection to the database, and the one place that knows when it is away."""

import json
import os
import sqlite3
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Connection, Engine, Pool, Table, create_engine, make_url, text
from sqlalchemy.dialects import postgresql
from sqlalchemy.dialects import sqlite as sqlite_dialect
from sqlalchemy.engine import URL

from service.store import sqlite
from service.store.outages import translated


class Database:
    """A pool of connections to SQLite (a file) or PostgreSQL.

    Safe to share between threads. After a fork the child gets connections of its own.
    """

    def __init__(
        self,
        url: str,
        *,
        pool_size: int = 10,
        pool_seconds: float = 10.0,
        connect_seconds: int = 5,
        statement_seconds: float = 30.0,
        busy_seconds: float = 30.0,
    ) -> None:
        """Prepare a pool; connects only when it is first used.

        Args:
            url: SQLAlchemy URL: `sqlite:///path` or `postgresql://…`.
            pool_size: connections kept open; twice as many are opened when needed.
            pool_seconds: wait for a free connection.
            connect_seconds: wait for PostgreSQL to answer.
            statement_seconds: limit of one statement on PostgreSQL, and of the pause between two: a process
                that was stopped within a transaction does not keep its locks for longer.
            busy_seconds: wait for other writers on SQLite.

        Raises:
            ValueError: another kind of database, SQLite without a file or on a network file system.
        """
        parsed = make_url(url)
        backend = parsed.get_backend_name()
        self.is_sqlite: Final = backend == "sqlite"
        if self.is_sqlite:
            parsed, arguments = _sqlite_arguments(parsed)
        elif backend in ("postgresql", "postgres"):
            parsed, arguments = _postgresql_arguments(parsed, connect_seconds, statement_seconds)
        else:
            raise ValueError(f"the database is {backend}: sqlite and postgresql are supported")
        self.path: Final = Path(parsed.database) if self.is_sqlite and parsed.database else None
        """Of the file in which SQLite keeps it; None for PostgreSQL."""
        self.engine: Final = create_engine(
            parsed,
            connect_args=arguments,
            pool_size=pool_size,
            max_overflow=pool_size,
            pool_timeout=pool_seconds,
            # Finds out before a connection is handed out whether the server was restarted meanwhile.
            pool_pre_ping=not self.is_sqlite,
            json_serializer=_to_json,
            json_deserializer=json.loads,
        )
        if self.is_sqlite:
            sqlite.prepare(self.engine, busy_seconds=busy_seconds)
        self._writing: Final = self.engine.execution_options(begin="write")
        self._durable: Final = self.engine.execution_options(begin="durable")
        _forget_after_fork(self.engine)

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """Open a transaction that only reads.

        Raises:
            StoreUnavailable: the database cannot be reached.
        """
        with translated(), self.engine.begin() as connection:
            yield connection

    @contextmanager
    def write(self, *, durable: bool = True) -> Iterator[Connection]:
        """Open a transaction that writes; committed when the block ends, rolled back when it raises.

        Args:
            durable: False lets SQLite lose it when the power fails within seconds, for what is written
                many times a second. The order of writes is kept in any case. PostgreSQL is always durable.

        Raises:
            StoreUnavailable: the database cannot be reached, is full or read-only. Whether a commit that
                was under way took place is then unknown: what is repeated must be idempotent.
            ValueError: a value cannot be stored: NaN in a document, NUL in a text.
        """
        with translated(), (self._durable if durable else self._writing).begin() as connection:
            yield connection

    @contextmanager
    def migrate(self) -> Iterator[Connection]:
        """Open a transaction that may rebuild tables.

        SQLite rebuilds a table by copying and dropping it, and dropping deletes its rows, with them all
        that refers to them: foreign keys are off meanwhile, which is possible only between transactions.

        Raises:
            StoreUnavailable: the database cannot be reached.
        """
        with translated(), self._durable.connect() as connection:
            raw = connection.connection.driver_connection
            if isinstance(raw, sqlite3.Connection):
                raw.execute("PRAGMA foreign_keys = OFF")
            try:
                with connection.begin():
                    yield connection
            finally:
                if isinstance(raw, sqlite3.Connection):
                    raw.execute("PRAGMA foreign_keys = ON")

    def insert(self, table: Table) -> postgresql.Insert | sqlite_dialect.Insert:
        """Return an INSERT that knows `on_conflict_do_nothing` and `on_conflict_do_update`."""
        return sqlite_dialect.insert(table) if self.is_sqlite else postgresql.insert(table)

    def ping(self) -> None:
        """Return when the database answers.

        Raises:
            StoreUnavailable: it does not.
        """
        with self.read() as connection:
            connection.execute(text("SELECT 1"))

    def close(self) -> None:
        """Close the idle connections; a later use opens new ones."""
        self.engine.dispose()


def _to_json(value: object) -> str:
    # NaN in a document would be refused by every strict reader later: it must not get in.
    return json.dumps(value, allow_nan=False, ensure_ascii=False, separators=(",", ":"))


def _sqlite_arguments(url: URL) -> tuple[URL, dict[str, Any]]:
    if sqlite3.sqlite_version_info < (3, 35):
        raise ValueError(f"SQLite is {sqlite3.sqlite_version}: 3.35 or newer is needed (for RETURNING)")
    if not url.database or url.database == ":memory:" or url.database.startswith("file:"):
        raise ValueError("SQLite needs a file that all processes share: use sqlite:///path")
    path = Path(url.database).absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    sqlite.refuse_network_folder(path.parent)
    return url.set(drivername="sqlite+pysqlite", database=str(path)), {"check_same_thread": False}


def _postgresql_arguments(url: URL, connect_seconds: int, statement_seconds: float) -> tuple[URL, dict[str, Any]]:
    milliseconds = int(statement_seconds * 1000)
    arguments: dict[str, Any] = {
        "connect_timeout": connect_seconds,
        "application_name": "hyperdial",
        # A host that vanished without a word is noticed within half a minute, not after the two hours of TCP.
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 3,
        "tcp_user_timeout": 30_000,
    }
    if "options" not in url.query:
        arguments["options"] = (
            f"-c statement_timeout={milliseconds} -c idle_in_transaction_session_timeout={milliseconds}"
        )
    return url.set(drivername="postgresql+psycopg"), arguments


_inherited: Final[list[Pool]] = []


def _forget_after_fork(engine: Engine) -> None:
    """Make a forked child open connections of its own.

    The parent's sockets must not be used by two processes, nor closed with a goodbye to the server; and
    a SQLite connection must not even be freed in a child (sqlite.org/howtocorrupt.html, 2.6), so the
    child keeps the old pool without using it.
    """
    reference = weakref.ref(engine)

    def forget() -> None:
        if (alive := reference()) is not None:
            _inherited.append(alive.pool)
            alive.dispose(close=False)

    os.register_at_fork(after_in_child=forget)
