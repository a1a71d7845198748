"""Logging as JSON lines."""

import io
import json
import logging
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

from service import logs


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    before = (root.level, list(root.handlers))
    text = io.StringIO()
    logs.configure("info", stream=text)
    yield text
    root.setLevel(before[0])
    root.handlers[:] = before[1]
    logging.captureWarnings(capture=False)


def test_a_line_is_an_object_with_its_context(stream: io.StringIO):
    token = logs.request_id.set("req_1")
    with logs.about_job("job_1"):
        logging.getLogger("a.b").info("a thing\nhappened", extra={"step": 3})
    logs.request_id.reset(token)
    logging.getLogger("a.b").debug("too small")
    (line,) = [json.loads(text) for text in stream.getvalue().splitlines()]
    at = datetime.fromisoformat(line.pop("at"))
    assert abs((datetime.now(UTC) - at).total_seconds()) < 60
    assert line == {
        "level": "INFO",
        "logger": "a.b",
        "message": "a thing\nhappened",
        "step": 3,
        "request_id": "req_1",
        "job_id": "job_1",
    }


def test_what_is_said_of_a_job_expressly_counts(stream: io.StringIO):
    with logs.about_job("job_1"):
        logging.getLogger("a").info("x", extra={"job_id": "job_2"})
    logging.getLogger("a").info("y")
    first, second = [json.loads(text) for text in stream.getvalue().splitlines()]
    assert first["job_id"] == "job_2"
    assert "job_id" not in second


def test_configuring_again_replaces_and_a_wrong_level_is_refused(stream: io.StringIO):
    other = io.StringIO()
    logs.configure("WARNING", stream=other)
    logging.getLogger("a").info("not this")
    logging.getLogger("a").warning("this")
    assert stream.getvalue() == ""
    assert other.getvalue().count("\n") == 1
    with pytest.raises(ValueError, match="LOUD"):
        logs.configure("loud")
