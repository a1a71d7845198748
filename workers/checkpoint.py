"""States ↔ bytes: tensors as safetensors, all else as JSON in its header. No pickle, nothing rounded.

A state is a frozen dataclass of tensors, numbers, text, None, enumerations, tuples, mappings with text keys, and
such dataclasses. Each value is written with its kind and read back under the type that its field declares, so
that a file can never make an object that the state's class did not ask for.
"""

import dataclasses
import hashlib
import json
import types
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from pydantic import JsonValue
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from service.records import JsonObject

_FORMAT: Final = "hyperdial-checkpoint-1"

_CHANGEABLE: Final = frozenset({"name", "labels", "priority", "max_attempts"})
"""Fields of a specification that change nothing in a computation."""

S = TypeVar("S")


class CheckpointRefused(Exception):
    """The saved state cannot be gone on from."""


@dataclass(frozen=True)
class Seal:
    """What a checkpoint belongs to, and how the run stood."""

    spec_hash: str
    step: int
    status: str
    """Of the run after its last point: a run that has converged takes no further step when it is resumed."""
    threads: int
    """CPU threads of the run: sums round differently with another number."""
    device: str
    """`cpu` or `cuda`: where the run's tensors lay."""


def spec_hash(spec: JsonObject) -> str:
    """Return a hash of all that determines the computation of a job, as it is stored.

    The stored document is hashed, not a parsed one: it has all defaults written out, so a later version of the
    code with another default, or another field, does not change it.
    """
    fixed: dict[str, JsonValue] = {key: value for key, value in spec.items() if key not in _CHANGEABLE}
    budget = fixed.get("budget")
    if isinstance(budget, dict):
        fixed["budget"] = {key: value for key, value in budget.items() if not key.endswith("_seconds")}
    resources = fixed.pop("resources", None)  # a run may be taken up on another device
    if isinstance(resources, dict):
        fixed["precision"] = resources.get("precision")
    return hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()


def dump(state: object, seal: Seal) -> bytes:
    """Return `state` and its seal as the bytes of a safetensors file.

    Raises:
        TypeError: the state holds something that a checkpoint cannot.
    """
    tensors: dict[str, Tensor] = {}
    tree = _encode(state, "state", tensors)
    try:
        _decode(tree, type(state), tensors)  # a state that cannot be read back is found now, not after a crash
    except CheckpointRefused as error:
        raise TypeError(f"the fields of {type(state).__name__} do not hold what they declare: {error}") from error
    header = {
        "format": _FORMAT,
        "seal": json.dumps(dataclasses.asdict(seal)),
        "schema": schema(type(state)),
        "state": json.dumps(tree, allow_nan=False),
    }
    return save_tensors(tensors, metadata=header)


def load(data: bytes, state_type: type[S], *, spec_hash: str, device: str) -> tuple[S, Seal]:
    """Return the state in `data`, its tensors on `device`, and its seal.

    A run that moves from a GPU to the CPU takes all its tensors there, and back; tensors that lay on the CPU
    beside others on a GPU stay on the CPU.

    Raises:
        CheckpointRefused: the bytes are damaged, of another job, or of a version of the code whose state has
            other fields.
    """
    header, tensors = _open(data)
    if header.get("format") != _FORMAT:
        raise CheckpointRefused(f"its format is {header.get('format')!r}, not {_FORMAT!r}")
    try:
        seal = Seal(**json.loads(header["seal"]))
        tree = json.loads(header["state"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointRefused("its header is damaged") from error
    if seal.spec_hash != spec_hash:
        raise CheckpointRefused("it was saved for another specification")
    if header.get("schema") != schema(state_type):
        raise CheckpointRefused(f"it was saved by another version of the code: {state_type.__name__} has changed")
    moved = {
        name: tensor.to(device) if seal.device == "cpu" or name.startswith("device:") else tensor
        for name, tensor in tensors.items()
    }
    try:
        state = _decode(tree, state_type, moved)
    except (ValueError, TypeError) as error:
        raise CheckpointRefused("its values are damaged") from error
    if not isinstance(state, state_type):
        raise CheckpointRefused(f"it holds no {state_type.__name__}")
    return state, seal


def schema(cls: type) -> str:
    """Return a hash of a state's fields, by name and type, through all dataclasses in them."""
    seen: dict[str, JsonValue] = {}
    _describe(cls, seen)
    return hashlib.sha256(json.dumps(seen, sort_keys=True).encode()).hexdigest()


def _describe(hint: object, seen: dict[str, JsonValue]) -> str:
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        if hint.__qualname__ not in seen:
            seen[hint.__qualname__] = None  # for a class that contains itself
            fields: JsonValue = {name: _describe(type_, seen) for name, type_ in _fields(hint).items()}
            seen[hint.__qualname__] = fields
        return hint.__qualname__
    arguments = get_args(hint)
    if not arguments:
        return hint.__qualname__ if isinstance(hint, type) else repr(hint)
    parts = [_describe(argument, seen) for argument in arguments]
    if _is_union(hint):
        return "|".join(sorted(parts))
    return f"{get_origin(hint)}[{','.join(parts)}]"


def _open(data: bytes) -> tuple[dict[str, str], dict[str, Tensor]]:
    try:
        tensors = load_tensors(data)
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length]).get("__metadata__", {})
    except (SafetensorError, ValueError, KeyError, AttributeError) as error:
        raise CheckpointRefused("its bytes are damaged") from error
    return header, tensors


def _encode(value: object, path: str, tensors: dict[str, Tensor]) -> JsonValue:
    match value:
        case None | str() if not isinstance(value, Enum):
            return value
        case Enum():
            return {"enum": value.name}
        case bool():
            return value
        case int():
            return {"int": str(value)}  # of any size
        case float():
            return {"float": value.hex()}
        case Tensor():
            name = ("" if value.device.type == "cpu" else "device:") + path
            tensors[name] = value.detach().to("cpu", copy=True).contiguous()  # safetensors takes no shared memory
            return {"tensor": name}
        case tuple():
            return {"tuple": [_encode(item, f"{path}.{i}", tensors) for i, item in enumerate(value)]}
        case Mapping():
            return {"mapping": {str(key): _encode(item, f"{path}.{key}", tensors) for key, item in value.items()}}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields: JsonValue = {
            name: _encode(getattr(value, name), f"{path}.{name}", tensors) for name in _fields(type(value))
        }
        return {"dataclass": type(value).__qualname__, "fields": fields}
    raise TypeError(f"a checkpoint cannot hold a {type(value).__name__}, found at {path}")


def _decode(tree: JsonValue, hint: object, tensors: Mapping[str, Tensor]) -> object:
    for candidate in get_args(hint) if _is_union(hint) else (hint,):
        try:
            return _decode_as(tree, candidate, tensors)
        except _OtherType:
            continue
    raise CheckpointRefused(f"it holds another type than {hint}")


class _OtherType(Exception):
    """The tree was written from a value of another type than the one tried."""


def _decode_as(tree: JsonValue, hint: object, tensors: Mapping[str, Tensor]) -> object:
    origin = get_origin(hint) or hint
    if not isinstance(tree, dict):
        if type(tree) is origin or (origin is Literal and tree in get_args(hint)):
            return tree
        raise _OtherType
    match tree:
        case {"int": str(digits)} if origin is int:
            return int(digits)
        case {"float": str(digits)} if origin is float:
            return float.fromhex(digits)
        case {"tensor": str(name)} if origin is Tensor and name in tensors:
            return tensors[name]
        case {"enum": str(name)} if isinstance(origin, type) and issubclass(origin, Enum):
            if name in origin.__members__:
                return origin[name]
        case {"tuple": list(items)} if origin is tuple:
            hints = get_args(hint)
            if len(hints) == 2 and hints[1] is Ellipsis:
                hints = (hints[0],) * len(items)
            if len(hints) == len(items):
                return tuple(_decode(item, each, tensors) for item, each in zip(items, hints, strict=True))
        case {"mapping": dict(items)} if isinstance(origin, type) and issubclass(origin, Mapping):
            key_hint, value_hint = get_args(hint)
            if key_hint is str:
                return {key: _decode(item, value_hint, tensors) for key, item in items.items()}
        case {"dataclass": str(name), "fields": dict(items)} if isinstance(origin, type):
            if dataclasses.is_dataclass(origin) and origin.__qualname__ == name:
                hints_by_name = _fields(origin)
                if items.keys() == hints_by_name.keys():
                    made = {key: _decode(items[key], each, tensors) for key, each in hints_by_name.items()}
                    return origin(**made)
    raise _OtherType


def _fields(cls: type) -> dict[str, object]:
    hints = get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls) if field.init}


def _is_union(hint: object) -> bool:
    return get_origin(hint) in (Union, types.UnionType)
