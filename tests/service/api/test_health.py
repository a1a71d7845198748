"""Probes, measurements, the catalogue, and what every answer carries."""

import re

import pytest
from starlette.testclient import TestClient

from service import catalogue
from service.api.services import Services
from service.records import WorkerState
from service.spec.capabilities import CAPABILITIES
from service.spec.job import JobSpec
from tests.service.api.world import CountingBell, Worker, body, problem, submit


def test_a_process_that_answers_is_alive(client: TestClient):
    assert client.get("/healthz").json() == {"status": "ok"}


def test_a_service_that_has_everything_is_ready(client: TestClient, bell: CountingBell):
    found = client.get("/readyz")
    assert found.status_code == 200
    assert found.json() == {
        "status": "ready",
        "checks": {"database": "ok", "schema": "ok", "files": "ok", "queue": "ok"},
    }
    bell.is_broken = True
    degraded = client.get("/readyz")
    assert (degraded.status_code, degraded.json()["status"]) == (200, "degraded")
    assert degraded.json()["checks"]["queue"] == "unavailable"


def test_a_service_on_old_tables_is_not_ready(make_services, make_client, tmp_path):
    (tmp_path / "other").mkdir()
    client = make_client(make_services(database_url=f"sqlite:///{tmp_path}/other/empty.sqlite"))
    found = client.get("/readyz")
    assert found.status_code == 503
    assert found.json()["checks"]["schema"] == "unavailable"


def test_workers_are_listed_while_they_are_heard_of(client: TestClient, services: Services, worker: Worker):
    job = submit(client)
    claim = worker.claim()
    services.store.workers.heartbeat(worker.name, state=WorkerState.BUSY, job_id=claim.lease.job_id)
    (found,) = client.get("/v1/workers").json()["items"]
    assert (found["id"], found["device"], found["state"], found["job"]) == ("wk_1", "cpu", "busy", job["id"])
    services.store.workers.leave(worker.name)
    assert client.get("/v1/workers").json()["items"][0]["state"] == "offline"


def test_measurements_tell_requests_by_route_and_jobs_by_status(client: TestClient, worker: Worker):
    job = submit(client)
    client.get(f"/v1/jobs/{job['id']}")
    client.get("/v1/jobs/job_nothing")
    client.get("/v1/nonsense")
    response = client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    text = response.text
    assert 'hyperdial_http_request_seconds_count{method="GET",route="/v1/jobs/{job_id}",status="200"} 1.0' in text
    assert 'hyperdial_http_request_seconds_count{method="GET",route="/v1/jobs/{job_id}",status="404"} 1.0' in text
    assert 'hyperdial_http_request_seconds_count{method="GET",route="unmatched",status="404"} 1.0' in text
    assert 'hyperdial_jobs{status="queued"} 1.0' in text
    assert 'hyperdial_jobs{status="failed"} 0.0' in text
    assert 'hyperdial_workers{state="idle"} 1.0' in text
    assert "hyperdial_database_up 1.0" in text
    assert job["id"] not in text


def test_a_long_poll_is_no_slow_request(client: TestClient):
    job = submit(client)
    client.get(f"/v1/jobs/{job['id']}?wait=1", headers={"If-None-Match": '"1"'})
    assert 'route="/v1/jobs/{job_id}"' not in client.get("/metrics").text


def test_the_version_is_told(client: TestClient):
    found = client.get("/v1/version").json()
    assert found["api_version"] == "v1"
    assert re.match(r"\d+[.+]", found["version"])


@pytest.mark.parametrize("path", ["/healthz", "/v1/jobs", "/v1/nothing", "/v1/openapi.json", "/v1/jobs/job_1"])
def test_every_answer_tells_browsers_to_be_careful(client: TestClient, path: str):
    headers = client.get(path).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert headers["referrer-policy"] == "no-referrer"
    assert "default-src 'none'" in headers["content-security-policy"]
    assert "cache-control" in headers
    assert re.fullmatch(r"req_[0-9a-z]{26}", headers["x-request-id"])
    assert "server" not in headers


@pytest.mark.parametrize(
    ("sent", "is_kept"), [("abc-1.2_3", True), ("a b", False), ("x" * 65, False), ("a\x7f", False)]
)
def test_a_request_id_is_kept_when_it_is_harmless(client: TestClient, sent: str, is_kept: bool):
    assert (client.get("/healthz", headers={"X-Request-ID": sent}).headers["x-request-id"] == sent) is is_kept


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PUT", "/v1/jobs", "GET, HEAD, POST"),
        ("POST", "/healthz", "GET, HEAD"),
        ("POST", "/v1/jobs/job_1", "DELETE, GET, HEAD, PATCH"),
    ],
)
def test_a_path_names_the_methods_that_it_takes(client: TestClient, method: str, path: str, allowed: str):
    response = client.request(method, path)
    problem(response, 405, "method-not-allowed")
    assert response.headers["allow"] == allowed


@pytest.mark.parametrize(
    "path", ["/", "/v1", "/v1/", "/v1/jobs/", "/docs", "/redoc", "/openapi.json", "/v1/job", "//v1/jobs"]
)
def test_there_is_nothing_at_other_paths(client: TestClient, path: str):
    problem(client.get(path), 404, "no-such-path")


def test_the_catalogue_names_what_the_specification_takes(client: TestClient):
    methods = {item["name"]: item for item in client.get("/v1/methods").json()["items"]}
    assert set(methods) >= set(CAPABILITIES)
    for name, models in CAPABILITIES.items():
        assert {model: set(kinds) for model, kinds in methods[name]["models"].items()} == {
            model: set(kinds) for model, kinds in models.items() if kinds
        }
    for path in ("methods", "models", "regularizers", "losses"):
        for item in client.get(f"/v1/{path}").json()["items"]:
            assert item["description"]
            assert "\n" not in item["description"]
            assert item["schema"]
            assert set(item) >= {"name", "description", "source", "schema"}
            if path in ("methods", "regularizers"):
                assert item["source"]
                assert "Source:" not in item["description"]


def test_every_cell_of_the_catalogue_is_accepted_by_a_dry_run(client: TestClient):
    for method in client.get("/v1/methods").json()["items"]:
        for model, kinds in method["models"].items():
            for kind in kinds:
                chosen = {"kind": model, **({"regularizer": kind} if model == "denoiser" else {})}
                if kind == "l2_sp":
                    chosen |= {"backbone": {"kind": "mlp"}, "weights": "ds_1"}
                sent = body(method={"kind": method["name"]}, model=chosen, regularizers=[{"kind": kind}])
                JobSpec.model_validate(sent)


def test_the_catalogue_describes_each_loss_by_itself():
    for loss in catalogue.losses():
        assert "`" not in loss.description
        assert loss.schema == {"const": loss.name}
