"""How values become answers."""

from collections.abc import Mapping
from typing import Any, Final

from pydantic import TypeAdapter
from starlette.responses import Response

JSON: Final = "application/json"

_ADAPTERS: Final[dict[type[object], TypeAdapter[Any]]] = {}
"""Writers by kind of view, made when a view is first written."""


def answer(view: object, *, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """The answer that carries a view of `service.api.models`, written once and not validated again."""
    return Response(to_json(view), status, headers, JSON)


def to_json(view: object) -> bytes:
    """A view as JSON."""
    kind = type(view)
    adapter = _ADAPTERS.get(kind)
    if adapter is None:
        adapter = _ADAPTERS.setdefault(kind, TypeAdapter(kind))
    return adapter.dump_json(view)
