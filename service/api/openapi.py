"""The OpenAPI document: what FastAPI writes by itself, with our problems and bodies put in."""

from collections.abc import Iterator, Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final, cast

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from pydantic import JsonValue, TypeAdapter
from pydantic.json_schema import JsonSchemaMode

from service.api.problems import MEDIA_TYPE, TYPES, Problem
from service.version import version

# The type of FastAPI's own parameters `responses` and `openapi_extra`.
Fragment = dict[str, Any]
Responses = dict[int | str, Fragment]

_SCHEMAS: Final = "#/components/schemas/"
_RETRIED: Final = frozenset(kind.status for kind in TYPES.values() if kind.retry_seconds is not None)

TAGS: Final = [
    {"name": "jobs", "description": "Tuning jobs: submit, find, watch and steer them."},
    {"name": "trajectories", "description": "Every step of the way, as JSON, NDJSON, CSV, Parquet or as it happens."},
    {"name": "files", "description": "What a job made."},
    {"name": "datasets", "description": "Data to learn from: uploaded, or shipped with the service."},
    {"name": "catalogue", "description": "What can be learned, and with what."},
    {"name": "workers", "description": "Who is alive, and what it does."},
    {"name": "health", "description": "For operators and their machines."},
]

_RATE_HEADERS: Final = {
    "RateLimit-Policy": {
        "schema": {"type": "string", "examples": ['"default";q=1200;w=60']},
        "description": "`q` requests in `w` seconds. On every answer where rates are limited.",
    },
    "RateLimit": {
        "schema": {"type": "string", "examples": ['"default";r=0;t=60']},
        "description": "`r` requests are left; all of them again after `t` seconds. On every answer likewise.",
    },
}

_DESCRIPTION: Final = """\
Learns regularization strengths instead of searching for them.

Every error is `application/problem+json` (RFC 9457). Times are RFC 3339 in UTC. Numbers that JSON has no word for
travel as `"NaN"`, `"Infinity"` and `"-Infinity"`. Names and shapes only ever grow: ignore fields that you do not know.
"""


def problems(*statuses: int, is_open: bool = False) -> Responses:
    """Declare that an endpoint may refuse with these and with what all do; one that `is_open` asks for no key."""
    anywhere = (422,) if is_open else (401, 403, 422, 429, 503)
    return {status: _problem(status) for status in sorted({*statuses, *anywhere})}


def returns(view: type[object], description: str | None = None, *, headers: Fragment | None = None) -> Fragment:
    """Declare an answer that is a view of `service.api.models`, which the endpoint writes by itself.

    FastAPI's `response_model` would build a validator for each endpoint when the program starts.
    """
    content = {"application/json": {"schema": {"$ref": _SCHEMAS + view.__name__}}}
    says = description or view.__doc__
    return {"description": says, "content": content} | ({"headers": headers} if headers else {})


def one_of(description: str, *views: type[object]) -> Fragment:
    """Declare an answer that is one of several views."""
    schema = {"anyOf": [{"$ref": _SCHEMAS + view.__name__} for view in views]}
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def header(description: str) -> Fragment:
    """Declare a header of an answer."""
    return {"schema": {"type": "string"}, "description": description}


def json_request(model: type[object], *, examples: Mapping[str, JsonValue] | None = None) -> Fragment:
    """Declare a JSON body that the endpoint reads by itself."""
    content: Fragment = {"schema": {"$ref": _SCHEMAS + model.__name__}}
    if examples:
        content["examples"] = {name: {"value": value} for name, value in examples.items()}
    return {"requestBody": {"required": True, "content": {"application/json": content}}}


def binary(description: str, *media_types: str) -> Fragment:
    """Declare an answer that is a file."""
    return {"description": description, "content": {media: {"schema": {"type": "string"}} for media in media_types}}


def document(app: FastAPI, *, bodies: Sequence[type[object]], views: Sequence[type[object]]) -> Fragment:
    """Write the OpenAPI document of `app`.

    Args:
        app: with all its routes.
        bodies: the models that `json_request` names.
        views: the values that `returns` names.
    """
    found = get_openapi(
        title="hyperdial",
        version=version(),
        summary="Learn regularization strengths instead of searching for them.",
        description=_DESCRIPTION,
        routes=app.routes,
        tags=cast("list[dict[str, Any]]", TAGS),
    )
    schemas: Fragment = found.setdefault("components", {}).setdefault("schemas", {})
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    schemas |= _schemas((*bodies, Problem), mode="validation") | _schemas(views, mode="serialization")
    found["components"]["schemas"] = dict(sorted(schemas.items()))
    for operation in _operations(found):
        for status, response in operation["responses"].items():
            if status.isdigit() and int(status) in _RETRIED and MEDIA_TYPE in response.get("content", {}):
                response["headers"] = {"Retry-After": {"schema": {"type": "integer"}, "description": "Seconds."}}
                if status == "429":
                    response["headers"] |= _RATE_HEADERS
    return found


def operation_id(route: APIRoute) -> str:
    """The name of the function that answers: unique, and what generated clients call it."""
    return route.name


def _schemas(kinds: Sequence[type[object]], *, mode: JsonSchemaMode) -> Fragment:
    inputs = [(kind.__name__, mode, TypeAdapter(kind)) for kind in kinds]
    _, definitions = TypeAdapter.json_schemas(inputs, ref_template=_SCHEMAS + "{model}")
    found: Fragment = definitions.get("$defs", {})
    return found


def _operations(found: Fragment) -> Iterator[Fragment]:
    for methods in found["paths"].values():
        yield from methods.values()


def _problem(status: int) -> Fragment:
    kinds = [kind for kind in TYPES.values() if kind.status == status]
    titles = "; ".join(f"{kind.title} (`{kind.uri}`)" for kind in kinds) or HTTPStatus(status).phrase
    return {"description": titles, "content": {MEDIA_TYPE: {"schema": {"$ref": _SCHEMAS + "Problem"}}}}
