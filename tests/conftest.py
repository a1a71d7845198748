"""Databases for tests: every test that asks for `store` runs on SQLite and on a real PostgreSQL."""

import os
import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol

import psycopg
import pytest

from service.store import Database, Store, schema
from service.tables import metadata

# A shell that runs tests in the background makes them, and the programs that they start, deaf to Ctrl-C.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


class Server(Protocol):
    """What pgserver gives."""

    def get_uri(self, database: str | None = None) -> str: ...
    def psql(self, command: str) -> str: ...
    def cleanup(self) -> None: ...


@contextmanager
def postgresql() -> Iterator[tuple[Server, Path]]:
    """Run a PostgreSQL server; gives it and the folder of its data."""
    # Not pytest's own folder: the server runs as another user when the tests run as root, and every new
    # session of pytest closes that folder to others again.
    with TemporaryDirectory(prefix="hyperdial-postgresql-", ignore_cleanup_errors=True) as name:
        folder = Path(name) / "data"
        folder.mkdir()
        folder.parent.chmod(0o755)
        # For root pgserver makes that user, by a program that is not on everybody's path.
        os.environ["PATH"] += os.pathsep + "/usr/sbin"
        with warnings.catch_warnings():
            # platformdirs tells that a session has no runtime folder; pgserver then takes one in /tmp.
            warnings.simplefilter("ignore")
            import pgserver

            server: Server = pgserver.get_server(folder, cleanup_mode="stop")
        try:
            yield server, folder
        finally:
            server.cleanup()


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[Server]:
    """One server for each pytest process, with an empty database named `work`."""
    with postgresql() as (server, _):
        with psycopg.connect(server.get_uri("postgres"), autocommit=True) as connection:
            # The machine does not lose its power in a test, and a crash of the server loses nothing without it.
            connection.execute("ALTER SYSTEM SET fsync = off")
            connection.execute("SELECT pg_reload_conf()")
            connection.execute("CREATE DATABASE work")
        yield server


@pytest.fixture(scope="session")
def shared_databases(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str], Database]]:
    """Databases for all tests of a process, by kind: an engine that has compiled its statements is worth keeping."""
    opened: dict[str, Database] = {}

    def of_kind(kind: str) -> Database:
        if kind not in opened:
            if kind == "sqlite":
                url = f"sqlite:///{tmp_path_factory.mktemp('sqlite') / 'hyperdial.sqlite'}"
            else:
                url = request.getfixturevalue("postgresql_server").get_uri("work")
            opened[kind] = Database(url)
            schema.upgrade(opened[kind])
        return opened[kind]

    yield of_kind
    for database in opened.values():
        database.close()


def empty(database: Database) -> None:
    """Delete all rows: milliseconds, where a new database takes half a second."""
    with database.write(durable=False) as connection:
        for table in reversed(metadata.sorted_tables):
            connection.execute(table.delete())


@pytest.fixture
def sqlite_database(shared_databases: Callable[[str], Database]) -> Iterator[Database]:
    """An upgraded, empty SQLite database."""
    database = shared_databases("sqlite")
    yield database
    empty(database)


@pytest.fixture
def postgresql_database(shared_databases: Callable[[str], Database]) -> Iterator[Database]:
    """An upgraded, empty PostgreSQL database."""
    database = shared_databases("postgresql")
    yield database
    empty(database)


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest) -> Database:
    """An upgraded, empty database of either kind."""
    found: Database = request.getfixturevalue(f"{request.param}_database")
    return found


@pytest.fixture
def database_url(database: Database) -> str:
    """The URL of `database`, for other processes and further connections."""
    return database.engine.url.render_as_string(hide_password=False)


@pytest.fixture
def store(database: Database) -> Store:
    """A store on an empty database of either kind."""
    return Store(database)
