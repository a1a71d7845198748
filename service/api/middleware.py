"""What happens to every request: an id, a limit on its body, headers of caution, a measurement, a line of log."""

import logging
import re
import time
from collections.abc import Callable
from typing import Final, final

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service import logs
from service.api.caution import caution
from service.api.problems import refused
from service.api.refusals import BodyTooLarge
from service.api.requests import start_trace
from service.identifiers import new_id
from service.metrics import Metrics

log = logging.getLogger(__name__)

_SANE_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}", re.ASCII)


@final
class Observed:
    """Gives a request its id, and says in metrics and log how it was answered."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics) -> None:
        """Wrap `app`."""
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        trace = start_trace(scope, given if _SANE_ID.fullmatch(given) else new_id("req"))
        token = logs.request_id.set(trace.request_id)
        began = time.perf_counter()
        answered: float | None = None
        status = 500

        async def observed_send(message: Message) -> None:
            nonlocal status, answered
            if message["type"] == "http.response.start":
                status, answered = message["status"], time.perf_counter()
                headers = MutableHeaders(scope=message)
                headers["X-Request-ID"] = trace.request_id
                headers.update(trace.headers)
                caution(headers)
            await send(message)

        try:
            await self._app(scope, receive, observed_send)
        finally:
            ended = time.perf_counter()
            method = scope["method"]
            if not trace.is_awaited:
                self._metrics.observe(
                    method=method if method.isalpha() and len(method) <= 7 else "other",
                    route=trace.route,
                    status=status,
                    seconds=(answered or ended) - began,
                )
            log.log(
                logging.DEBUG if trace.route in _ROUTINE else logging.INFO,
                "a request was answered",
                extra={
                    "method": method,
                    "path": scope["path"],
                    "route": trace.route,
                    "status": status,
                    "duration_ms": round((ended - began) * 1000, 3),
                    "key_id": trace.key_id,
                },
            )
            logs.request_id.reset(token)


_ROUTINE: Final = frozenset({"/healthz", "/readyz", "/metrics"})


@final
class BodyLimit:
    """Stops reading a body when it grows over its limit, before anything of it is kept."""

    def __init__(self, app: ASGIApp, *, limit_of: Callable[[Scope], int]) -> None:
        """Wrap `app`; `limit_of` gives the limit in bytes of a request."""
        self._app = app
        self._limit_of = limit_of

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limit = self._limit_of(scope)
        announced = Headers(scope=scope).get("content-length", "0")
        if announced.isascii() and announced.isdigit() and int(announced[:20]) > limit:
            await refused(Request(scope), BodyTooLarge(limit))(scope, receive, send)
            return
        received = 0

        async def limited_receive() -> Message:
            nonlocal received
            message = await receive()
            if message["type"] == "http.request":
                received += len(message.get("body", b""))
                if received > limit:
                    raise BodyTooLarge(limit)
            return message

        await self._app(scope, limited_receive, send)
