"""An API on a real SQLite database in a folder of its own."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from service.api.app import create_app
from service.api.services import Services
from service.files import FileStore
from service.settings import QueueKind, Settings
from service.store import Database, Store, schema
from tests.service.api.world import CountingBell, Worker

ORIGIN = "http://127.0.0.1:8000"


@pytest.fixture(scope="session")
def upgraded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An upgraded SQLite database to copy."""
    path = tmp_path_factory.mktemp("model") / "model.sqlite"
    database = Database(f"sqlite:///{path}")
    schema.upgrade(database)
    with database.read() as connection:
        connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
    database.close()
    return path


@pytest.fixture
def bell() -> CountingBell:
    return CountingBell()


@pytest.fixture
def make_services(tmp_path: Path, sqlite_database: Database, bell: CountingBell) -> Iterator[Callable[..., Services]]:
    """Build services on the test's database, or on another by its URL; keyword arguments are settings."""
    opened: list[Database] = []

    def make(**settings: Any) -> Services:
        if "database_url" in settings:
            database = Database(settings["database_url"], busy_seconds=5.0)
            opened.append(database)
        else:
            database = sqlite_database
            settings["database_url"] = database.engine.url.render_as_string(hide_password=False)
        chosen = Settings(data_dir=tmp_path, queue=QueueKind.DATABASE, **settings)
        return Services(settings=chosen, store=Store(database), files=FileStore(chosen.files), bell=bell)

    yield make
    for database in opened:
        database.close()


@pytest.fixture
def make_client() -> Iterator[Callable[[Services], TestClient]]:
    """Start an application on services and return a client of it."""
    clients: list[TestClient] = []

    def make(services: Services, *, raises: bool = True) -> TestClient:
        client = TestClient(create_app(services), base_url=ORIGIN, raise_server_exceptions=raises)
        clients.append(client.__enter__())
        return client

    yield make
    for client in clients:
        client.__exit__(None, None, None)


@pytest.fixture
def services(make_services: Callable[..., Services]) -> Services:
    return make_services()


@pytest.fixture
def client(services: Services, make_client: Callable[[Services], TestClient]) -> TestClient:
    return make_client(services)


@pytest.fixture
def app(client: TestClient) -> FastAPI:
    application = client.app
    assert isinstance(application, FastAPI)
    return application


@pytest.fixture
def worker(services: Services) -> Worker:
    return Worker(services.store)
