"""Safetensors files: what their header claims is checked before anything is allocated."""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from pydantic import JsonValue

from workers.data.errors import BadData
from workers.data.tables import LONGEST_NAME

MOST_TENSORS: Final = 4096
MOST_DIMENSIONS: Final = 8
LONGEST_HEADER: Final = 4 << 20
_PIECE: Final = 16 << 20
_LENGTH: Final = 8
"""Bytes before the header, which say how long it is."""

_FLOATS: Final[Mapping[str, np.dtype[np.floating]]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
}
_BFLOAT: Final = "BF16"
_INTEGERS: Final = {"I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1}
_BOOLEAN: Final = "BOOL"
_BYTES: Final[Mapping[str, int]] = {
    **{name: kind.itemsize for name, kind in _FLOATS.items()},
    **_INTEGERS,
    _BFLOAT: 2,
    _BOOLEAN: 1,
}
_BFLOAT_EXPONENT: Final = 0x7F80
"""All of these bits are set in a bfloat16 that is infinite or not a number."""


@dataclass(frozen=True)
class TensorHeader:
    """What a tensor in a safetensors file claims to be; the bytes that there are agree."""

    name: str
    dtype: str
    """As the format writes it: `F32`, `BF16`, `I64` and the like."""
    shape: tuple[int, ...]
    begin: int
    """Where its numbers begin in the file."""

    @property
    def size_bytes(self) -> int:
        """How many bytes its numbers take."""
        return math.prod(self.shape) * _BYTES[self.dtype]

    @property
    def is_boolean(self) -> bool:
        """Whether it holds truth values."""
        return self.dtype == _BOOLEAN

    @property
    def is_integer(self) -> bool:
        """Whether it holds whole numbers."""
        return self.dtype in _INTEGERS


def read_tensor_headers(path: Path, *, limit_bytes: int) -> list[TensorHeader]:
    """Return what all tensors claim to be, in the order of the header, without reading one.

    Raises:
        BadData: the file is no safetensors file, or its header and its bytes do not agree.

    Source: the format's description, https://huggingface.co/docs/safetensors; every byte belongs to one tensor.
    """
    size_bytes = path.stat().st_size
    if size_bytes > limit_bytes:
        raise BadData(f"The file has {size_bytes:,} bytes, at most {limit_bytes:,} are taken.")
    with path.open("rb") as stream:
        start = stream.read(_LENGTH)
        length = int.from_bytes(start, "little")
        if len(start) < _LENGTH or length > size_bytes - _LENGTH:
            raise BadData("The file could not be read as safetensors: it is shorter than its header claims to be.")
        if length > LONGEST_HEADER:
            raise BadData(f"The header has {length:,} bytes, at most {LONGEST_HEADER:,} are taken.")
        text = stream.read(length)
    header = _parsed(text)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise BadData("The header's metadata must be texts by name.")
    if not header:
        raise BadData("The file holds no tensors.")
    if len(header) > MOST_TENSORS:
        raise BadData(f"The file holds {len(header):,} tensors, at most {MOST_TENSORS:,} are taken.")
    data = _LENGTH + length
    found = [_tensor(name, entry, start=data) for name, entry in header.items()]
    end = data
    for each in sorted(found, key=lambda each: each.begin):
        if each.begin != end:
            raise BadData(f"Tensor {each.name!r} does not begin where the one before it ends.")
        end += each.size_bytes
    if end != size_bytes:
        raise BadData(f"The tensors claim {end - data:,} bytes of numbers, the file holds {size_bytes - data:,}.")
    return found


def not_finite(path: Path, tensor: TensorHeader) -> int:
    """Count the values of a tensor that are NaN or infinite, a piece at a time."""
    if tensor.dtype not in (*_FLOATS, _BFLOAT):
        return 0
    found = 0
    for piece in _pieces(path, tensor):
        if tensor.dtype == _BFLOAT:
            bits = np.frombuffer(piece, dtype="<u2")
            found += int(((bits & _BFLOAT_EXPONENT) == _BFLOAT_EXPONENT).sum())
        else:
            values = np.frombuffer(piece, dtype=_FLOATS[tensor.dtype])
            found += values.size - int(np.isfinite(values).sum())
    return found


def _pieces(path: Path, tensor: TensorHeader) -> Iterator[bytes]:
    left = tensor.size_bytes
    with path.open("rb") as stream:
        stream.seek(tensor.begin)
        while left:
            piece = stream.read(min(_PIECE, left))
            if not piece:
                raise BadData("The file has become shorter while it was read.")
            left -= len(piece)
            yield piece


def _parsed(text: bytes) -> dict[str, JsonValue]:
    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=_named_once)
    except (ValueError, RecursionError) as error:  # a wrong encoding is a ValueError too
        raise BadData("The file could not be read as safetensors: its header is no JSON.") from error
    if not isinstance(header, dict):
        raise BadData("The file could not be read as safetensors: its header is no JSON object.")
    return header


def _named_once(pairs: list[tuple[str, JsonValue]]) -> dict[str, JsonValue]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise BadData("The header names something twice.")
    return found


def _tensor(name: str, entry: JsonValue, *, start: int) -> TensorHeader:
    if not name or len(name) > LONGEST_NAME or not name.isprintable():
        raise BadData(f"A tensor's name needs 1 to {LONGEST_NAME} printable characters.")
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise BadData(f"Of tensor {name!r} the header must say dtype, shape and data_offsets, and no more.")
    dtype, shape, offsets = entry["dtype"], _counts(entry["shape"]), _counts(entry["data_offsets"])
    if not isinstance(dtype, str) or dtype not in _BYTES:
        raise BadData(f"Tensor {name!r} is of a type that is not taken: {', '.join(_BYTES)} are.")
    if shape is None or len(shape) > MOST_DIMENSIONS:
        raise BadData(f"Tensor {name!r} needs a shape of at most {MOST_DIMENSIONS} whole numbers.")
    if 0 in shape:
        raise BadData(f"Tensor {name!r} of shape {shape} holds nothing.")
    if offsets is None or len(offsets) != 2:
        raise BadData(f"Tensor {name!r} needs two data_offsets: where its bytes begin, and where they end.")
    tensor = TensorHeader(name, dtype, shape, start + offsets[0])
    if offsets[1] - offsets[0] != tensor.size_bytes:
        raise BadData(
            f"Tensor {name!r} claims {tensor.size_bytes:,} bytes by its shape and {offsets[1] - offsets[0]:,} by its "
            "data_offsets."
        )
    return tensor


def _counts(value: JsonValue) -> tuple[int, ...] | None:
    """Return a list of whole numbers from 0 to 2⁶³ − 1; None if it is anything else."""
    if not isinstance(value, list):
        return None
    counts = []
    for each in value:
        if isinstance(each, bool) or not isinstance(each, int) or not 0 <= each < 2**63:
            return None
        counts.append(each)
    return tuple(counts)
