"""Whatever bytes are sent as weights, they are described or refused with a sentence, before anything is allocated."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from service.inspection import DatasetFormat, InspectionLimits, UnusableFile, inspect, preview
from service.records import ColumnType
from workers.data.describe import describe
from workers.data.errors import BadData
from workers.data.safetensors import LONGEST_HEADER, MOST_TENSORS, read_tensor_headers

LIMIT = 1 << 23
LIMITS = InspectionLimits(unpacked_bytes=LIMIT, memory_bytes=4 << 30, cpu_seconds=60, wall_seconds=90.0)

F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def packed(header: object, data: bytes = bytes(8), *, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def written(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    return path


def test_tensors_are_listed_with_their_shapes_and_what_is_wrong_in_them(tmp_path: Path) -> None:
    half = torch.tensor([1.0, math.nan, -math.inf, 2.0, 3.0e38])
    tensors = {
        "0.linear.weight": torch.ones(3, 2),
        "0.linear.bias": half.bfloat16(),
        "f16": torch.tensor([1.0, math.inf]).half(),
        "f64": half.double(),
        "counter": torch.tensor(3),
        "mask": torch.tensor([True, False]),
        "small": torch.tensor([[1, 2]], dtype=torch.uint8),
    }
    found = describe(written(tmp_path, save(tensors, {"model": "mlp"})), "safetensors", limit_bytes=LIMIT)
    assert (found.rows, found.is_sparse, found.nonzeros) == (0, False, None)
    number, integer, boolean = ColumnType.NUMBER, ColumnType.INTEGER, ColumnType.BOOLEAN
    assert {column.name: (column.type, column.shape, column.missing) for column in found.columns} == {
        "0.linear.weight": (number, (3, 2), 0),
        "0.linear.bias": (number, (5,), 2),
        "f16": (number, (2,), 1),
        "f64": (number, (5,), 2),
        "counter": (integer, (), 0),
        "mask": (boolean, (2,), 0),
        "small": (integer, (1, 2), 0),
    }
    assert all(column.values is None for column in found.columns)


def test_the_limited_process_describes_and_shows_them(tmp_path: Path) -> None:
    path = written(tmp_path, save({"w": torch.zeros(2, 3), "b": torch.zeros(())}))
    found = inspect(path, DatasetFormat.SAFETENSORS, limits=LIMITS)
    assert {column.name: column.shape for column in found.columns} == {"w": (2, 3), "b": ()}
    shown = preview(path, DatasetFormat.SAFETENSORS, rows=1, limits=LIMITS)
    assert shown["columns"] == ["tensor", "type", "shape"]
    assert shown["rows"] in ([["w", "F32", "2 × 3"]], [["b", "F32", ""]])
    with pytest.raises(UnusableFile, match="is no JSON"):
        inspect(written(tmp_path, packed(b"nonsense")), DatasetFormat.SAFETENSORS, limits=LIMITS)


REFUSED: dict[str, tuple[bytes, str]] = {
    "a cut length": (b"\x08\0\0", "shorter than its header"),
    "a header beyond the end": (packed({"a": F32}, length=1 << 20), "shorter than its header"),
    "a header of 2^63 bytes": (packed({"a": F32}, length=(1 << 64) - 1), "shorter than its header"),
    "a long header": (packed(b" " * (LONGEST_HEADER + 1)), "at most 4,194,304"),
    "no JSON": (packed(b"{"), "is no JSON"),
    "an unreadable header": (packed(b'{"\xff": 1}'), "is no JSON"),
    "depth without end": (packed(b"[" * 200_000), "is no JSON"),
    "a number without end": (packed(b'{"a": ' + b"9" * 10_000 + b"}"), "is no JSON"),
    "a list": (packed([1, 2]), "no JSON object"),
    "no tensors": (packed({}, b""), "holds no tensors"),
    "metadata alone": (packed({"__metadata__": {"a": "b"}}, b""), "holds no tensors"),
    "metadata that are no texts": (packed({"__metadata__": {"a": 1}, "a": F32}), "must be texts"),
    "metadata that are a list": (packed({"__metadata__": [], "a": F32}), "must be texts"),
    "a name twice": (packed(b'{"a": %b, "a": %b}' % ((json.dumps(F32).encode(),) * 2)), "names something twice"),
    "a field twice": (packed(b'{"a": {"dtype": "F32", "dtype": "F32", "shape": [2]}}'), "names something twice"),
    "a NUL in a name": (packed({"a\0b": F32}), "printable characters"),
    "half a character in a name": (packed(b'{"\\ud800": %b}' % json.dumps(F32).encode()), "printable characters"),
    "no name": (packed({"": F32}), "printable characters"),
    "a long name": (packed({"n" * 257: F32}), "printable characters"),
    "no entry": (packed({"a": 3}), "must say dtype"),
    "a field too few": (packed({"a": {"dtype": "F32", "shape": [2]}}), "must say dtype"),
    "a field too many": (packed({"a": {**F32, "pickle": "gASV"}}), "must say dtype"),
    "a type of 8 bits": (packed({"a": {**F32, "dtype": "F8_E4M3"}}), "of a type that is not taken"),
    "a type that is a list": (packed({"a": {**F32, "dtype": ["F32"]}}), "of a type that is not taken"),
    "a negative length": (packed({"a": {**F32, "shape": [-2]}}), "whole numbers"),
    "a length that is a truth value": (packed({"a": {**F32, "shape": [True, 2]}}), "whole numbers"),
    "a length that is no whole number": (packed({"a": {**F32, "shape": [2.0]}}), "whole numbers"),
    "too many dimensions": (packed({"a": {**F32, "shape": [1] * 9}}), "whole numbers"),
    "an empty tensor": (packed({"a": {**F32, "shape": [0], "data_offsets": [0, 0]}}, b""), "holds nothing"),
    "one offset": (packed({"a": {**F32, "data_offsets": [0]}}), "two data_offsets"),
    "more than there is": (packed({"a": {**F32, "shape": [2**40, 2**40]}}), "by its shape and 8 by its data_offsets"),
    "offsets that fall": (packed({"a": {**F32, "data_offsets": [8, 0]}}), "by its data_offsets"),
    "an offset beyond the end": (packed({"a": {**F32, "data_offsets": [8, 16]}}), "does not begin where"),
    "tensors that overlap": (packed({"a": F32, "b": F32}), "does not begin where"),
    "a hole": (packed({"a": F32, "b": {**F32, "data_offsets": [12, 20]}}, bytes(20)), "does not begin where"),
    "bytes that belong to nobody": (packed({"a": F32}, bytes(9)), "claim 8 bytes of numbers, the file holds 9"),
    "bytes that are missing": (packed({"a": F32}, bytes(7)), "claim 8 bytes of numbers, the file holds 7"),
    "too many tensors": (
        packed(
            {str(i): {"dtype": "U8", "shape": [1], "data_offsets": [i, i + 1]} for i in range(MOST_TENSORS + 1)},
            bytes(MOST_TENSORS + 1),
        ),
        "at most 4,096",
    ),
}


@pytest.mark.parametrize(("content", "says"), list(REFUSED.values()), ids=list(REFUSED))
def test_a_file_that_is_not_what_it_claims_is_refused(tmp_path: Path, content: bytes, says: str) -> None:
    with pytest.raises(BadData, match=says):
        describe(written(tmp_path, content), "safetensors", limit_bytes=LIMIT)


def test_a_file_over_the_limit_is_refused_unread(tmp_path: Path) -> None:
    with pytest.raises(BadData, match="at most 10 are taken"):
        describe(written(tmp_path, packed({"a": F32})), "safetensors", limit_bytes=10)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, 200), byte=st.integers(0, 255), cut=st.integers(0, 60))
def test_a_damaged_file_is_described_or_refused(tmp_path: Path, place: int, byte: int, cut: int) -> None:
    content = bytearray(save({"a": torch.ones(3), "b": torch.ones(2, 2)}, {"x": "y"}))
    content[place % len(content)] = byte
    path = written(tmp_path, bytes(content[: len(content) - cut]))
    try:
        found = read_tensor_headers(path, limit_bytes=LIMIT)
    except BadData:
        return
    assert sum(each.size_bytes for each in found) <= path.stat().st_size


def test_what_the_library_writes_is_where_we_say_it_is(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(3.0), "b": torch.arange(4.0, dtype=torch.float64).reshape(2, 2)}
    path = written(tmp_path, save(tensors))
    for header in read_tensor_headers(path, limit_bytes=LIMIT):
        kind = {"F32": "<f4", "F64": "<f8"}[header.dtype]
        count = math.prod(header.shape)
        found = np.frombuffer(path.read_bytes(), dtype=kind, count=count, offset=header.begin)
        np.testing.assert_array_equal(found.reshape(header.shape), tensors[header.name].numpy())
