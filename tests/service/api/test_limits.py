"""Rate limits: told on every answer, and refused with the time after which to come again."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from service.api.limits import _customer, rate_of
from service.api.services import Services
from service.rates import Rate
from service.records import KeyScope
from service.settings import Settings
from tests.service.api.world import BODY, problem, row_counts, submit
from tests.workers.fleet import Redis

Make = Callable[..., Services]
Client = Callable[[Services], TestClient]


def key(services: Services, scope: KeyScope = KeyScope.SUBMIT) -> dict[str, str]:
    return {"Authorization": f"Bearer {services.store.keys.create('a key', scope)[1]}"}


@pytest.mark.parametrize(
    ("settings", "rate"),
    [
        ({}, None),
        ({"host": "0.0.0.0"}, Rate(1200, 60)),
        ({"host": "0.0.0.0", "rate_limit": "off"}, None),
        ({"rate_limit": "5/second"}, Rate(5, 1)),
    ],
)
def test_a_loopback_address_has_no_limit_unless_one_is_set(settings: dict[str, Any], rate: Rate | None):
    assert rate_of(Settings(**settings)) == rate


def test_a_key_may_so_often_and_is_then_told_when_again(make_services: Make, make_client: Client):
    services = make_services(auth="required", rate_limit="3/hour")
    client, mine, yours = make_client(services), key(services), key(services)
    for left in (2, 1, 0):
        response = client.get("/v1/jobs", headers=mine)
        assert response.status_code == 200
        assert response.headers["ratelimit-policy"] == '"default";q=3;w=3600'
        assert response.headers["ratelimit"].startswith(f'"default";r={left};t=')
    before = row_counts(services)
    refused = client.post("/v1/jobs", json=BODY, headers=mine)
    found = problem(refused, 429, "rate-exceeded")
    assert "3 requests in 3,600 s" in found["detail"]
    assert 1100 < int(refused.headers["retry-after"]) <= 1200
    assert refused.headers["ratelimit"].startswith('"default";r=0;t=')
    assert row_counts(services) == before
    assert client.get("/v1/jobs", headers=yours).status_code == 200
    for path in ("/healthz", "/readyz"):
        probe = client.get(path, headers=mine)
        assert probe.status_code == 200
        assert "ratelimit" not in probe.headers


def test_refusals_count_too_and_carry_the_headers(make_services: Make, make_client: Client):
    services = make_services(auth="required", rate_limit="2/hour")
    client, mine = make_client(services), key(services, KeyScope.READ)
    for path, status in (("/v1/jobs/job_0", 404), ("/v1/jobs?limit=0", 422)):
        response = client.get(path, headers=mine)
        assert response.status_code == status
        assert "ratelimit" in response.headers
    problem(client.post("/v1/jobs", json=BODY, headers=mine), 429, "rate-exceeded")


def test_who_tries_keys_is_stopped_and_nobody_elses_key_with_it(make_services: Make, make_client: Client):
    services = make_services(auth="required", rate_limit="2/hour")
    client = make_client(services)
    wrong = {"Authorization": "Bearer hd_abcdefgh_" + "x" * 43}
    problem(client.get("/v1/jobs", headers=wrong), 401, "unauthenticated")
    problem(client.get("/v1/jobs"), 401, "unauthenticated")
    for headers in (wrong, {}):
        problem(client.get("/v1/jobs", headers=headers), 429, "rate-exceeded")
    assert client.get("/v1/jobs", headers=key(services)).status_code == 200


def test_without_keys_addresses_are_counted(make_services: Make, make_client: Client):
    client = make_client(make_services(rate_limit="2/hour"))
    submit(client)
    assert client.head("/v1/jobs").headers["ratelimit"].startswith('"default";r=0;')
    problem(client.get("/v1/jobs"), 429, "rate-exceeded")


def test_no_limit_is_no_header(client: TestClient):
    assert "ratelimit" not in client.get("/v1/jobs").headers


@pytest.mark.parametrize(
    ("host", "customer"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("::1", "::/64"),
        ("testclient", "testclient"),
        ("", ""),
    ],
)
def test_addresses_that_one_customer_may_choose_from_are_one(host: str, customer: str):
    assert _customer(host) == customer


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[Redis]:
    server = Redis(tmp_path)
    yield server
    server.kill()


def test_processes_that_share_a_redis_share_the_limit_and_outlive_it(
    make_services: Make, make_client: Client, redis: Redis
):
    services = make_services(auth="required", rate_limit="3/hour", redis_url=redis.url)
    services = Services(
        services.settings.model_copy(update={"queue": "redis"}), services.store, services.files, services.bell
    )
    first, second, mine = make_client(services), make_client(services), key(services)
    statuses = [client.get("/v1/jobs", headers=mine).status_code for client in (first, second, first, second)]
    assert statuses == [200, 200, 200, 429]
    redis.kill()
    assert first.get("/v1/jobs", headers=mine).status_code == 200
