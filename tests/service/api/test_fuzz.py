"""Requests that nobody thought of: made from the OpenAPI document by schemathesis.

Every answer must be one that the document declares, in the shape that it declares, and never a failure of ours.
"""

import itertools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import schemathesis
from fastapi import FastAPI
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)
from starlette.testclient import TestClient

from service.api.app import create_app
from service.api.services import Services
from service.files import FileStore
from service.records import KeyScope
from service.settings import QueueKind, Settings
from service.store import Database, Store
from tests.service.api.world import CountingBell, finished, submit

GOLDEN = Path(__file__).parents[2] / "golden" / "openapi.json"
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    unsupported_method,
]
FUZZ = {
    "deadline": None,
    "derandomize": True,
    "database": None,
    "suppress_health_check": list(HealthCheck),
}


class World:
    """A service with an ended and a waiting job."""

    def __init__(self, services: Services) -> None:
        self.app = create_app(services)
        with TestClient(self.app, base_url="http://localhost") as client:
            self.ended = finished(services, client)
            self.waiting = str(submit(client)["id"])
        self.keys = {
            scope: {"Authorization": f"Bearer {services.store.keys.create(scope.value, scope)[1]}"}
            for scope in KeyScope
        }
        self._ids = itertools.cycle([self.ended, self.waiting])

    def some_job(self, operation: str) -> str:
        """A job for an operation; one that can be watched to its end, and one that cannot be deleted."""
        match operation:
            case "watch_job":
                return self.ended
            case "delete_job":
                return self.waiting
            case _:
                return next(self._ids)


def open_services(folder: Path, upgraded: Path, **given: object) -> Services:
    shutil.copyfile(upgraded, folder / "hyperdial.sqlite")
    chosen = Settings(data_dir=folder, queue=QueueKind.DATABASE, **given)  # type: ignore[arg-type]
    return Services(
        settings=chosen, store=Store(Database(chosen.database)), files=FileStore(chosen.files), bell=CountingBell()
    )


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, upgraded: Path) -> Iterator[World]:
    services = open_services(tmp_path_factory.mktemp("open"), upgraded)
    yield World(services)
    services.store.database.close()


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory, upgraded: Path) -> Iterator[FastAPI]:
    services = open_services(tmp_path_factory.mktemp("locked"), upgraded, auth="required")
    yield create_app(services)
    services.store.database.close()


# The golden file, which another test holds to what is served: so that cases are known before anything runs.
DOCUMENT = json.loads(GOLDEN.read_text(encoding="utf-8"))
api = schemathesis.openapi.from_dict(DOCUMENT)
# Without the phase that tries every boundary of every parameter.
brief = schemathesis.openapi.from_dict(
    DOCUMENT, config=schemathesis.Config.from_dict({"phases": {"coverage": {"enabled": False}}})
)
SLOW_OPERATIONS = ["create_dataset", "preview_dataset"]
"""They start a process each time."""


def check(case: schemathesis.Case, world: World) -> None:
    if "job_id" in (case.path_parameters or {}):
        name = case.operation.definition.raw["operationId"]
        case.path_parameters["job_id"] = world.some_job(name)
    if (case.query or {}).get("wait"):
        case.query["wait"] = 0  # it would be held back for as long as it asks
    case.call_and_validate(app=world.app, checks=CHECKS)


@brief.include(operation_id=SLOW_OPERATIONS).parametrize()
@settings(max_examples=3, **FUZZ)
def test_uploads_never_break_the_service(case: schemathesis.Case, world: World):
    check(case, world)


@api.exclude(operation_id=SLOW_OPERATIONS).parametrize()
@settings(max_examples=8, **FUZZ)
def test_no_request_breaks_the_service(case: schemathesis.Case, world: World):
    check(case, world)


@brief.parametrize()
@settings(max_examples=3, **FUZZ)
def test_no_request_gets_in_without_a_key(case: schemathesis.Case, locked: FastAPI):
    response = case.call(app=locked)
    case.validate_response(response, checks=CHECKS)
    if case.operation.path not in ("/healthz", "/readyz"):
        assert response.status_code in (401, 405, 422)  # 422: a parameter that no operation has


@pytest.mark.slow
@api.parametrize()
@settings(max_examples=300, **FUZZ)
def test_no_request_breaks_the_service_however_many_there_are(case: schemathesis.Case, world: World):
    check(case, world)
