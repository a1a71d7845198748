"""While the database, the queue or the file store is away: clear refusals that say when to come back."""

from pathlib import Path

import pytest
from fastapi.routing import APIRoute
from sqlalchemy import update
from starlette.testclient import TestClient

from service.spec.data import DataSpec
from service.spec.job import JobSpec
from service.tables import jobs
from tests.service.api.world import BODY, problem

AWAY = "postgresql://nobody@127.0.0.1:9/nothing"
"""The discard port: nobody listens, and the refusal comes at once."""
WITHOUT_DATABASE = {"/healthz", "/readyz", "/metrics", "/v1/version", "/v1/methods", "/v1/models", "/v1/regularizers",
                    "/v1/losses", "/v1/datasets/{dataset_id}/preview"}  # fmt: skip


@pytest.fixture
def away(make_services, make_client) -> TestClient:
    return make_client(make_services(database_url=AWAY))


def test_every_operation_says_that_the_database_is_away(away: TestClient, tmp_path: Path):
    routes: list[APIRoute] = away.app.state.routes
    for route in routes:
        for method in route.methods:
            if route.path in WITHOUT_DATABASE:
                continue
            url = route.path.format(job_id="job_1", dataset_id="ds_1", name="x")
            given: dict[str, object] = {"headers": {"If-Match": "*"}}
            match method, route.path:
                case "POST", "/v1/jobs":
                    given["json"] = {"data": {"dataset": "ds_1"}}
                case "POST", "/v1/datasets":
                    given["files"] = {"file": ("a.csv", b"x,target\n1,0\n2,1\n")}
                    given["data"] = {"format": "csv"}
                case "PATCH", _:
                    given["json"] = {"name": "x"}
            response = away.request(method, url, **given)
            problem(response, 503, "database-unavailable")
            assert response.headers["retry-after"] == "5"


def test_a_submission_says_so_as_well(away: TestClient):
    problem(away.post("/v1/jobs", json=BODY), 503, "database-unavailable")
    problem(away.post("/v1/jobs", json=BODY, headers={"Idempotency-Key": "x"}), 503, "database-unavailable")
    assert away.post("/v1/jobs?dry_run=true", json=BODY).status_code == 200


def test_a_key_cannot_be_checked_without_the_database(make_services, make_client):
    client = make_client(make_services(database_url=AWAY, auth="required"))
    headers = {"Authorization": "Bearer hd_abcdefgh_" + "x" * 43}
    problem(client.get("/v1/jobs", headers=headers), 503, "database-unavailable")


def test_what_needs_no_database_goes_on(away: TestClient):
    for path in sorted(WITHOUT_DATABASE - {"/readyz", "/v1/datasets/{dataset_id}/preview"}):
        assert away.get(path).status_code == 200
    assert "hyperdial_database_up 0.0" in away.get("/metrics").text
    assert away.get("/v1/datasets/builtin:digits").status_code == 200


def test_a_service_without_its_database_is_not_ready(away: TestClient):
    found = away.get("/readyz")
    assert found.status_code == 503
    assert found.json()["status"] == "unavailable"
    assert found.json()["checks"]["database"] == "unavailable"


def test_an_upload_that_cannot_be_kept_is_refused(make_services, make_client, tmp_path: Path):
    client = make_client(make_services())
    (tmp_path / "uploads").write_text("a file where a folder should be")
    response = client.post("/v1/datasets", files={"file": ("a.csv", b"x,target\n1,0\n")}, data={"format": "csv"})
    problem(response, 503, "files-unavailable")
    assert response.headers["retry-after"] == "5"


def test_a_failure_of_ours_tells_nothing_but_its_id(
    make_services, make_client, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    # A row that no version of the code can have written: nothing that a client could cause.
    services = make_services()
    services.store.jobs.create(JobSpec(data=DataSpec(dataset="builtin:wine")))
    with services.store.database.write() as connection:
        connection.execute(update(jobs).values(spec={"data": {}}, method="", labels=["not", "an", "object"]))
    client = make_client(services, raises=False)
    response = client.get("/v1/jobs")
    found = problem(response, 500, "internal")
    assert response.headers["x-content-type-options"] == "nosniff"
    assert str(tmp_path) not in response.text
    (record,) = [record for record in caplog.records if record.name == "service.api.problems"]
    assert record.request_id == found["request_id"]
    assert record.exc_info is not None
