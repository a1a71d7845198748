"""Event streams: complete, in order, resumed without loss or repeat, and refused where they must be."""

import json

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from service.api import events as module
from service.api.services import Services
from tests.service.api.serving import Event, events
from tests.service.api.world import Worker, finished, problem, submit


def watch(client: TestClient, job_id: str, last: str | None = None) -> list[Event]:
    """Read a stream to its end."""
    headers = {} if last is None else {"Last-Event-ID": last}
    with client.stream("GET", f"/v1/jobs/{job_id}/events", headers=headers) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers["cache-control"] == "no-cache"
        assert response.headers["x-accel-buffering"] == "no"
        return list(events(response))


def test_an_ended_job_tells_all_of_its_life_in_order(client: TestClient, services: Services):
    job_id = finished(services, client, steps=3)
    found = watch(client, job_id)
    assert [event.kind for event in found] == ["status", "status", "point", "point", "point", "status", "end"]
    statuses = [json.loads(event.data)["status"] for event in found if event.kind == "status"]
    assert statuses == ["queued", "running", "succeeded"]
    points = [json.loads(event.data) for event in found if event.kind == "point"]
    assert points == client.get(f"/v1/jobs/{job_id}/trajectory").json()["items"]
    ids = [int(event.id) for event in found]
    assert ids == [1, 2, 3, 4, 5, 6, 6]
    assert json.loads(found[-1].data) == {"status": "succeeded"}


def test_a_stream_that_is_taken_up_anywhere_loses_and_repeats_nothing(client: TestClient, services: Services):
    job_id = finished(services, client, steps=3)
    whole = watch(client, job_id)
    for cut in range(1, len(whole) - 2):
        assert watch(client, job_id, whole[cut].id) == whole[cut + 1 :]


def test_who_has_everything_is_told_not_to_come_back(client: TestClient, services: Services):
    job_id = finished(services, client)
    last = watch(client, job_id)[-1].id
    response = client.get(f"/v1/jobs/{job_id}/events", headers={"Last-Event-ID": last})
    assert (response.status_code, response.content) == (204, b"")


def test_a_retried_job_goes_on_where_its_stream_ended(client: TestClient, worker: Worker):
    job_id = submit(client)["id"]
    worker.fail(worker.claim())
    last = watch(client, job_id)[-1].id
    client.post(f"/v1/jobs/{job_id}/retry")
    worker.succeed(worker.claim())
    kinds = [(event.kind, json.loads(event.data)["status"]) for event in watch(client, job_id, last)]
    assert kinds == [("status", "queued"), ("status", "running"), ("status", "succeeded"), ("end", "succeeded")]


def test_logs_are_events_too(client: TestClient, worker: Worker):
    job_id = submit(client)["id"]
    claim = worker.claim()
    worker.record(claim, [0], logs=["a line\nof two", "ünïcode"])
    worker.succeed(claim)
    texts = [json.loads(event.data)["text"] for event in watch(client, job_id) if event.kind == "log"]
    assert texts == ["a line\nof two", "ünïcode"]


def test_more_events_than_a_batch_arrive_in_one_stream(client: TestClient, services: Services):
    job_id = finished(services, client, steps=module._BATCH * 2 + 7, budget={"outer_steps": 5000})
    points = [json.loads(event.data)["step"] for event in watch(client, job_id) if event.kind == "point"]
    assert points == list(range(module._BATCH * 2 + 7))


@pytest.mark.parametrize("last", ["x", "-1", "1.5", "99999999999999999999", "1 2"])
def test_an_id_that_was_never_given_out_is_refused(client: TestClient, last: str):
    job = submit(client)
    response = client.get(f"/v1/jobs/{job['id']}/events", headers={"Last-Event-ID": last})
    assert problem(response, 422, "invalid-spec")["errors"][0]["parameter"] == "last-event-id"


def test_there_are_only_so_many_streams(make_services, make_client):
    services = make_services(max_streams=0)
    client = make_client(services)
    job_id = finished(services, client)
    response = client.get(f"/v1/jobs/{job_id}/events")
    problem(response, 503, "too-many-streams")
    assert response.headers["retry-after"] == "10"


def test_a_stream_gives_its_place_back(make_services, make_client):
    services = make_services(max_streams=1)
    client = make_client(services)
    job_id = finished(services, client)
    for _ in range(3):
        assert watch(client, job_id)[-1].kind == "end"
    app: FastAPI = client.app
    assert app.state.streams._open == 0
    assert "hyperdial_event_streams 0.0" in client.get("/metrics").text
