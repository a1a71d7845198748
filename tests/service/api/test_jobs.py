"""Finding, steering, changing and deleting jobs."""

import itertools
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from starlette.testclient import TestClient

from service.api.services import Services
from service.files import job_key
from service.records import AttemptOutcome, FileRecord
from tests.service.api.world import RESULT, CountingBell, Worker, finished, problem, row_counts, submit

NOBODY = "job_00000000000000000000000000"


def test_a_job_can_be_read_until_nothing_has_changed(client: TestClient):
    job = submit(client)
    response = client.get(f"/v1/jobs/{job['id']}")
    assert response.status_code == 200
    assert response.json() == job
    tag = response.headers["etag"]
    for header in (tag, f"W/{tag}", f'"99", {tag}', "*"):
        same = client.get(f"/v1/jobs/{job['id']}", headers={"If-None-Match": header})
        assert same.status_code == 304
        assert same.content == b""
        assert same.headers["etag"] == tag
    assert client.get(f"/v1/jobs/{job['id']}", headers={"If-None-Match": '"99"'}).status_code == 200


def test_a_running_job_says_how_far_it_is(client: TestClient, worker: Worker):
    job = submit(client, budget={"outer_steps": 8})
    claim = worker.claim()
    worker.record(claim, [0, 1])
    found = client.get(f"/v1/jobs/{job['id']}").json()
    assert (found["status"], found["attempt"], found["worker"]) == ("running", 1, "wk_1")
    assert found["progress"] == {"step": 2, "of": 8, "fraction": 0.25, "eta_s": 1.5}
    assert found["latest"]["step"] == 1
    assert found["latest"]["valid_loss"] == "NaN"
    assert found["status_reason"] is None
    assert found["started_at"] is not None


def test_a_succeeded_job_is_done_whatever_was_left_of_its_budget(client: TestClient, services: Services):
    job_id = finished(services, client, steps=3)
    found = client.get(f"/v1/jobs/{job_id}").json()
    assert found["progress"] == {"step": 3, "of": 100, "fraction": 1.0, "eta_s": None}
    assert client.get(f"/v1/jobs/{job_id}/result").json() == RESULT


def test_a_failed_job_says_why(client: TestClient, worker: Worker):
    job = submit(client)
    worker.fail(worker.claim())
    found = client.get(f"/v1/jobs/{job['id']}").json()
    assert found["status"] == "failed"
    assert found["failure"] == {
        "code": "diverged",
        "detail": "the loss is not finite",
        "attempt": 1,
        "retryable": False,
    }
    conflict = problem(client.get(f"/v1/jobs/{job['id']}/result"), 409, "state-conflict")
    assert (conflict["current_status"], conflict["allowed_statuses"]) == ("failed", ["succeeded"])


@pytest.mark.parametrize(
    "path",
    ["", "/result", "/attempts", "/files", "/files/result.json", "/trajectory", "/events"],
)
@pytest.mark.parametrize(
    "job_id", [NOBODY, "nonsense", "job_%00", "job_%ED%A0%80", "..%2F..%2Fetc%2Fpasswd", "job_" + "x" * 300]
)
def test_what_belongs_to_no_job_is_not_found(client: TestClient, job_id: str, path: str):
    response = client.get(f"/v1/jobs/{job_id}{path}")
    assert response.json()["type"] in ("/problems/not-found", "/problems/no-such-path")
    assert response.status_code == 404


@pytest.mark.parametrize("verb", ["cancel", "pause", "resume", "retry", "clone"])
def test_a_job_that_is_not_there_cannot_be_steered(client: TestClient, verb: str):
    problem(client.post(f"/v1/jobs/{NOBODY}/{verb}"), 404, "not-found")


def brought_to(client: TestClient, worker: Worker, status: str) -> str:
    job_id: str = submit(client)["id"]
    if status == "queued":
        return job_id
    claim = worker.claim()
    match status:
        case "pausing" | "paused":
            client.post(f"/v1/jobs/{job_id}/pause")
        case "cancelling" | "cancelled":
            client.post(f"/v1/jobs/{job_id}/cancel")
        case "succeeded":
            worker.succeed(claim)
        case "failed":
            worker.fail(claim)
    if status == "paused":
        worker.release(claim, AttemptOutcome.PAUSED)
    if status == "cancelled":
        worker.release(claim, AttemptOutcome.CANCELLED)
    assert client.get(f"/v1/jobs/{job_id}").json()["status"] == status
    return job_id


STATUSES = ("queued", "running", "pausing", "paused", "cancelling", "succeeded", "failed", "cancelled")
AFTER = {
    "cancel": {"queued": "cancelled", "running": "cancelling", "pausing": "cancelling", "paused": "cancelled",
               "cancelling": "cancelling", "cancelled": "cancelled"},
    "pause": {"queued": "paused", "running": "pausing", "pausing": "pausing", "paused": "paused"},
    "resume": {"paused": "queued", "pausing": "running", "queued": "queued", "running": "running"},
    "retry": {"failed": "queued", "cancelled": "queued", "queued": "queued", "running": "running"},
}  # fmt: skip


@pytest.mark.parametrize(("verb", "status"), list(itertools.product(AFTER, STATUSES)))
def test_a_verb_does_what_the_status_allows_and_nothing_when_repeated(
    client: TestClient, worker: Worker, verb: str, status: str
):
    job_id = brought_to(client, worker, status)
    response = client.post(f"/v1/jobs/{job_id}/{verb}")
    if status not in AFTER[verb]:
        found = problem(response, 409, "state-conflict")
        assert found["current_status"] == status
        assert set(found["allowed_statuses"]) <= set(AFTER[verb])
        return
    assert response.status_code == 202
    assert response.json()["status"] == AFTER[verb][status]
    again = client.post(f"/v1/jobs/{job_id}/{verb}")
    assert again.status_code == 202
    assert again.headers["etag"] == response.headers["etag"]


def test_workers_are_rung_when_a_job_comes_back_to_the_queue(client: TestClient, bell: CountingBell):
    job_id = submit(client)["id"]
    client.post(f"/v1/jobs/{job_id}/pause")
    assert bell.rings == 1
    client.post(f"/v1/jobs/{job_id}/resume")
    assert bell.rings == 2


def test_a_job_can_be_renamed_labelled_and_prioritised(client: TestClient):
    job = submit(client, labels={"a": "1"})
    response = client.patch(
        f"/v1/jobs/{job['id']}",
        json={"name": "new", "labels": {"b": "2"}, "priority": 5},
        headers={"If-Match": '"1"'},
    )
    assert response.status_code == 200
    found = response.json()
    assert (found["name"], found["labels"], found["priority"]) == ("new", {"b": "2"}, 5)
    assert response.headers["etag"] == '"2"'
    only_name = client.patch(f"/v1/jobs/{job['id']}", json={"name": ""}, headers={"If-Match": "*"}).json()
    assert (only_name["name"], only_name["labels"], only_name["priority"]) == ("", {"b": "2"}, 5)


@pytest.mark.parametrize(
    ("if_match", "status", "kind"),
    [
        (None, 428, "precondition-required"),
        ('"7"', 412, "stale-version"),
        ('W/"1"', 412, "stale-version"),
        ("nonsense", 412, "stale-version"),
        ('"99999999999999999999"', 412, "stale-version"),
    ],
)
def test_a_change_of_what_was_not_read_is_refused(client: TestClient, if_match: str | None, status: int, kind: str):
    job = submit(client)
    headers = {} if if_match is None else {"If-Match": if_match}
    problem(client.patch(f"/v1/jobs/{job['id']}", json={"name": "x"}, headers=headers), status, kind)
    assert client.get(f"/v1/jobs/{job['id']}").json()["name"] == ""


@pytest.mark.parametrize(
    ("changes", "pointer"),
    [
        ({}, ""),
        ({"seed": 1}, "/seed"),
        ({"name": None}, "/name"),
        ({"priority": 1000}, "/priority"),
        ({"labels": {"a": 1}}, "/labels/a"),
        ({"status": "succeeded"}, "/status"),
    ],
)
def test_nothing_else_of_a_job_can_be_changed(client: TestClient, changes: dict[str, object], pointer: str):
    job = submit(client)
    response = client.patch(f"/v1/jobs/{job['id']}", json=changes, headers={"If-Match": "*"})
    assert problem(response, 422, "invalid-spec")["errors"][0]["pointer"] == pointer


def test_jobs_are_listed_newest_first_page_by_page(client: TestClient):
    ids = [submit(client, name=str(number))["id"] for number in range(7)]
    seen, cursor, pages = [], None, 0
    while True:
        page = client.get("/v1/jobs", params={"limit": 3, **({"cursor": cursor} if cursor else {})}).json()
        seen += [job["id"] for job in page["items"]]
        pages += 1
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert seen == ids[::-1]
    assert pages == 3


def test_a_page_that_ends_with_the_list_has_no_cursor(client: TestClient):
    for _ in range(3):
        submit(client)
    assert client.get("/v1/jobs", params={"limit": 3}).json()["next_cursor"] is None


def test_jobs_are_found_by_status_method_labels_and_age(client: TestClient):
    first = submit(client, labels={"team": "vision", "run": "1"})
    second = submit(client, labels={"team": "vision", "run": "a:b"}, method={"kind": "hoag"})
    client.post(f"/v1/jobs/{first['id']}/cancel")

    def found(**params: object) -> list[str]:
        response = client.get("/v1/jobs", params=params)
        assert response.status_code == 200, response.text
        return [job["id"] for job in response.json()["items"]]

    assert found(status="cancelled") == [first["id"]]
    assert found(status=["cancelled", "queued"]) == [second["id"], first["id"]]
    assert found(method="hoag") == [second["id"]]
    assert found(label="team:vision") == [second["id"], first["id"]]
    assert found(label=["team:vision", "run:1"]) == [first["id"]]
    assert found(label="run:a:b") == [second["id"]]
    assert found(label="team:speech") == []
    now = datetime.now(UTC)
    assert found(created_after=(now - timedelta(hours=1)).isoformat()) == [second["id"], first["id"]]
    assert found(created_after=(now + timedelta(hours=1)).isoformat()) == []


@pytest.mark.parametrize(
    "query",
    [
        "status=nonsense",
        "limit=0",
        "limit=201",
        "limit=x",
        "label=nocolon",
        "label=:x",
        "label=a:1&label=a:2",
        "method=%00",
        "label=%00:%00",
        "created_after=yesterday",
        "created_after=2026-01-01T00:00:00",
        "created_after=0001-01-01T00:00:00%2B14:00",
        "cursor=" + "x" * 600,
        "unknown=1",
    ],
)
def test_a_filter_that_makes_no_sense_is_refused(client: TestClient, query: str):
    found = problem(client.get(f"/v1/jobs?{query}"), 422, "invalid-spec")
    assert found["errors"][0]["parameter"] in (query.partition("=")[0], "query")


@pytest.mark.parametrize("cursor", ["x", "%00", "e30", "eyJjcmVhdGVkX2F0IjoiMjAyNiJ9", "é"])
def test_a_cursor_that_was_not_given_out_is_refused(client: TestClient, cursor: str):
    problem(client.get(f"/v1/jobs?cursor={cursor}"), 400, "bad-cursor")


def test_a_cursor_is_good_for_its_own_filters_only(client: TestClient):
    for _ in range(3):
        submit(client)
    cursor = client.get("/v1/jobs", params={"limit": 1}).json()["next_cursor"]
    problem(client.get("/v1/jobs", params={"cursor": cursor, "status": "queued"}), 400, "bad-cursor")
    problem(client.get("/v1/datasets", params={"cursor": cursor}), 400, "bad-cursor")
    assert len(client.get("/v1/jobs", params={"cursor": cursor, "limit": 200}).json()["items"]) == 2


def test_attempts_say_who_ran_a_job_and_how_it_ended(client: TestClient, worker: Worker):
    job = submit(client)
    first = worker.claim()
    worker.record(first, [0, 1])
    running = client.get(f"/v1/jobs/{job['id']}/attempts").json()["items"]
    assert [(each["number"], each["outcome"], each["ended_at"]) for each in running] == [(1, None, None)]
    worker.release(first, AttemptOutcome.DRAINED)
    worker.fail(worker.claim())
    items = client.get(f"/v1/jobs/{job['id']}/attempts").json()["items"]
    assert [(each["number"], each["outcome"], each["steps_from"]) for each in items] == [
        (1, "drained", 0),
        (2, "failed", 2),
    ]
    assert (items[1]["worker"], items[1]["host"], items[1]["device"]) == ("wk_1", "here", "cpu")
    assert items[1]["log_tail"] == "nan nan nan"
    assert items[1]["failure"]["code"] == "diverged"


def test_an_ended_job_is_deleted_with_its_files(client: TestClient, services: Services, worker: Worker):
    job_id = submit(client)["id"]
    key = job_key(job_id, "result.json")
    sha256, size_bytes = services.files.put(key, b"{}")
    claim = worker.claim()
    worker.record(claim, [0])
    worker.succeed(claim, files=[FileRecord(name="result.json", key=key, sha256=sha256, size_bytes=size_bytes)])
    response = client.delete(f"/v1/jobs/{job_id}")
    assert (response.status_code, response.content) == (204, b"")
    assert list(services.files.keys()) == []
    problem(client.get(f"/v1/jobs/{job_id}"), 404, "not-found")
    problem(client.delete(f"/v1/jobs/{job_id}"), 404, "not-found")
    counts = row_counts(services)
    assert (counts["jobs"], counts["points"], counts["events"], counts["files"], counts["attempts"]) == (0,) * 5


def test_a_job_is_gone_even_when_its_files_cannot_be_removed_now(
    make_services: Callable[..., Services], make_client: Callable[[Services], TestClient], tmp_path
):
    services = make_services()
    client = make_client(services)
    job_id = submit(client)["id"]
    key = job_key(job_id, "result.json")
    sha256, size_bytes = services.files.put(key, b"{}")
    worker = Worker(services.store)
    worker.succeed(
        worker.claim(), files=[FileRecord(name="result.json", key=key, sha256=sha256, size_bytes=size_bytes)]
    )
    # A folder in the file's place cannot be unlinked.
    path = tmp_path / "files" / key
    path.unlink()
    (path / "inside").mkdir(parents=True)
    assert client.delete(f"/v1/jobs/{job_id}").status_code == 204
    assert key in [entry.subject for entry in services.store.maintenance.outbox_pending(10)]


@pytest.mark.parametrize("status", [s for s in STATUSES if s not in ("succeeded", "failed", "cancelled")])
def test_a_job_that_has_not_ended_cannot_be_deleted(client: TestClient, worker: Worker, status: str):
    job_id = brought_to(client, worker, status)
    found = problem(client.delete(f"/v1/jobs/{job_id}"), 409, "state-conflict")
    assert found["allowed_statuses"] == ["cancelled", "failed", "succeeded"]
    assert client.get(f"/v1/jobs/{job_id}").status_code == 200
