"""The first rows of a dataset, for people."""

import math
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
from pydantic import JsonValue

from workers.data.describe import FEATURES, TARGET
from workers.data.errors import BadData
from workers.data.images import FOLDER, IMAGE, read_image_headers
from workers.data.npz import read_array, read_headers
from workers.data.safetensors import read_tensor_headers
from workers.data.svmlight import read_blocks
from workers.data.tables import csv_batches, csv_names, open_parquet, parquet_batches

_WIDEST: Final = 50
_LONGEST_TEXT: Final = 200

Lines = list[list[object]]


def preview(path: Path, kind: str, *, rows: int, limit_bytes: int) -> dict[str, JsonValue]:
    """The first rows, `{"columns": [name, …], "rows": [[value, …], …], "columns_left_out": n}`.

    At most 50 columns are shown and long texts are cut. An array [n, d] takes d columns called `x[0]`, `x[1]`, …; of
    a sparse row the nonzero features are one text, and so are the name and size of an image. A file of weights has no
    rows: its first tensors are shown. `kind` may also be `builtin`, with the dataset's id for a path.

    Raises:
        BadData: the file cannot be read.
    """
    if kind == "csv":
        names = csv_names(path)
        shown = names[:_WIDEST]
        first = next(csv_batches(path, names, columns=shown), None)
        lines: Lines = [] if first is None else [list(line) for line in zip(*_columns(first, rows), strict=True)]
    elif kind == "parquet":
        file = open_parquet(path, limit_bytes=limit_bytes)
        names = list(file.schema_arrow.names)
        first = next(parquet_batches(file, columns=names[:_WIDEST]), None)
        lines = [] if first is None else [list(line) for line in zip(*_columns(first, rows), strict=True)]
    elif kind == "npz":
        names, lines = _arrays(path, rows=rows, limit_bytes=limit_bytes)
    elif kind == "svmlight":
        names, lines = _sparse_rows(path, rows=rows)
    elif kind == "zip-images":
        names, lines = _images(path, rows=rows, limit_bytes=limit_bytes)
    elif kind == "safetensors":
        names = ["tensor", "type", "shape"]
        tensors = read_tensor_headers(path, limit_bytes=limit_bytes)[:rows]
        lines = [[each.name, each.dtype, " × ".join(map(str, each.shape))] for each in tensors]
    else:
        from workers.data.builtin import load_builtin  # scikit-learn takes a second to import

        bunch = load_builtin(str(path))
        names = [*bunch.feature_names, TARGET]
        lines = np.column_stack([bunch.x[:rows], bunch.y[:rows]]).tolist()
    return {
        "columns": list(names[:_WIDEST]),
        "rows": [[_shown(value) for value in line[:_WIDEST]] for line in lines],
        "columns_left_out": max(0, len(names) - _WIDEST),
    }


def _columns(batch: pa.RecordBatch, rows: int) -> list[list[object]]:
    return [column.slice(0, rows).to_pylist() for column in batch.columns]


def _arrays(path: Path, *, rows: int, limit_bytes: int) -> tuple[list[str], Lines]:
    names: list[str] = []
    parts = []
    for header in read_headers(path, limit_bytes=limit_bytes):
        first = read_array(path, header)[:rows].reshape(min(rows, header.shape[0]), -1)
        names += [header.name] if len(header.shape) == 1 else [f"{header.name}[{i}]" for i in range(first.shape[1])]
        parts.append(first)
    return names, np.column_stack(parts).tolist()


def _images(path: Path, *, rows: int, limit_bytes: int) -> tuple[list[str], Lines]:
    first = read_image_headers(path, limit_bytes=limit_bytes).headers[:rows]
    return [IMAGE, FOLDER], [
        [f"{header.member.rpartition('/')[2]}, {header.height} × {header.width}", header.folder or None]
        for header in first
    ]


def _sparse_rows(path: Path, *, rows: int) -> tuple[list[str], Lines]:
    lines: Lines = []
    block = next(read_blocks(path), None)
    if block is None:
        raise BadData("The file has no rows.")
    end = 0
    for label, length in zip(block.labels[:rows].tolist(), block.row_lengths[:rows].tolist(), strict=True):
        begin, end = end, end + length
        pairs = zip(block.indices[begin:end].tolist(), block.values[begin:end].tolist(), strict=True)
        lines.append([label, " ".join(f"{index}:{value:g}" for index, value in pairs)])
    return [TARGET, FEATURES], lines


def _shown(value: object) -> JsonValue:
    if isinstance(value, str):
        return value if len(value) <= _LONGEST_TEXT else value[: _LONGEST_TEXT - 1] + "…"
    if isinstance(value, bool | int) or value is None:
        return value
    if isinstance(value, float):
        if math.isfinite(value):
            return int(value) if value.is_integer() and abs(value) < 2**53 else value
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return str(value)
