"""Answers that are held back until there is something to say."""

import threading
import time
from collections.abc import Callable

import anyio
import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from service.api.conditions import asked_wait
from service.api.notifier import Notifier
from service.api.services import Services
from service.errors import StoreUnavailable
from tests.service.api.world import BODY, Worker, body, finished, submit


def when_awaited(client: TestClient, act: Callable[[], object]) -> threading.Thread:
    """Do something in another thread as soon as a request waits."""
    assert isinstance(client.app, FastAPI)
    notifier: Notifier = client.app.state.notifier

    def run() -> None:
        deadline = time.monotonic() + 20
        while not notifier._waiters:
            assert time.monotonic() < deadline, "no request waits"
            time.sleep(0.005)
        act()

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def test_a_change_ends_the_wait(client: TestClient, worker: Worker):
    job = submit(client)
    thread = when_awaited(client, worker.claim)
    began = time.monotonic()
    response = client.get(f"/v1/jobs/{job['id']}", headers={"Prefer": "wait=30", "If-None-Match": '"1"'})
    assert response.status_code == 200
    assert response.json()["status"] == "running"
    assert response.headers["preference-applied"] == "wait=30"
    assert time.monotonic() - began < 10
    thread.join()


def test_without_a_change_the_answer_is_that_nothing_changed(client: TestClient):
    job = submit(client)
    began = time.monotonic()
    response = client.get(f"/v1/jobs/{job['id']}?wait=1", headers={"If-None-Match": '"1"'})
    assert response.status_code == 304
    assert 1 <= time.monotonic() - began < 10
    assert "preference-applied" not in response.headers


def test_without_an_etag_the_current_version_is_meant(client: TestClient, worker: Worker):
    job = submit(client)
    thread = when_awaited(client, worker.claim)
    assert client.get(f"/v1/jobs/{job['id']}?wait=30").json()["status"] == "running"
    thread.join()


def test_who_has_an_old_version_does_not_wait(client: TestClient):
    job = submit(client)
    client.post(f"/v1/jobs/{job['id']}/pause")
    began = time.monotonic()
    assert client.get(f"/v1/jobs/{job['id']}?wait=30", headers={"If-None-Match": '"1"'}).status_code == 200
    assert time.monotonic() - began < 10


def test_an_ended_job_is_not_waited_for(client: TestClient, services: Services):
    job_id = finished(services, client)
    began = time.monotonic()
    assert client.get(f"/v1/jobs/{job_id}?wait=30").status_code == 200
    assert time.monotonic() - began < 10


def test_a_job_that_is_deleted_meanwhile_is_not_found(client: TestClient, services: Services):
    job_id = finished(services, client)
    tag = client.get(f"/v1/jobs/{job_id}").headers["etag"]
    thread = when_awaited(client, lambda: services.store.jobs.delete(job_id))
    assert client.get(f"/v1/jobs/{job_id}?wait=30", headers={"If-None-Match": tag}).status_code == 404
    thread.join()


def test_a_submission_can_wait_for_the_end(client: TestClient, worker: Worker):
    def work() -> None:
        claim = worker.claim()
        worker.record(claim, [0])
        worker.succeed(claim)

    thread = when_awaited(client, work)
    response = client.post("/v1/jobs", json=BODY, headers={"Prefer": "wait=20"})
    assert response.status_code == 200
    assert response.json()["status"] == "succeeded"
    assert response.headers["preference-applied"] == "wait=20"
    assert response.headers["location"] == f"/v1/jobs/{response.json()['id']}"
    thread.join()


def test_a_submission_that_does_not_end_in_time_is_accepted(client: TestClient, bell):
    response = client.post("/v1/jobs", json=body(name="slow"), headers={"Prefer": "respond-async, wait=1"})
    assert response.status_code == 202
    assert response.json()["status"] == "queued"
    assert response.headers["preference-applied"] == "wait=1"
    assert bell.rings == 1


@pytest.mark.parametrize(
    ("prefer", "seconds"),
    [
        (None, 0),
        ("", 0),
        ("wait=20", 20),
        ("respond-async, wait=10", 10),
        ("wait = 10; x=1", 10),
        ('wait="7"', 7),
        ("WAIT=7", 7),
        ("wait=3600", 60),
        ("wait=-1", 0),
        ("wait=1.5", 0),
        ("wait=abc", 0),
        ("nowait=5", 0),
    ],
)
def test_a_preference_is_read_or_ignored(prefer: str | None, seconds: int):
    assert asked_wait(prefer, None).seconds == seconds


def test_all_who_wait_share_one_query():
    asked: list[set[str]] = []

    def versions(job_ids: object) -> dict[str, int]:
        asked.append(set(job_ids))  # type: ignore[call-overload]
        return {"a": 1, "b": 2}

    notifier = Notifier(versions, interval=0.05)

    async def main() -> None:
        async with anyio.create_task_group() as tasks:
            for _ in range(50):
                tasks.start_soon(lambda: notifier.wait("a", known=1, seconds=0.5))
            tasks.start_soon(lambda: notifier.wait("b", known=1, seconds=30))

    anyio.run(main)
    assert 2 <= len(asked) <= 12
    assert {"a", "b"} in asked
    notifier.close()


def test_nobody_is_asked_while_nobody_waits():
    calls: list[float] = []

    def versions(_: object) -> dict[str, int]:
        calls.append(time.monotonic())
        return {}

    notifier = Notifier(versions, interval=0.01)
    anyio.run(lambda: notifier.wait("gone", known=1, seconds=5))
    count = len(calls)
    assert count >= 1
    thread = next(thread for thread in threading.enumerate() if thread.name == "notifier")
    notifier.close()
    thread.join(5)
    assert len(calls) <= count + 1


def test_a_database_that_is_away_does_not_end_the_waiting():
    answers = iter([StoreUnavailable(), {"a": 2}])

    def versions(_: object) -> dict[str, int]:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    notifier = Notifier(versions, interval=0.01)
    began = time.monotonic()
    anyio.run(lambda: notifier.wait("a", known=1, seconds=30))
    assert time.monotonic() - began < 10
    notifier.close()


def test_closing_wakes_everybody(app: FastAPI):
    notifier: Notifier = app.state.notifier

    async def main() -> None:
        async with anyio.create_task_group() as tasks:
            for _ in range(5):
                tasks.start_soon(lambda: notifier.wait("a", known=1, seconds=60))
            await anyio.sleep(0.05)
            notifier.close()

    began = time.monotonic()
    anyio.run(main)
    assert time.monotonic() - began < 10
