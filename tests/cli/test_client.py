"""The client against real sockets: a server that breaks off, refuses, fails, or is not there."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from service.cli.client import Client, Event, parse_events
from service.cli.exits import CommandError, ExitCode

Answer = Callable[[BaseHTTPRequestHandler], None]


@contextmanager
def serving(answer: Answer) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer(self)

        do_POST = do_GET  # noqa: N815  named by http.server

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def reply(handler: BaseHTTPRequestHandler, status: int, body: bytes, *, kind: str, **headers: str) -> None:
    handler.send_response(status)
    handler.send_header("Content-Type", kind)
    handler.send_header("Content-Length", str(len(body)))
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(body)


def test_events_are_read_as_the_standard_says() -> None:
    lines = [
        ": ping",
        "id: 7",
        "event: point",
        "data: {",
        "data:}",
        "",
        "data: later",
        "",
        "event: lonely",
        "",
        "data: cut",
    ]
    assert list(parse_events(iter(lines))) == [Event("7", "point", "{\n}"), Event("7", "message", "later")]


def test_a_broken_stream_is_resumed_without_loss_or_repeat() -> None:
    asked: list[str | None] = []

    def answer(handler: BaseHTTPRequestHandler) -> None:
        last = handler.headers.get("Last-Event-ID")
        asked.append(last)
        first = int(last or 0) + 1
        if len(asked) == 2:  # a server that is being restarted
            reply(handler, 503, b"{}", kind="application/problem+json", Retry_After="0")
            return
        handler.send_response(200)
        handler.send_header("Content-Type", "text/event-stream")
        handler.end_headers()  # without a length: the end of the connection ends it
        events = [f"id: {number}\nevent: point\ndata: {number}\n\n" for number in range(first, first + 2)]
        handler.wfile.write("".join(events).encode())
        if first > 2:
            handler.wfile.write(b"id: 5\nevent: end\ndata: {}\n\n")
        else:
            handler.wfile.write(b"id: 3\nevent: point\nda")  # half an event is none

    with serving(answer) as url, Client(url, key=None) as client:
        events = list(client.events("job_x"))
    assert [event.data for event in events] == ["1", "2", "3", "4", "{}"]
    assert asked == [None, "2", "2"]


def test_a_stream_of_an_ended_job_with_nothing_left_is_empty() -> None:
    with serving(lambda handler: reply(handler, 204, b"", kind="text/plain")) as url, Client(url, key=None) as client:
        assert list(client.events("job_x", after="9")) == []


def test_a_refusal_names_what_is_wrong_and_where() -> None:
    problem = {
        "title": "The specification is not valid",
        "status": 422,
        "detail": "1 error",
        "errors": [{"pointer": "/seed", "detail": "Input should be a valid integer"}],
    }
    body = json.dumps(problem).encode()
    with serving(lambda handler: reply(handler, 422, body, kind="application/problem+json")) as url:  # noqa: SIM117
        with Client(url, key=None) as client, pytest.raises(CommandError) as caught:
            client.call("POST", "/v1/jobs", body={"seed": "1"})
    assert caught.value.code is ExitCode.REFUSED
    assert "The specification is not valid" in caught.value.message
    assert caught.value.details == (("/seed", "Input should be a valid integer"),)


def test_a_missing_key_is_told_apart_from_other_refusals() -> None:
    with serving(lambda handler: reply(handler, 401, b"no", kind="text/plain")) as url, Client(url, key=None) as client:  # noqa: SIM117
        with pytest.raises(CommandError) as caught:
            client.job("job_x")
    assert caught.value.code is ExitCode.REFUSED
    assert "HYPERDIAL_API_KEY" in (caught.value.hint or "")


def test_a_failing_server_is_not_a_refusal() -> None:
    with serving(lambda handler: reply(handler, 502, b"<html>", kind="text/html")) as url:  # noqa: SIM117
        with Client(url, key=None) as client, pytest.raises(CommandError) as caught:
            client.job("job_x")
    assert caught.value.code is ExitCode.UNREACHABLE


def test_no_server_at_all_says_how_to_start_one() -> None:
    with serving(lambda handler: None) as url:
        pass
    with Client(url, key=None) as client, pytest.raises(CommandError) as caught:
        client.job("job_x")
    assert caught.value.code is ExitCode.UNREACHABLE
    assert "hyperdial up" in (caught.value.hint or "")


def test_an_address_that_is_none_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(CommandError) as caught:
        Client("localhost:8000", key=None)
    assert caught.value.code is ExitCode.USAGE


def test_a_submission_is_tried_again_with_the_same_key() -> None:
    keys: list[str | None] = []

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.rfile.read(int(handler.headers["Content-Length"]))
        keys.append(handler.headers.get("Idempotency-Key"))
        if len(keys) == 1:
            handler.close_connection = True  # the answer is lost
            return
        reply(handler, 202, b'{"id": "job_x", "status": "queued"}', kind="application/json")

    with serving(answer) as url, Client(url, key=None) as client:
        assert client.submit({"data": {}}).id == "job_x"
    assert keys[0] is not None
    assert keys == [keys[0], keys[0]]


def test_the_key_is_sent_as_a_bearer_token() -> None:
    seen: list[str | None] = []

    def answer(handler: BaseHTTPRequestHandler) -> None:
        seen.append(handler.headers.get("Authorization"))
        reply(handler, 200, b'{"id": "job_x", "status": "queued"}', kind="application/json")

    with serving(answer) as url, Client(url, key="hd_abc") as client:
        client.job("job_x")
    assert seen == ["Bearer hd_abc"]


def test_a_request_that_comes_too_early_waits_and_is_sent_again() -> None:
    asked: list[int] = []

    def answer(handler: BaseHTTPRequestHandler) -> None:
        asked.append(1)
        if len(asked) < 3:
            reply(handler, 429, b"{}", kind="application/problem+json", Retry_After="0")
        else:
            reply(handler, 200, b"[]", kind="application/json")

    with serving(answer) as url, Client(url, key=None) as client:
        assert client.call("GET", "/v1/jobs").content == b"[]"
    assert len(asked) == 3


def test_nobody_waits_long_for_a_rate_limit_in_silence() -> None:
    with (
        serving(lambda handler: reply(handler, 429, b"{}", kind="application/problem+json", Retry_After="59")) as url,
        Client(url, key=None) as client,
        pytest.raises(CommandError) as caught,
    ):
        client.call("GET", "/v1/jobs")
    assert caught.value.hint == "try again in 59 s"
