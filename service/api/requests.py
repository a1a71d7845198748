"""What the HTTP layer remembers of a request while it is answered."""

from dataclasses import dataclass, field
from typing import Final

from starlette.requests import Request
from starlette.types import Scope

_KEY: Final = "hyperdial.trace"


@dataclass
class Trace:
    """Filled in along the way; read when the answer has gone out."""

    request_id: str
    route: str = "unmatched"
    """Template of the path, which is a bounded set of words."""
    is_awaited: bool = False
    """True when the answer is held back on purpose: a long poll or an event stream."""
    key_id: str | None = None
    headers: dict[str, str] = field(default_factory=dict)
    """Of the answer, whatever it will be."""


def start_trace(scope: Scope, request_id: str) -> Trace:
    """Attach a new trace to a request."""
    trace = Trace(request_id)
    scope[_KEY] = trace
    return trace


def trace_of(scope: Scope) -> Trace:
    """The trace of a request."""
    trace: Trace = scope[_KEY]
    return trace


async def note_route(request: Request) -> None:
    """Remember which route answers."""
    trace_of(request.scope).route = request.scope["route"].path
