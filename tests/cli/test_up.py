"""Embedded mode as a whole: it survives what happens to its processes, and stops in order."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import psutil
import pytest

from demo.embedded import DidNotStart, running
from service.cli.client import Client
from tests.cli.conftest import DIGITS, ENDLESS


@pytest.fixture(autouse=True)
def _no_settings_of_the_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("HYPERDIAL_"):
            monkeypatch.delenv(name)


def eventually(condition: Callable[[], bool], *, within: float = 60.0) -> None:
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def children_of(folder: Path) -> dict[str, psutil.Process]:
    """The processes of an embedded service by what they are."""
    pid = int((folder / "lock").read_text())
    found = {"up": psutil.Process(pid)}
    for child in found["up"].children():
        try:
            words = child.cmdline()
        except (psutil.ZombieProcess, psutil.NoSuchProcess):
            continue
        for name, word in (("queue", "unixsocket"), ("api", "api"), ("worker", "workers")):
            if any(word in given for given in words):
                found[name] = child
    return found


def test_what_dies_is_started_again_under_the_same_address(tmp_path: Path) -> None:
    with running(tmp_path, workers=1) as url:
        first = children_of(tmp_path)
        assert set(first) == {"up", "queue", "api", "worker"}
        for name in ("api", "worker", "queue"):
            first[name].kill()
        eventually(lambda: set(children_of(tmp_path)) == {"up", "queue", "api", "worker"})
        # A call that comes too early waits: the port is never closed.
        assert httpx.get(f"{url}/readyz", timeout=60.0).is_success
        with Client(url, key=None) as client:
            job = client.submit(DIGITS)
            assert [event.kind for event in client.events(job.id)][-1] == "end"
            assert client.job(job.id).status == "succeeded"
    assert not first["up"].is_running()


def test_a_job_survives_a_stop_and_goes_on_with_the_next_start(tmp_path: Path) -> None:
    with running(tmp_path, workers=1) as url, Client(url, key=None) as client:
        job_id = client.submit(ENDLESS).id
        for event in client.events(job_id):
            if event.kind == "point" and json.loads(event.data)["step"] >= 20:
                break
    with running(tmp_path, workers=1) as url, Client(url, key=None) as client:
        steps, attempts = [], set()
        for event in client.events(job_id):
            if event.kind == "point":
                point = json.loads(event.data)
                steps.append(point["step"])
                attempts.add(point["attempt"])
                if point["attempt"] == 2 and len(steps) > 40:
                    break
        client.call("POST", f"/v1/jobs/{job_id}/cancel")
    assert steps == list(range(len(steps)))
    assert attempts == {1, 2}


def test_nothing_outlives_a_killed_service_and_its_folder_can_be_used_again(tmp_path: Path) -> None:
    with running(tmp_path, workers=1):
        processes = children_of(tmp_path)
        processes["up"].kill()
        eventually(lambda: not any(alive(process) for process in processes.values()))
    with running(tmp_path, workers=0) as url:
        assert httpx.get(f"{url}/readyz", timeout=30.0).is_success


def alive(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_second_service_does_not_take_the_same_folder(tmp_path: Path) -> None:
    with running(tmp_path, workers=0):  # noqa: SIM117
        with pytest.raises(DidNotStart, match=r"in use by another `hyperdial up`"), running(tmp_path, workers=0):
            pass


def test_a_port_that_is_taken_is_said_before_anything_is_started(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        command = [sys.executable, "-m", "service", "up", "--data-dir", str(tmp_path), "--workers", "0", "--port"]
        done = subprocess.run([*command, str(port)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert f"port {port}" in done.stderr
    assert "--port" in done.stderr


def test_without_redis_workers_find_jobs_in_the_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYPERDIAL_QUEUE", "database")
    with running(tmp_path, workers=1) as url, Client(url, key=None) as client:
        assert "queue" not in children_of(tmp_path)
        job = client.submit(DIGITS)
        assert [event.kind for event in client.events(job.id)][-1] == "end"
        assert client.job(job.id).status == "succeeded"


@pytest.mark.slow
def test_an_api_that_cannot_start_ends_the_attempt_with_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HYPERDIAL_FILES_URL", "nonsense://x")
    with (
        pytest.raises(DidNotStart, match=r"(?s)api does not start; the end of its log.*nonsense"),
        running(tmp_path, workers=0),
    ):
        pass


def test_stopping_is_in_order_and_leaves_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "service", "up", "--data-dir", str(tmp_path), "--workers", "1", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as up:
        assert up.stdout is not None
        while "is ready at" not in up.stdout.readline():
            pass
        processes = children_of(tmp_path)
        up.send_signal(signal.SIGINT)
        said = up.stdout.read()
        assert up.wait() == 0
    assert re.search(r"stopping:.*\nstopped\n$", said, re.DOTALL)
    assert "had to be killed" not in said
    assert not any(alive(process) for process in processes.values())
