"""The API as operators run it: uvicorn in a process of its own, streams, signals, bodies that do not end."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from service.api.server import Exposed, serve
from service.api.services import Services
from service.settings import AuthKind, QueueKind, Settings
from tests.service.api.serving import Event, Server, events, serving
from tests.service.api.world import BODY, Worker, row_counts


@pytest.fixture
def server(services: Services, tmp_path: Path) -> Iterator[Server]:
    url = services.settings.database
    with serving(tmp_path, database_url=url, upload_limit_bytes=2**20, max_streams=3) as running:
        yield running


def submitted(server: Server) -> str:
    return str(httpx2.post(f"{server.url}/v1/jobs", json=BODY).json()["id"])


def test_events_arrive_while_they_happen_and_resume_exactly(server: Server, worker: Worker):
    """The worker takes a step only when the stream has shown the one before: without delivery this would not end."""
    job_id = submitted(server)
    found: list[Event] = []
    claim, step, last = None, 0, None
    # Cut the connection after every second event.
    while not (found and found[-1].kind == "end"):
        headers = {} if last is None else {"Last-Event-ID": last}
        with httpx2.stream("GET", f"{server.url}/v1/jobs/{job_id}/events", headers=headers, timeout=20) as response:
            if response.status_code == 204:  # cut just before the end: all that happened was received
                break
            for count, event in enumerate(events(response), start=1):
                found.append(event)
                last = event.id
                if claim is None:
                    claim = worker.claim()
                elif step < 5:
                    worker.record(claim, [step])
                    step += 1
                elif step == 5:
                    worker.succeed(claim)
                    step += 1
                if count == 2:
                    break
    assert [event.kind for event in found if event.kind != "end"] == ["status", "status", *["point"] * 5, "status"]
    assert [json.loads(event.data)["step"] for event in found if event.kind == "point"] == [0, 1, 2, 3, 4]
    assert [int(event.id) for event in found if event.kind != "end"] == list(range(1, 9))
    again = httpx2.get(f"{server.url}/v1/jobs/{job_id}/events", headers={"Last-Event-ID": found[-1].id})
    assert again.status_code == 204


def test_a_termination_ends_streams_and_waits_in_order(server: Server):
    job_id = submitted(server)
    lines: list[str] = []
    answers: list[int] = []
    streaming, waiting = threading.Event(), threading.Event()

    def stream() -> None:
        # Ends without an error only when the server ends the stream properly.
        with httpx2.stream("GET", f"{server.url}/v1/jobs/{job_id}/events", timeout=60) as response:
            for line in response.iter_lines():
                lines.append(line)
                if line.startswith("event: status"):
                    streaming.set()

    def wait() -> None:
        waiting.set()
        tag = {"If-None-Match": '"1"'}
        answers.append(httpx2.get(f"{server.url}/v1/jobs/{job_id}?wait=60", headers=tag, timeout=70).status_code)

    threads = [threading.Thread(target=stream), threading.Thread(target=wait)]
    for thread in threads:
        thread.start()
    assert streaming.wait(20)
    assert waiting.wait(20)
    _until_waited_for(server)
    began = time.monotonic()
    assert server.terminate() == 0
    assert time.monotonic() - began < 8  # long before uvicorn would cut connections
    for thread in threads:
        thread.join(20)
    assert answers == [304]
    assert any(line.startswith("retry: 1000") for line in lines)
    assert not any(line.startswith("event: end") for line in lines)
    log = server.log.read_text()
    assert "exceeded" not in log
    assert "Traceback" not in log


def _until_waited_for(server: Server) -> None:
    """Wait until the stream and the long poll have reached the server."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if "hyperdial_event_streams 1.0" in httpx2.get(f"{server.url}/metrics").text:
            time.sleep(0.3)  # the long poll cannot be seen from outside
            return
    raise AssertionError("the stream did not open")


def test_a_stream_whose_client_has_gone_frees_its_place(server: Server):
    job_id = submitted(server)
    for _ in range(5):  # more than there are places
        with httpx2.stream("GET", f"{server.url}/v1/jobs/{job_id}/events", timeout=20) as response:
            assert response.status_code == 200
            assert next(events(response)).kind == "status"
        deadline = time.monotonic() + 20
        while "hyperdial_event_streams 0.0" not in httpx2.get(f"{server.url}/metrics").text:
            assert time.monotonic() < deadline, "the place was not given back"


def test_streams_beyond_the_limit_are_refused_and_the_others_live_on(server: Server):
    job_id = submitted(server)
    with contextlib.ExitStack() as stack:
        streams = [
            events(stack.enter_context(httpx2.stream("GET", f"{server.url}/v1/jobs/{job_id}/events", timeout=20)))
            for _ in range(3)
        ]
        assert {next(stream).kind for stream in streams} == {"status"}
        refused = httpx2.get(f"{server.url}/v1/jobs/{job_id}/events")
        assert refused.status_code == 503
        assert refused.headers["retry-after"] == "10"
        assert httpx2.get(f"{server.url}/v1/jobs/{job_id}").status_code == 200


def _chunk(size: int) -> bytes:
    return f"{size:x}\r\n".encode() + b"x" * size + b"\r\n"


@pytest.mark.parametrize(
    ("path", "media", "first"),
    [
        ("/v1/jobs", "application/json", b'{"name": "'),
        (
            "/v1/datasets",
            "multipart/form-data; boundary=b",
            b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.csv"\r\n\r\n',
        ),
    ],
)
def test_a_body_that_never_ends_is_refused_while_it_arrives(
    server: Server, services: Services, tmp_path: Path, path: str, media: str, first: bytes
):
    before = row_counts(services)
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(
            f"POST {path} HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: {media}\r\n"
            "Transfer-Encoding: chunked\r\n\r\n".encode()
        )
        connection.sendall(f"{len(first):x}\r\n".encode() + first + b"\r\n")
        with contextlib.suppress(ConnectionError):
            # A little over the limits; the body's last chunk is never sent.
            for _ in range(40):
                connection.sendall(_chunk(2**15))
        answer = b""
        with contextlib.suppress(ConnectionError):
            while piece := connection.recv(65536):
                answer += piece
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"application/problem+json" in answer
    assert row_counts(services) == before
    folder = tmp_path / "uploads"
    assert not folder.exists() or list(folder.iterdir()) == []


def test_an_upload_that_breaks_off_leaves_nothing_behind(server: Server, services: Services, tmp_path: Path):
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(
            f"POST /v1/datasets HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: multipart/form-data; boundary=b\r\n"
            "Content-Length: 500000\r\n\r\n".encode()
        )
        connection.sendall(b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n' + b"x" * 1000)
        deadline = time.monotonic() + 20
        while not list((tmp_path / "uploads").glob("upload-*")):
            assert time.monotonic() < deadline
    while list((tmp_path / "uploads").glob("upload-*")):
        assert time.monotonic() < deadline
    assert httpx2.get(f"{server.url}/healthz").status_code == 200
    assert server.terminate() == 0
    assert "Traceback" not in server.log.read_text()


def test_every_line_of_the_log_is_json_with_the_request(server: Server):
    httpx2.get(f"{server.url}/v1/jobs/job_nothing", headers={"X-Request-ID": "my-request"})
    assert server.terminate() == 0
    lines = [json.loads(line) for line in server.log.read_text().splitlines()]
    (line,) = [line for line in lines if line.get("request_id") == "my-request"]
    assert (line["status"], line["route"], line["method"]) == (404, "/v1/jobs/{job_id}", "GET")
    assert line["duration_ms"] > 0
    assert line["level"] == "INFO"


def test_a_public_address_without_keys_is_refused(tmp_path: Path):
    settings = Settings(data_dir=tmp_path, queue=QueueKind.DATABASE, host="0.0.0.0", auth=AuthKind.OFF)
    with pytest.raises(Exposed, match="HYPERDIAL_AUTH=required"):
        serve(settings)
    with socket.create_server(("0.0.0.0", 0)) as sock:
        settings = Settings(data_dir=tmp_path, queue=QueueKind.DATABASE, host="127.0.0.1")
        with pytest.raises(Exposed):
            serve(settings, sock=sock)


def test_a_listening_socket_can_be_handed_over(services: Services, tmp_path: Path):
    program = (
        "import socket, sys; from service.settings import Settings; from service.api.server import serve; "
        "serve(Settings(), sock=socket.socket(fileno=int(sys.argv[1])))"
    )
    with socket.create_server(("127.0.0.1", 0)) as sock:
        url = f"http://127.0.0.1:{sock.getsockname()[1]}"
        process = subprocess.Popen(
            [sys.executable, "-c", program, str(sock.fileno())],
            pass_fds=[sock.fileno()],
            env={
                "HYPERDIAL_DATA_DIR": str(tmp_path),
                "HYPERDIAL_DATABASE_URL": services.settings.database,
                "HYPERDIAL_QUEUE": "database",
                "PYTHONPATH": os.pathsep.join(sys.path),
            },
            stderr=subprocess.DEVNULL,
        )
        try:
            assert httpx2.get(f"{url}/healthz", timeout=30).status_code == 200
            process.terminate()
            assert process.wait(20) == 0
        finally:
            process.kill()
            process.wait()
