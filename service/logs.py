"""Logging as JSON lines, each with the request and the job that it belongs to."""

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final, TextIO

from pythonjsonlogger.core import RESERVED_ATTRS
from pythonjsonlogger.json import JsonFormatter

request_id: Final[ContextVar[str | None]] = ContextVar("request_id", default=None)
"""The HTTP request that is being answered; threads that answer it inherit it."""

job_id: Final[ContextVar[str | None]] = ContextVar("job_id", default=None)
"""The job that is being worked on."""

_RENAMED: Final = {"asctime": "at", "levelname": "level", "name": "logger"}
_QUIET: Final = ("httpx", "httpcore", "rq.worker", "alembic")
"""Libraries that report every call at info."""


class Context(logging.Filter):
    """Adds `request_id` and `job_id` to every record that does not say them itself."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Complete `record`; never drops one."""
        for name, variable in (("request_id", request_id), ("job_id", job_id)):
            value = variable.get()
            if value is not None and not hasattr(record, name):
                setattr(record, name, value)
        return True


def configure(level: str, *, stream: TextIO | None = None) -> None:
    """Send all logging of this process to `stream` (none: standard error), one JSON object a line.

    Called by entry points, once; a second call replaces the first.

    Raises:
        ValueError: `level` is no level of `logging`.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    formatter = JsonFormatter(
        "{asctime}{levelname}{name}{message}",
        style="{",
        rename_fields=_RENAMED,
        reserved_attrs=[*RESERVED_ATTRS, "color_message"],  # uvicorn's, for terminals
        json_ensure_ascii=False,
    )
    formatter.default_time_format = "%Y-%m-%dT%H:%M:%S"
    formatter.default_msec_format = "%s.%03dZ"
    formatter.converter = time.gmtime
    handler.setFormatter(formatter)
    handler.addFilter(Context())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    logging.captureWarnings(capture=True)
    for name in _QUIET:
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))


@contextmanager
def about_job(identifier: str) -> Iterator[None]:
    """Say `job_id` in every record that is logged inside."""
    token = job_id.set(identifier)
    try:
        yield
    finally:
        job_id.reset(token)
