"""JSON bodies: read strictly, validated once, and refused with the places of all that is wrong."""

import json
from collections.abc import Sequence
from email.message import Message
from typing import Annotated, Final, NoReturn, TypeVar

from fastapi import Depends
from pydantic import BaseModel, JsonValue, ValidationError
from starlette.requests import Request

from service.api.faults import body_faults
from service.api.refusals import EmptyBody, InvalidRequest, MalformedBody, UnsupportedMediaType

Model = TypeVar("Model", bound=BaseModel)

_SHOWN_NAME: Final = 64


async def _json_body(request: Request) -> bytes:
    header = request.headers.get("content-type")
    if header is not None or request.headers.get("content-length", "0") != "0":
        message = Message()
        message["content-type"] = header or "application/octet-stream"
        subtype = message.get_content_subtype()
        if message.get_content_maintype() != "application" or not (subtype == "json" or subtype.endswith("+json")):
            # Also what keeps pages of other sites from posting here: a form cannot have this content type.
            raise UnsupportedMediaType
    return await request.body()


JsonBody = Annotated[bytes, Depends(_json_body)]
"""The body of a request that says that it is JSON, not yet read."""


def parse(model: type[Model], body: bytes) -> Model:
    """Read a body as `model`.

    NaN, infinities and numbers beyond the range of a double get through to the model, which refuses them and
    knows where they are.

    Raises:
        EmptyBody, MalformedBody: it is no JSON.
        InvalidRequest: it is JSON, and not what `model` takes.
    """
    value = read_json(body)
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise InvalidRequest(body_faults(error, model)) from error


def read_json(body: bytes) -> JsonValue:
    """The value of a JSON text after RFC 8259, with unique names (RFC 7493, 2.3).

    Raises:
        EmptyBody, MalformedBody: it is no such text.
    """
    if not body.strip():
        raise EmptyBody
    try:
        value: JsonValue = json.loads(body.decode("utf-8"), object_pairs_hook=_unique)
    except UnicodeDecodeError as error:
        raise MalformedBody(f"the body is not UTF-8 at byte {error.start}") from error
    except json.JSONDecodeError as error:
        raise MalformedBody(f"not JSON at line {error.lineno}, column {error.colno}: {error.msg}") from error
    except RecursionError as error:
        raise MalformedBody("the body is nested too deeply") from error
    except ValueError as error:  # Python refuses integers of more than 4,300 digits
        raise MalformedBody("a number in the body has too many digits") from error
    return value


def _unique(pairs: Sequence[tuple[str, JsonValue]]) -> dict[str, JsonValue]:
    members = dict(pairs)
    if len(members) != len(pairs):
        _refuse_doubles([name for name, _ in pairs])
    return members


def _refuse_doubles(names: Sequence[str]) -> NoReturn:
    double = next(name for name in names if names.count(name) > 1)
    named = f", {double!r}," if double.isidentifier() and len(double) <= _SHOWN_NAME else ""
    raise MalformedBody(f"a name{named} occurs twice in one object: which value is meant?")
