"""HEAD: what GET would be answered with, without the content (RFC 9110, 9.3.2)."""

from typing import Final, final

import anyio
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_NOTHING: Final[Message] = {"type": "http.response.body", "body": b"", "more_body": False}


@final
class Head:
    """Answers HEAD by the endpoint for GET: every GET path takes it, with the same checks and the same headers."""

    def __init__(self, app: ASGIApp) -> None:
        """Wrap `app`, which sees a GET."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return
        is_answered = False
        # A file, a trajectory or a stream of events would otherwise be read to its end for nobody.
        with anyio.CancelScope() as answering:

            async def send_head(message: Message) -> None:
                nonlocal is_answered
                if message["type"] != "http.response.body":
                    await send(message)
                    return
                if not is_answered:
                    is_answered = True
                    await send(_NOTHING)
                if message.get("more_body", False):
                    answering.cancel()

            await self._app({**scope, "method": "GET"}, receive, send_head)
