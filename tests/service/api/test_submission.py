"""Submitting jobs: what is stored, what is answered, and what a dry run says."""

from dataclasses import replace
from datetime import datetime

from starlette.testclient import TestClient

from service.api.services import Services
from service.queue import RedisBell
from service.records import ColumnType, JobStatus
from service.spec.job import JobSpec
from tests.service.api.world import BODY, CountingBell, body, dataset, problem, row_counts, submit


def test_a_submitted_job_is_stored_and_the_workers_are_rung(client: TestClient, services: Services, bell: CountingBell):
    response = client.post("/v1/jobs", json=body(name="a name", labels={"team": "vision"}, priority=3))
    assert response.status_code == 202
    job = response.json()
    assert response.headers["location"] == f"/v1/jobs/{job['id']}"
    assert response.headers["etag"] == '"1"'
    assert (job["name"], job["labels"], job["priority"]) == ("a name", {"team": "vision"}, 3)
    assert job["status"] == "queued"
    assert job["status_reason"] == {"code": "no_worker_online", "detail": "no worker is online", "queue_position": 1}
    assert job["progress"] == {"step": 0, "of": 100, "fraction": 0.0, "eta_s": None}
    assert (job["attempt"], job["worker"], job["failure"], job["latest"]) == (0, None, None, None)
    assert datetime.fromisoformat(job["created_at"]).tzinfo is not None
    assert (job["started_at"], job["ended_at"]) == (None, None)
    assert job["links"]["events"] == f"/v1/jobs/{job['id']}/events"
    assert services.store.jobs.get(job["id"]).status is JobStatus.QUEUED
    assert bell.rings == 1


def test_a_stored_specification_has_every_default_filled_in(client: TestClient):
    assert submit(client)["spec"] == JobSpec.model_validate(BODY).model_dump(mode="json")


def test_a_job_is_accepted_while_the_queue_is_away(client: TestClient, services: Services, bell: CountingBell):
    bell.is_broken = True
    job = submit(client)
    assert services.store.jobs.get(job["id"]).status is JobStatus.QUEUED
    # The outbox keeps the ring for later.
    assert [entry.subject for entry in services.store.maintenance.outbox_pending(10)] == [job["id"]]


def test_a_redis_that_is_away_does_not_refuse_a_job(services: Services, make_client):
    # The discard port: nobody listens.
    away = RedisBell("redis://127.0.0.1:9/0", "hyperdial")
    client = make_client(replace(services, bell=away))
    assert client.post("/v1/jobs", json=BODY).status_code == 202
    assert client.get("/readyz").json()["status"] == "degraded"


def test_links_carry_the_prefix_that_a_proxy_strips(make_services, make_client):
    client = make_client(make_services(root_path="/tuning"))
    response = client.post("/v1/jobs", json=BODY)
    assert response.headers["location"].startswith("/tuning/v1/jobs/job_")
    assert response.json()["links"]["self"] == response.headers["location"]


def test_a_dry_run_fills_in_defaults_estimates_and_stores_nothing(
    client: TestClient, services: Services, bell: CountingBell
):
    before = row_counts(services)
    response = client.post("/v1/jobs?dry_run=true", json=body(resources={"device": "cuda"}))
    assert response.status_code == 200
    found = response.json()
    assert found["valid"] is True
    assert found["spec"]["budget"]["outer_steps"] == 100
    assert found["estimate"]["weights"] > 0
    assert found["estimate"]["trajectory_points"] == 100
    assert [warning["code"] for warning in found["warnings"]] == ["no_gpu_worker"]
    assert row_counts(services) == before
    assert bell.rings == 0


def test_a_dry_run_refuses_what_a_submission_refuses(client: TestClient):
    wrong = body(data={"dataset": "builtin:digits", "target": "nothing"})
    dry = problem(client.post("/v1/jobs?dry_run=true", json=wrong), 422, "invalid-spec")
    real = problem(client.post("/v1/jobs", json=wrong), 422, "invalid-spec")
    assert dry["errors"] == real["errors"]


def test_a_misspelt_parameter_does_not_submit_in_earnest(client: TestClient, services: Services):
    before = row_counts(services)
    found = problem(client.post("/v1/jobs?dryrun=true", json=BODY), 422, "invalid-spec")
    assert "dry_run" in found["detail"]
    assert row_counts(services) == before


def test_equal_bodies_without_a_key_make_two_jobs(client: TestClient):
    assert submit(client)["id"] != submit(client)["id"]


def test_a_clone_is_a_new_job_with_the_same_specification(client: TestClient, bell: CountingBell):
    first = submit(client, seed=7)
    response = client.post(f"/v1/jobs/{first['id']}/clone")
    assert response.status_code == 202
    second = response.json()
    assert response.headers["location"] == f"/v1/jobs/{second['id']}"
    assert second["id"] != first["id"]
    assert second["spec"] == first["spec"]
    assert bell.rings == 2


def test_a_clone_needs_the_dataset_of_the_first_job(client: TestClient, services: Services):
    dataset_id = dataset(services, 40, x=ColumnType.NUMBER, target={"0": 20, "1": 20})
    job = submit(client, data={"dataset": dataset_id})
    client.post(f"/v1/jobs/{job['id']}/cancel")
    assert client.delete(f"/v1/datasets/{dataset_id}").status_code == 204
    found = problem(client.post(f"/v1/jobs/{job['id']}/clone"), 422, "invalid-spec")
    assert found["errors"][0]["pointer"] == "/data/dataset"


def test_an_unknown_dataset_is_named(client: TestClient, services: Services):
    before = row_counts(services)
    found = problem(client.post("/v1/jobs", json=body(data={"dataset": "ds_nothing"})), 422, "invalid-spec")
    assert found["errors"][0]["pointer"] == "/data/dataset"
    assert row_counts(services) == before
