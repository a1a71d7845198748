"""Who may call: keys and their scopes, pages of other sites, names that were rebound."""

import pytest
from fastapi.routing import APIRoute
from starlette.testclient import TestClient

from service.api.auth import is_required
from service.api.services import Services
from service.loopback import is_loopback
from service.records import KeyScope
from service.settings import AuthKind, Settings
from tests.service.api.world import BODY, problem, row_counts

OPEN = {"/healthz", "/readyz"}


@pytest.fixture
def locked(make_services) -> Services:
    return make_services(auth="required")


def key(services: Services, scope: KeyScope) -> dict[str, str]:
    return {"Authorization": f"Bearer {services.store.keys.create('a key', scope)[1]}"}


def operations(client: TestClient) -> list[tuple[str, str]]:
    routes: list[APIRoute] = client.app.state.routes
    return [(method, route.path) for route in routes for method in sorted(route.methods)]


def test_every_operation_but_the_probes_needs_a_key(locked: Services, make_client):
    client = make_client(locked)
    before = row_counts(locked)
    for method, path in operations(client):
        url = path.format(job_id="job_1", dataset_id="builtin:digits", name="x")
        response = client.request(method, url)
        if path in OPEN:
            assert response.status_code == 200
            continue
        problem(response, 401, "unauthenticated")
        assert response.headers["www-authenticate"].startswith("Bearer")
    assert row_counts(locked) == before


@pytest.mark.parametrize(
    "header",
    [
        "Bearer",
        "Bearer ",
        "Bearer hd_",
        "Bearer hd_abcdefgh_" + "x" * 43,
        "Bearer hd_" + "x" * 100_0,
        "Basic aGQ6eA==",
        "hd_abcdefgh_x",
        "Bearer hd_é",
        "Bearer hd_%00_x",
    ],
)
def test_what_is_no_key_lets_nobody_in(locked: Services, make_client, header: str):
    response = make_client(locked).get("/v1/jobs", headers={"Authorization": header.encode()})
    problem(response, 401, "unauthenticated")


def test_a_key_is_good_until_it_is_revoked(locked: Services, make_client):
    client = make_client(locked)
    record, secret = locked.store.keys.create("a key", KeyScope.READ)
    headers = {"Authorization": f"Bearer {secret}"}
    assert client.get("/v1/jobs", headers=headers).status_code == 200
    locked.store.keys.revoke(record.id)
    problem(client.get("/v1/jobs", headers=headers), 401, "unauthenticated")


def test_a_key_reads_submits_or_does_all(locked: Services, make_client):
    client = make_client(locked)
    read, submit, admin = (key(locked, scope) for scope in (KeyScope.READ, KeyScope.SUBMIT, KeyScope.ADMIN))
    for method, path in operations(client):
        if path in OPEN or method == "GET":
            continue
        url = path.format(job_id="job_1", dataset_id="ds_1", name="x")
        found = problem(client.request(method, url, headers=read), 403, "scope-missing")
        assert "'submit'" in found["detail"]
    assert client.get("/v1/jobs", headers=read).status_code == 200
    assert client.post("/v1/jobs", json=BODY, headers=submit).status_code == 202
    assert client.get("/v1/jobs", headers=submit).status_code == 200
    assert client.post("/v1/jobs", json=BODY, headers=admin).status_code == 202
    found = problem(client.delete("/v1/datasets/ds_1?force=true", headers=submit), 403, "scope-missing")
    assert "'admin'" in found["detail"]
    assert client.delete("/v1/datasets/ds_1?force=true", headers=admin).status_code == 404


def test_a_key_is_asked_for_before_a_body_is_read(locked: Services, make_client):
    response = make_client(locked).post("/v1/jobs", content=b"{", headers={"content-type": "application/json"})
    problem(response, 401, "unauthenticated")


def test_a_secret_is_not_in_the_log(locked: Services, make_client, caplog: pytest.LogCaptureFixture):
    caplog.set_level("DEBUG")
    secret = "hd_abcdefgh_secret"
    make_client(locked).get("/v1/jobs", headers={"Authorization": f"Bearer {secret}"})
    assert all(secret not in str(record.__dict__) for record in caplog.records if record.name.startswith("service"))


@pytest.mark.parametrize(
    ("host", "auth", "needed"),
    [
        ("127.0.0.1", "auto", False),
        ("::1", "auto", False),
        ("localhost", "auto", False),
        ("0.0.0.0", "auto", True),
        ("::", "auto", True),
        ("192.168.1.5", "auto", True),
        ("gpu-box", "auto", True),
        ("0.0.0.0", "off", False),
        ("127.0.0.1", "required", True),
    ],
)
def test_keys_are_needed_wherever_strangers_can_reach_the_port(host: str, auth: str, needed: bool):
    assert is_required(Settings(host=host, auth=AuthKind(auth))) is needed


def test_loopback_is_told_by_address_not_by_look():
    assert is_loopback("127.8.9.10")
    assert is_loopback("[::1]")
    assert not is_loopback("127.0.0.1.example.com")
    assert not is_loopback("localhost.example.com")
    assert not is_loopback("")


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Origin": "https://example.com"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:9999"},
    ],
)
def test_a_page_of_another_site_cannot_change_anything(client: TestClient, services: Services, headers: dict[str, str]):
    job_id = client.post("/v1/jobs", json=BODY).json()["id"]
    before = row_counts(services)
    # Neither needs a preflight that could stop it: a form, and a request without a body.
    upload = client.post(
        "/v1/datasets", files={"file": ("a.csv", b"x,target\n1,2\n")}, data={"format": "csv"}, headers=headers
    )
    problem(upload, 403, "foreign-page")
    problem(client.post(f"/v1/jobs/{job_id}/cancel", headers=headers), 403, "foreign-page")
    assert row_counts(services) == before
    assert client.get(f"/v1/jobs/{job_id}", headers=headers).json()["status"] == "queued"


@pytest.mark.parametrize(
    "headers",
    [{}, {"Sec-Fetch-Site": "same-origin"}, {"Sec-Fetch-Site": "none"}, {"Origin": "http://127.0.0.1:8000"}],
)
def test_the_services_own_pages_and_programs_can(client: TestClient, headers: dict[str, str]):
    assert client.post("/v1/jobs", json=BODY, headers=headers).status_code == 202


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:8000", 200),
        ("localhost:8000", 200),
        ("[::1]:8000", 200),
        ("api", 200),
        ("hyperdial.localhost", 200),
        ("evil.example.com", 403),
        ("127.0.0.1.nip.io", 403),
        ("evil.example.com:8000", 403),
    ],
)
def test_a_name_that_was_rebound_to_this_machine_reads_nothing(client: TestClient, host: str, status: int):
    assert client.get("/v1/jobs", headers={"Host": host}).status_code == status


def test_no_other_site_is_allowed_to_read(client: TestClient):
    response = client.get("/v1/jobs", headers={"Origin": "https://example.com"})
    assert not any(name.startswith("access-control") for name in response.headers)
    preflight = client.options(
        "/v1/jobs", headers={"Origin": "https://example.com", "Access-Control-Request-Method": "POST"}
    )
    assert preflight.status_code == 405
