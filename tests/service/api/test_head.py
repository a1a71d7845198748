"""HEAD is answered wherever GET is: the same status and headers, and nothing after them."""

from collections.abc import Callable
from pathlib import Path

import httpx2
import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.testclient import TestClient

from service.api.services import Services
from service.files import job_key
from service.records import FileRecord
from tests.service.api.serving import serving
from tests.service.api.world import Worker, finished, submit

PER_REQUEST = {"x-request-id", "date"}


def same(client: TestClient, path: str, **headers: str) -> None:
    """Check that HEAD says what GET says."""
    got, head = client.get(path, headers=headers), client.head(path, headers=headers)
    assert head.status_code == got.status_code, path
    assert head.content == b""
    for name in {*got.headers, *head.headers} - PER_REQUEST:
        assert head.headers.get(name) == got.headers.get(name), (path, name)


def made_file(services: Services, client: TestClient) -> str:
    """The path of a file that a job made."""
    job_id, content = submit(client)["id"], b"0123456789" * 200_000
    worker = Worker(services.store)
    claim = worker.claim()
    key = job_key(job_id, "1-weights.safetensors")
    sha256, size_bytes = services.files.put(key, content)
    worker.succeed(claim, files=[FileRecord("weights.safetensors", key, sha256, size_bytes)])
    return f"/v1/jobs/{job_id}/files/weights.safetensors"


def test_every_path_that_takes_get_takes_head(app: FastAPI, services: Services, client: TestClient):
    job_id, file = finished(services, client), made_file(services, client)
    known = {"{job_id}": job_id, "{dataset_id}": "builtin:digits", "{name}": "weights.safetensors"}
    paths = [file]
    for route in app.state.routes:
        assert isinstance(route, APIRoute)
        path = route.path
        for placeholder, value in known.items():
            path = path.replace(placeholder, value)
        if "GET" in route.methods and not path.endswith(("/events", "/metrics")):  # these say something new each time
            paths.append(path)
    assert len(paths) > 15
    for path in paths:
        same(client, path)


def test_conditions_ranges_and_refusals_are_those_of_get(services: Services, client: TestClient):
    job_id, file = finished(services, client), made_file(services, client)
    tag = client.head(f"/v1/jobs/{job_id}").headers["etag"]
    assert client.head(f"/v1/jobs/{job_id}", headers={"If-None-Match": tag}).status_code == 304
    part = client.head(file, headers={"Range": "bytes=10-19"})
    assert (part.status_code, part.headers["content-length"]) == (206, "10")
    assert client.head(file).headers["content-length"] == "2000000"
    for path in ("/v1/jobs/job_0", "/v1/nothing", "/v1/jobs?limit=0", "/v1/jobs/x/cancel"):
        same(client, path)
    assert client.head("/v1/jobs/job_0").status_code == 404
    assert client.head(f"/v1/jobs/{job_id}/cancel").status_code == 405


@pytest.mark.parametrize("form", ["ndjson", "csv", "parquet"])
def test_a_trajectory_is_not_written_for_nobody(services: Services, client: TestClient, form: str):
    head = client.head(f"/v1/jobs/{finished(services, client)}/trajectory", params={"format": form})
    assert head.status_code == 200
    assert head.headers["content-disposition"].endswith(f'.{form}"')
    assert head.content == b""


def test_head_of_an_event_stream_ends_at_once_and_takes_no_place(
    make_services: Callable[..., Services], make_client: Callable[[Services], TestClient]
):
    client = make_client(make_services(max_streams=1))
    job_id = submit(client)["id"]
    for _ in range(3):
        head = client.head(f"/v1/jobs/{job_id}/events")
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-type"].startswith("text/event-stream")


def test_a_real_server_keeps_the_connection_in_order(tmp_path: Path):
    with serving(tmp_path) as server, httpx2.Client(base_url=server.url) as client:
        for path in ("/healthz", "/v1/methods", "/v1/datasets/builtin:digits"):
            head, got = client.head(path), client.get(path)
            assert head.status_code == got.status_code == 200
            assert head.headers["content-length"] == got.headers["content-length"] == str(len(got.content))
            assert head.content == b""
