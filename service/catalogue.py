"""What can be learned, and with what: read off the specification, so that it cannot disagree with it."""

import inspect
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Final, Union, get_args, get_origin

from pydantic import BaseModel, JsonValue

from service.spec.capabilities import CAPABILITIES
from service.spec.methods import MethodSpec
from service.spec.models import Loss, ModelSpec
from service.spec.regularizers import RegularizerSpec

JsonSchema = Mapping[str, JsonValue]

_SOURCE: Final = re.compile(r"\s*\bSources?:\s*(?P<source>.+)\Z", re.DOTALL)
_NAMED: Final = re.compile(r"`(?P<name>\w+)`:\s*(?P<text>.*?)(?=\s*`\w+`:|\Z)", re.DOTALL)


@dataclass(frozen=True)
class Entry:
    """Something that a specification may name by its `kind`."""

    name: str
    description: str
    """One paragraph."""
    source: str | None
    """The paper."""
    schema: JsonSchema
    """JSON Schema of its part of the specification; `{"const": name}` where the name is all."""


@dataclass(frozen=True)
class MethodEntry:
    """A method, and what it can learn."""

    entry: Entry
    models: Mapping[str, tuple[str, ...]]
    """Model → regularizers whose strengths this method can learn on it, alone or together."""


@cache
def methods() -> tuple[MethodEntry, ...]:
    """Every method, by name."""
    found = [
        MethodEntry(
            entry,
            {model: tuple(sorted(kinds)) for model, kinds in sorted(CAPABILITIES.get(entry.name, {}).items()) if kinds},
        )
        for entry in _entries(MethodSpec)
    ]
    return tuple(found)


@cache
def models() -> tuple[Entry, ...]:
    """Every model, by name."""
    return _entries(ModelSpec)


@cache
def regularizers() -> tuple[Entry, ...]:
    """Every regularizer, by name."""
    return _entries(RegularizerSpec)


@cache
def losses() -> tuple[Entry, ...]:
    """Every loss, by name."""
    text = _paragraph(Loss.__doc__)
    said = {match["name"]: match["text"] for match in _NAMED.finditer(text)}
    general = _NAMED.sub("", text).strip()
    return tuple(
        Entry(
            name=loss.value,
            description=" ".join(part for part in (said.get(loss.value), general) if part),
            source=None,
            schema={"const": loss.value},
        )
        for loss in sorted(Loss)
    )


def able_methods(*, model: str | None = None, regularizer: str | None = None) -> tuple[str, ...]:
    """Names of the methods that can learn `regularizer` (none: any) of `model` (none: any)."""
    return tuple(
        method.entry.name
        for method in methods()
        if any(
            model in (None, able) and (regularizer is None or regularizer in kinds)
            for able, kinds in method.models.items()
        )
    )


def members(spec: object) -> tuple[type[BaseModel], ...]:
    """The models of a union of the specification, or the one model that it still is."""
    origin = get_origin(spec)
    if origin is Annotated:
        return members(get_args(spec)[0])
    if origin in (Union, UnionType):
        return tuple(model for part in get_args(spec) if part is not NoneType for model in members(part))
    if isinstance(spec, type) and issubclass(spec, BaseModel):
        return (spec,)
    raise TypeError("a union of models is expected")


def kind_of(model: type[BaseModel]) -> str | None:
    """The value of the model's `kind`, by which a union tells its members apart."""
    field = model.model_fields.get("kind")
    if field is None:
        return None
    (kind,) = get_args(field.annotation) or (field.default,)
    return str(kind.value if isinstance(kind, Enum) else kind)


def _entries(spec: object) -> tuple[Entry, ...]:
    return tuple(sorted((_entry(model) for model in members(spec)), key=lambda entry: entry.name))


def _entry(model: type[BaseModel]) -> Entry:
    text = _paragraph(model.__doc__)
    match = _SOURCE.search(text)
    stated = getattr(model, "source", None)
    source = stated if isinstance(stated, str) else match["source"] if match else None
    return Entry(
        name=kind_of(model) or model.__name__,
        description=_SOURCE.sub("", text),
        source=source,
        schema=model.model_json_schema(),
    )


def _paragraph(docstring: str | None) -> str:
    return " ".join(_words(inspect.cleandoc(docstring or "").splitlines()))


def _words(lines: Iterable[str]) -> Iterable[str]:
    for line in lines:
        yield from line.split()
