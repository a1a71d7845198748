"""Requests that are sent again: one job, one answer."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from starlette.testclient import TestClient

from service.api.services import Services
from service.records import KeyScope
from tests.service.api.world import BODY, CountingBell, body, problem, row_counts

KEY = {"Idempotency-Key": "5b1f6c9e-0f3b-4d0c-9a1e-6b1f2f0c7a11"}


def test_the_same_request_gets_the_same_answer(client: TestClient, services: Services, bell: CountingBell):
    first = client.post("/v1/jobs", json=BODY, headers=KEY)
    again = client.post("/v1/jobs", json=BODY, headers=KEY)
    assert first.status_code == again.status_code == 202
    assert again.content == first.content
    assert (again.headers["location"], again.headers["etag"]) == (first.headers["location"], first.headers["etag"])
    assert "idempotency-replayed" not in first.headers
    assert again.headers["idempotency-replayed"] == "true"
    assert again.headers["content-type"] == "application/json"
    assert row_counts(services)["jobs"] == 1
    assert bell.rings == 1


def test_the_answer_is_the_first_one_even_after_the_job_has_moved_on(client: TestClient):
    first = client.post("/v1/jobs", json=BODY, headers=KEY)
    client.post(f"/v1/jobs/{first.json()['id']}/cancel")
    assert client.post("/v1/jobs", json=BODY, headers=KEY).json()["status"] == "queued"


def test_another_spelling_of_the_same_body_is_the_same_request(client: TestClient):
    first = client.post("/v1/jobs", json=body(seed=3, name="x"), headers=KEY)
    text = json.dumps({"name": "x", "seed": 3, **BODY}, indent=4)
    again = client.post("/v1/jobs", content=text, headers={**KEY, "content-type": "application/json"})
    assert again.json()["id"] == first.json()["id"]


def test_another_body_with_the_same_key_is_refused(client: TestClient, services: Services):
    client.post("/v1/jobs", json=BODY, headers=KEY)
    problem(client.post("/v1/jobs", json=body(seed=1), headers=KEY), 422, "idempotency-mismatch")
    assert row_counts(services)["jobs"] == 1


def test_a_refused_request_lets_its_key_go(client: TestClient):
    problem(client.post("/v1/jobs", json=body(data={"dataset": "ds_none"}), headers=KEY), 422, "invalid-spec")
    assert client.post("/v1/jobs", json=BODY, headers=KEY).status_code == 202


def test_a_request_that_is_still_being_answered_is_not_answered_twice(client: TestClient, services: Services):
    from service.api.idempotency import fingerprint
    from service.spec.job import JobSpec

    print_ = fingerprint("POST", "/v1/jobs", JobSpec.model_validate(BODY).model_dump(mode="json"))
    services.store.idempotency.begin("anonymous", KEY["Idempotency-Key"], print_)
    response = client.post("/v1/jobs", json=BODY, headers=KEY)
    problem(response, 409, "idempotency-in-progress")
    assert response.headers["retry-after"] == "1"
    assert row_counts(services)["jobs"] == 0


def test_requests_at_the_same_moment_make_one_job(client: TestClient, services: Services):
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: client.post("/v1/jobs", json=BODY, headers=KEY), range(8)))
    assert {answer.status_code for answer in answers} <= {202, 409}
    assert len({answer.json()["id"] for answer in answers if answer.status_code == 202}) == 1
    assert row_counts(services)["jobs"] == 1


@pytest.mark.parametrize("key", ["", "a b", "x" * 256, "tab\there"])
def test_a_key_that_cannot_be_stored_is_refused(client: TestClient, services: Services, key: str):
    problem(client.post("/v1/jobs", json=BODY, headers={"Idempotency-Key": key}), 400, "bad-idempotency-key")
    assert row_counts(services)["jobs"] == 0


def test_keys_of_different_callers_do_not_meet(make_services, make_client):
    services = make_services(auth="required")
    client = make_client(services)
    secrets = [services.store.keys.create(name, KeyScope.SUBMIT)[1] for name in ("a", "b")]
    ids = {
        client.post("/v1/jobs", json=BODY, headers={**KEY, "Authorization": f"Bearer {secret}"}).json()["id"]
        for secret in secrets
    }
    assert len(ids) == 2


def test_a_clone_is_made_once_as_well(client: TestClient, services: Services):
    job_id = client.post("/v1/jobs", json=BODY).json()["id"]
    first = client.post(f"/v1/jobs/{job_id}/clone", headers=KEY)
    again = client.post(f"/v1/jobs/{job_id}/clone", headers=KEY)
    assert again.json() == first.json()
    assert again.headers["idempotency-replayed"] == "true"
    assert row_counts(services)["jobs"] == 2


def test_a_key_of_a_submission_cannot_be_used_for_a_clone(client: TestClient):
    job_id = client.post("/v1/jobs", json=BODY, headers=KEY).json()["id"]
    problem(client.post(f"/v1/jobs/{job_id}/clone", headers=KEY), 422, "idempotency-mismatch")
