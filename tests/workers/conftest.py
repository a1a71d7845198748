"""Fixtures for tests with real workers."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.workers.fleet import Fleet, Redis


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[Redis]:
    """A Redis of the test's own, which it may kill."""
    server = Redis(tmp_path)
    yield server
    server.kill()


@pytest.fixture(scope="module")
def busy_fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """One stand-in worker for tests that leave it alive: starting one takes seconds."""
    with Fleet(tmp_path_factory.mktemp("fleet"), grace_seconds=2.0) as fleet:
        fleet.worker()
        yield fleet


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    """A fleet without workers yet, for tests that treat them badly."""
    with Fleet(tmp_path) as fleet:
        yield fleet
