"""Databases for tests: every test that asks for `store` runs on SQLite and on a real PostgreSQL."""

import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import psycopg
import pytest

from service.store import Database, Store, schema
from service.tables import metadata


class Server(Protocol):
    """What pgserver gives."""

    def get_uri(self, database: str | None = None) -> str: ...
    def psql(self, command: str) -> str: ...
    def cleanup(self) -> None: ...


def start_postgresql(folder: Path) -> Server:
    """Start a PostgreSQL server whose data lies in `folder`."""
    pgserver = pytest.importorskip("pgserver")
    return pgserver.get_server(folder, cleanup_mode="stop")


@pytest.fixture(scope="session")
def postgresql_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for each pytest process, with an upgraded database."""
    with warnings.catch_warnings():
        # platformdirs tells that a session has no runtime folder; pgserver then takes one in /tmp.
        warnings.simplefilter("ignore")
        server = start_postgresql(tmp_path_factory.mktemp("postgresql"))
    try:
        with psycopg.connect(server.get_uri("postgres"), autocommit=True) as connection:
            # The machine does not lose its power in a test, and a crash of the server loses nothing without it.
            connection.execute("ALTER SYSTEM SET fsync = off")
            connection.execute("SELECT pg_reload_conf()")
            connection.execute("CREATE DATABASE work")
        database = Database(server.get_uri("work"))
        schema.upgrade(database)
        database.close()
        yield server
    finally:
        server.cleanup()


@pytest.fixture(scope="session")
def sqlite_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An upgraded SQLite database to copy."""
    path = tmp_path_factory.mktemp("sqlite") / "model.sqlite"
    database = Database(f"sqlite:///{path}")
    schema.upgrade(database)
    with database.read() as connection:
        connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
    database.close()
    return path


@pytest.fixture
def sqlite_url(sqlite_model: Path, tmp_path: Path) -> str:
    """The URL of an upgraded, empty SQLite database."""
    path = tmp_path / "hyperdial.sqlite"
    shutil.copyfile(sqlite_model, path)
    return f"sqlite:///{path}"


@pytest.fixture
def postgresql_url(postgresql_server: Server) -> Iterator[str]:
    """The URL of an upgraded, empty PostgreSQL database."""
    yield postgresql_server.get_uri("work")
    # Emptying takes milliseconds, a new database for each test half a second.
    empty = "; ".join(f"DELETE FROM {table.name}" for table in reversed(metadata.sorted_tables))
    others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'work' AND pid <> pg_backend_pid()"
    with psycopg.connect(postgresql_server.get_uri("work"), autocommit=True) as connection:
        connection.execute(others)
        connection.execute(empty)


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> str:
    """The URL of an upgraded, empty database of either kind."""
    url: str = request.getfixturevalue(f"{request.param}_url")
    return url


@pytest.fixture
def open_database(database_url: str) -> Iterator[Callable[[], Database]]:
    """Open one more `Database` on the same database, as another process would."""
    opened: list[Database] = []

    def open_one() -> Database:
        opened.append(Database(database_url))
        return opened[-1]

    yield open_one
    for database in opened:
        database.close()


@pytest.fixture
def database(open_database: Callable[[], Database]) -> Database:
    """An upgraded, empty database of either kind."""
    return open_database()


@pytest.fixture
def store(database: Database) -> Store:
    """A store on an empty database of either kind."""
    return Store(database)
