"""The API on PostgreSQL, where hostile text fails otherwise than on SQLite."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from starlette.testclient import TestClient

from service.api.services import Services
from service.store import Database
from tests.service.api.world import BODY, Worker, body, finished, row_counts

JSON = {"content-type": "application/json"}


@pytest.fixture
def services(make_services: Callable[..., Services], postgresql_database: Database) -> Services:
    return make_services(database_url=postgresql_database.engine.url.render_as_string(hide_password=False))


@pytest.mark.parametrize(
    "sent",
    [
        body(name="a\x00b"),
        body(name="\ud800"),
        body(labels={"a": "\x00"}),
        body(data={"dataset": "ds_\x00"}),
        body(data={"dataset": "builtin:digits", "target": "\x00"}),
        body(data={"dataset": "builtin:digits", "features": ["\x00"]}),
        body(seed=2**53),
        body(priority=2**40),
        body(budget={"outer_steps": 2**40}),
    ],
    ids=lambda sent: json.dumps(sent)[:60],
)
def test_what_cannot_be_stored_is_refused_before(client: TestClient, services: Services, sent: dict[str, Any]):
    before = row_counts(services)
    assert client.post("/v1/jobs", content=json.dumps(sent), headers=JSON).status_code == 422
    assert row_counts(services) == before


@pytest.mark.parametrize(
    "path",
    [
        "/v1/jobs/%00",
        "/v1/jobs/job_%00",
        "/v1/jobs/%ED%A0%80",
        "/v1/jobs?method=%00",
        "/v1/jobs?label=a:%00",
        "/v1/jobs?created_after=0001-01-01T00:00:00Z",
        "/v1/jobs?created_after=9999-12-31T23:59:59Z",
        "/v1/jobs?cursor=%00",
        "/v1/datasets/ds_%00",
        "/v1/jobs/job_1/files/%00",
        "/v1/jobs/job_1/trajectory?after=2147483647",
        "/v1/jobs/job_1/trajectory?after=2147483648",
    ],
)
def test_no_address_breaks_it(client: TestClient, path: str):
    assert client.get(path).status_code in (200, 400, 404, 422)


def test_an_event_number_beyond_the_databases_is_refused(client: TestClient, services: Services):
    job_id = finished(services, client)
    for last, status in ((str(2**63 - 1), 204), (str(2**63), 422)):
        response = client.get(f"/v1/jobs/{job_id}/events", headers={"Last-Event-ID": last})
        assert response.status_code == status


def test_any_other_text_comes_back_as_it_went_in(client: TestClient, services: Services):
    name = "ünïcode \U0001f600 \x01\x7f 'quoted' \\ \u2028"
    job = client.post("/v1/jobs", json=body(name=name, labels={"a": name})).json()
    assert client.get(f"/v1/jobs/{job['id']}").json()["name"] == name
    assert [each["id"] for each in client.get("/v1/jobs", params={"label": f"a:{name}"}).json()["items"]] == [job["id"]]


def test_a_job_lives_its_life(client: TestClient, services: Services):
    key = {"Idempotency-Key": "k"}
    job = client.post("/v1/jobs", json=BODY, headers=key).json()
    assert client.post("/v1/jobs", json=BODY, headers=key).json() == job
    worker = Worker(services.store)
    claim = worker.claim()
    worker.record(claim, [0, 1, 2])
    worker.succeed(claim)
    assert len(client.get(f"/v1/jobs/{job['id']}/trajectory").json()["items"]) == 3
    assert client.get(f"/v1/jobs/{job['id']}/events").text.count("event: point") == 3
    assert client.delete(f"/v1/jobs/{job['id']}").status_code == 204
