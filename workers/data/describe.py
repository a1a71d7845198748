"""What a dataset holds: rows, columns, types, missing values."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from service.records import ColumnRecord, ColumnType
from workers.data.columns import ColumnTally, within_budget
from workers.data.errors import BadData
from workers.data.images import FOLDER, HEIGHT, IMAGE, WIDTH, read_image_headers, read_images
from workers.data.npz import read_headers, read_pieces
from workers.data.safetensors import TensorHeader, not_finite, read_tensor_headers
from workers.data.svmlight import read_blocks
from workers.data.tables import csv_batches, csv_names, is_number, open_parquet, parquet_batches

FEATURES, TARGET = "features", "target"
"""What the two parts of an svmlight file are called."""


@dataclass(frozen=True)
class Description:
    """What was found in a file."""

    rows: int
    """0 for a file of weights, which has none."""
    columns: list[ColumnRecord]
    is_sparse: bool
    nonzeros: int | None


def describe(path: Path, kind: str, *, limit_bytes: int) -> Description:
    """Read the whole of an uploaded file and say what it holds.

    Args:
        path: the file.
        kind: `csv`, `parquet`, `npz`, `svmlight`, `zip-images` or `safetensors`.
        limit_bytes: how large its content may be.

    Raises:
        BadData: it cannot be used; the message says why.
    """
    if path.stat().st_size == 0:
        raise BadData("The file is empty.")
    if kind == "csv":
        return _csv(path)
    if kind == "parquet":
        return _parquet(path, limit_bytes=limit_bytes)
    if kind == "npz":
        return _npz(path, limit_bytes=limit_bytes)
    if kind == "svmlight":
        return _svmlight(path)
    if kind == "zip-images":
        return _images(path, limit_bytes=limit_bytes)
    if kind == "safetensors":
        return _weights(path, limit_bytes=limit_bytes)
    raise BadData(
        f"Files of format {kind!r} are not taken: csv, parquet, npz, svmlight, zip-images and safetensors are."
    )


def _csv(path: Path) -> Description:
    names = csv_names(path)
    tallies = [ColumnTally(name) for name in names]
    for batch in csv_batches(path, names, columns=names):
        for tally, strings in zip(tallies, batch.columns, strict=True):
            tally.add_strings(strings)
    return _table(tallies)


def _parquet(path: Path, *, limit_bytes: int) -> Description:
    file = open_parquet(path, limit_bytes=limit_bytes)
    names = list(file.schema_arrow.names)
    tallies = [ColumnTally(name) for name in names]
    for batch in parquet_batches(file, columns=names):
        for tally, values in zip(tallies, batch.columns, strict=True):
            if pa.types.is_boolean(values.type):
                tally.add_booleans(values)
            elif is_number(values.type):
                numbers = pc.cast(values, pa.float64(), safe=False).to_numpy(zero_copy_only=False)
                tally.add_numbers(np.asarray(numbers, dtype=np.float64))
            else:
                texts = pc.cast(values, pa.string())
                if pc.any(pc.match_substring(texts, "\0")).as_py():
                    raise BadData(f"Column {tally.name!r} has texts with a NUL character.")
                tally.add_texts(texts)
    return _table(tallies)


def _table(tallies: list[ColumnTally]) -> Description:
    if not tallies[0].rows:
        raise BadData("The file has no rows below its header: a header and at least one row are needed.")
    columns = within_budget([tally.record() for tally in tallies])
    return Description(rows=tallies[0].rows, columns=columns, is_sparse=False, nonzeros=None)


def _npz(path: Path, *, limit_bytes: int) -> Description:
    columns = []
    headers = read_headers(path, limit_bytes=limit_bytes)
    for header in headers:
        if len(header.shape) == 1:
            tally = ColumnTally(header.name)
            for piece in read_pieces(path, header):
                if header.dtype.kind == "b":
                    tally.add_booleans(pa.array(piece.astype(np.bool_)))
                else:
                    tally.add_numbers(piece)
            columns.append(tally.record())
            continue
        missing = sum(piece.size - int(np.isfinite(piece).sum()) for piece in read_pieces(path, header))
        kind = {"b": ColumnType.BOOLEAN, "f": ColumnType.NUMBER}.get(header.dtype.kind, ColumnType.INTEGER)
        columns.append(ColumnRecord(name=header.name, type=kind, shape=header.shape[1:], missing=missing, values=None))
    return Description(rows=headers[0].shape[0], columns=within_budget(columns), is_sparse=False, nonzeros=None)


def _svmlight(path: Path) -> Description:
    target = ColumnTally(TARGET)
    nonzeros, missing, first, last = 0, 0, 1, -1
    for block in read_blocks(path):
        target.add_numbers(block.labels)
        nonzeros += block.indices.size
        missing += block.values.size - int(np.isfinite(block.values).sum())
        if block.indices.size:
            first = min(first, int(block.indices.min()))
            last = max(last, int(block.indices.max()))
    if not target.rows:
        raise BadData("The file has no rows.")
    if last < 0:
        raise BadData("No row has a feature: svmlight is `label index:value …`.")
    # Who has ever used index 0 counts from 0; libsvm itself counts from 1.
    features = ColumnRecord(FEATURES, ColumnType.NUMBER, (last + 1 - first,), missing, None)
    return Description(rows=target.rows, columns=[features, target.record()], is_sparse=True, nonzeros=nonzeros)


def _images(path: Path, *, limit_bytes: int) -> Description:
    archive = read_image_headers(path, limit_bytes=limit_bytes)
    for _ in read_images(path, archive.headers, height=1, width=1):
        pass  # each can be decoded
    columns = [ColumnRecord(IMAGE, ColumnType.INTEGER, archive.row_shape, 0, None)]
    if any(header.folder for header in archive.headers):
        folders = ColumnTally(FOLDER)
        folders.add_texts(pa.array([header.folder for header in archive.headers], pa.string()))
        columns.append(folders.record())
    if archive.is_mixed:
        for name, lengths in (
            (HEIGHT, [header.height for header in archive.headers]),
            (WIDTH, [header.width for header in archive.headers]),
        ):
            tally = ColumnTally(name)
            tally.add_numbers(np.asarray(lengths, dtype=np.float64))
            columns.append(tally.record())
    return Description(len(archive.headers), within_budget(columns), is_sparse=False, nonzeros=None)


def _weights(path: Path, *, limit_bytes: int) -> Description:
    columns = [
        ColumnRecord(tensor.name, _type_of(tensor), tensor.shape, not_finite(path, tensor), None)
        for tensor in read_tensor_headers(path, limit_bytes=limit_bytes)
    ]
    return Description(rows=0, columns=columns, is_sparse=False, nonzeros=None)


def _type_of(tensor: TensorHeader) -> ColumnType:
    if tensor.is_boolean:
        return ColumnType.BOOLEAN
    return ColumnType.INTEGER if tensor.is_integer else ColumnType.NUMBER
