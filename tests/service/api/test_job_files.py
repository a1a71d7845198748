"""Downloading what a job made."""

import base64
import hashlib

import pytest
from starlette.testclient import TestClient

from service.api.services import Services
from service.files import job_key
from service.records import FileRecord
from tests.service.api.world import Worker, problem, submit

CONTENT = bytes(range(256)) * 5000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def job_id(client: TestClient, services: Services, worker: Worker) -> str:
    job_id = str(submit(client)["id"])
    key = job_key(job_id, "weights.safetensors")
    sha256, size_bytes = services.files.put(key, CONTENT)
    gone = FileRecord(name="gone.json", key=job_key(job_id, "gone.json"), sha256="0" * 64, size_bytes=3)
    weights = FileRecord(name="weights.safetensors", key=key, sha256=sha256, size_bytes=size_bytes)
    claim = worker.claim()
    worker.record(claim, [0])
    worker.succeed(claim, files=[weights, gone])
    return job_id


@pytest.fixture
def url(job_id: str) -> str:
    return f"/v1/jobs/{job_id}/files/weights.safetensors"


def test_files_are_listed_with_their_hashes(client: TestClient, job_id: str, url: str):
    items = client.get(f"/v1/jobs/{job_id}/files").json()["items"]
    assert [item["name"] for item in items] == ["gone.json", "weights.safetensors"]
    assert items[1] == {
        "name": "weights.safetensors",
        "bytes": len(CONTENT),
        "sha256": SHA256,
        "links": {"self": url},
    }


def test_a_file_comes_whole_as_a_download(client: TestClient, url: str):
    response = client.get(url)
    assert response.status_code == 200
    assert response.content == CONTENT
    assert response.headers["content-type"] == "application/octet-stream"
    assert response.headers["content-disposition"] == 'attachment; filename="weights.safetensors"'
    assert response.headers["content-length"] == str(len(CONTENT))
    assert response.headers["accept-ranges"] == "bytes"
    assert response.headers["etag"] == f'"{SHA256}"'
    assert response.headers["x-content-type-options"] == "nosniff"
    digest = base64.b64encode(bytes.fromhex(SHA256)).decode()
    assert response.headers["repr-digest"] == f"sha-256=:{digest}:"


def test_who_has_the_file_gets_no_second_copy(client: TestClient, url: str):
    response = client.get(url, headers={"If-None-Match": f'"{SHA256}"'})
    assert (response.status_code, response.content) == (304, b"")


@pytest.mark.parametrize(
    ("header", "start", "end"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=10-19", 10, 20),
        ("bytes=1048570-1048585", 1_048_570, 1_048_586),
        ("bytes=1279990-", 1_279_990, 1_280_000),
        ("bytes=-10", 1_279_990, 1_280_000),
        ("bytes=-99999999", 0, 1_280_000),
        ("bytes=5-99999999", 5, 1_280_000),
        ("bytes = 3 - 4", 3, 5),
    ],
)
def test_a_part_of_a_file_comes_alone(client: TestClient, url: str, header: str, start: int, end: int):
    response = client.get(url, headers={"Range": header})
    assert response.status_code == 206
    assert response.content == CONTENT[start:end]
    assert response.headers["content-range"] == f"bytes {start}-{end - 1}/{len(CONTENT)}"
    assert response.headers["content-length"] == str(end - start)


@pytest.mark.parametrize("header", ["bytes=1280000-", "bytes=-0", "bytes=9999999-99999999"])
def test_a_range_beyond_the_end_is_refused(client: TestClient, url: str, header: str):
    response = client.get(url, headers={"Range": header})
    problem(response, 416, "range-unsatisfiable")
    assert response.headers["content-range"] == f"bytes */{len(CONTENT)}"


@pytest.mark.parametrize("header", ["lines=1-2", "bytes=2-1", "bytes=0-1,5-6", "bytes=", "bytes=a-b", "bytes=-"])
def test_a_range_that_is_not_understood_is_ignored(client: TestClient, url: str, header: str):
    response = client.get(url, headers={"Range": header})
    assert (response.status_code, len(response.content)) == (200, len(CONTENT))


def test_a_download_goes_on_only_with_the_same_file(client: TestClient, url: str):
    same = client.get(url, headers={"Range": "bytes=5-", "If-Range": f'"{SHA256}"'})
    assert same.status_code == 206
    other = client.get(url, headers={"Range": "bytes=5-", "If-Range": '"other"'})
    assert (other.status_code, len(other.content)) == (200, len(CONTENT))


@pytest.mark.parametrize("name", ["nothing", "%00", "..%2F..%2Fhyperdial.sqlite", "%2e%2e", "weights.safetensors%00"])
def test_a_name_that_is_not_listed_is_not_found(client: TestClient, job_id: str, name: str):
    response = client.get(f"/v1/jobs/{job_id}/files/{name}")
    assert response.status_code == 404
    assert response.headers["content-type"] == "application/problem+json"


def test_a_file_that_the_store_has_lost_is_a_clear_refusal(client: TestClient, job_id: str):
    problem(client.get(f"/v1/jobs/{job_id}/files/gone.json"), 404, "file-missing")
