"""From pydantic's errors to what a client can act on: a JSON Pointer, and what would be accepted.

Pydantic's places name members of unions (`method/implicit/solver`), which the client did not write, and some
of its messages repeat what was sent. Both are taken out here, by walking the model along the place.
"""

import difflib
import re
from collections.abc import Mapping, Sequence
from types import NoneType, UnionType
from typing import Annotated, Final, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from service.api.refusals import Fault
from service.catalogue import kind_of, members

MOST: Final = 50
"""Faults that are reported at once."""

_LONGEST_NAME: Final = 200
_NO_DEFAULT: Final = "default_factory_not_called"
_QUOTED: Final = re.compile(r"'([^']*)'")

Place = tuple[int | str, ...]


def body_faults(error: ValidationError, model: type[BaseModel]) -> list[Fault]:
    """What is wrong with a body that was validated as `model`.

    Args:
        error: what pydantic found.
        model: what the body should have been.
    """
    found = [
        each
        for each in error.errors(include_url=False, include_input=False)
        if each["type"] != _NO_DEFAULT  # only says that something else is wrong
    ]
    return [_fault(str(each["type"]), each["msg"], each["loc"], each.get("ctx", {}), model) for each in found[:MOST]]


def parameter_faults(errors: Sequence[Mapping[str, object]]) -> list[Fault]:
    """What is wrong with query parameters and headers."""
    return [_parameter_fault(error) for error in errors[:MOST]]


def _parameter_fault(error: Mapping[str, object]) -> Fault:
    place = error["loc"]
    name = str(place[1]) if isinstance(place, tuple | list) and len(place) > 1 else ""
    if error["type"] == "missing":
        return Fault("is required", parameter=name)
    return Fault(_plain(str(error["msg"])), parameter=name)


def pointer(segments: Sequence[int | str]) -> str:
    """A JSON Pointer (RFC 6901) in text that can be sent: what is not Unicode is escaped, what is long is cut."""
    return "".join("/" + _sendable(str(segment)).replace("~", "~0").replace("/", "~1") for segment in segments)


def _sendable(name: str) -> str:
    name = name if len(name) <= _LONGEST_NAME else name[:_LONGEST_NAME] + "…"
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def _fault(kind: str, message: str, place: Place, context: Mapping[str, object], model: type[BaseModel]) -> Fault:
    segments, holder = _walk(place, model)
    match kind:
        case "extra_forbidden":
            return Fault(_unknown_field(str(place[-1]), holder), pointer(segments))
        case "missing":
            return Fault("is required", pointer(segments))
        case "union_tag_invalid":
            known = _QUOTED.findall(str(context.get("expected_tags", "")))
            meant = _closest(str(context.get("tag", "")), known)
            return Fault(f"must be one of {_listed(known)}{meant}", pointer([*segments, "kind"]))
        case "union_tag_not_found":
            known = [kind_of(member) or "" for member in members(holder)]
            return Fault(f"is required: one of {_listed(known)}", pointer([*segments, "kind"]))
        case "model_type" | "model_attributes_type" | "dict_type":
            return Fault("must be a JSON object", pointer(segments))
        case _:
            below = str(context.get("field", "")).split("/") if "field" in context else []
            return Fault(_plain(message), pointer([*segments, *below]))


def _walk(place: Place, model: type[BaseModel]) -> tuple[list[int | str], object]:
    """Return the segments of `place` that the client wrote, and the type at, or holding, the last of them."""
    segments: list[int | str] = []
    here: object = model
    for position, segment in enumerate(place):
        here = _bare(here)
        options = _options(here)
        if len(options) > 1:
            here = next((option for option in options if _is_tagged(option, segment)), None)
            continue
        is_last = position == len(place) - 1
        if isinstance(here, type) and issubclass(here, BaseModel):
            segments.append(segment)
            field = here.model_fields.get(str(segment))
            if field is not None:
                here = field.annotation
            elif not is_last:
                here = None
        elif segment != "[key]":
            segments.append(segment)
            arguments = get_args(here)
            here = arguments[-1] if arguments else None
    return segments, _bare(here)


def _is_tagged(option: object, segment: int | str) -> bool:
    return isinstance(option, type) and issubclass(option, BaseModel) and kind_of(option) == segment


def _bare(annotation: object) -> object:
    """`annotation` without what is wrapped around it: constraints, and the choice of null."""
    while True:
        if get_origin(annotation) is Annotated:
            annotation = get_args(annotation)[0]
            continue
        options = _options(annotation)
        if len(options) == 1 and options[0] is not annotation:
            (annotation,) = options
            continue
        return annotation


def _options(annotation: object) -> tuple[object, ...]:
    if get_origin(annotation) not in (Union, UnionType):
        return ()
    return tuple(option for option in get_args(annotation) if option is not NoneType)


def _unknown_field(name: str, holder: object) -> str:
    if not (isinstance(holder, type) and issubclass(holder, BaseModel)):
        return "there is no such field"
    known = sorted(holder.model_fields)
    return f"there is no such field{_closest(name, known)}; there are {_listed(known)}"


def _closest(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name[:_LONGEST_NAME], known, n=1)
    return f": did you mean {close[0]!r}?" if close else ""


def _listed(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names)


def _plain(message: str) -> str:
    for prefix in ("Value error, ", "Input "):
        message = message.removeprefix(prefix)
    return message[:1].lower() + message[1:]
