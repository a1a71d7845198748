"""From a dataset's bytes to one matrix of features and one vector of targets."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import scipy.sparse
from numpy.typing import NDArray

from service.records import ColumnRecord, ColumnType, DatasetRecord
from service.task import Task
from workers.data.builtin import load_builtin
from workers.data.columns import Numbers, booleans, numbers
from workers.data.errors import BadData
from workers.data.images import FOLDER, IMAGE, read_image_headers, read_images
from workers.data.npz import read_array, read_headers
from workers.data.splits import PARTS
from workers.data.svmlight import read_blocks
from workers.data.tables import csv_batches, csv_names, open_parquet, parquet_batches

Features = NDArray[np.float64] | scipy.sparse.csr_array


@dataclass(frozen=True, eq=False)
class RawData:
    """What was read, before it is split."""

    x: Features
    """[n, d], float64: dense in C order, or sparse."""
    y: NDArray[np.float64] | NDArray[np.int64]
    """[n]: class numbers for a classification, else the numbers themselves."""
    parts: NDArray[np.int64] | None
    """[n]: places in `PARTS`, when a column names the parts."""


def read(dataset: DatasetRecord, path: Path | None, task: Task, *, part_column: str | None) -> RawData:
    """Read the columns that a task uses.

    Args:
        dataset: the record; its types decide how strings are read.
        path: its file; None for a built-in dataset.
        task: which columns, and which classes.
        part_column: the column that names the parts, if one does.

    Raises:
        BadData: the file is not what its record says.
    """
    if dataset.format == "builtin":
        bunch = load_builtin(dataset.id)
        places = [bunch.feature_names.index(column.name) for column in task.features]
        x = bunch.x if len(places) == bunch.x.shape[1] else np.ascontiguousarray(bunch.x[:, places])
        return RawData(x, _targets(bunch.y, task), None)
    if path is None:
        raise BadData("The dataset has no file.")
    if dataset.format == "svmlight":
        return _svmlight(dataset, path, task)
    if dataset.format == "npz":
        return _npz(dataset, path, task)
    if dataset.format == "zip-images":
        return _images(dataset, path, task, part_column=part_column)
    return _table(dataset, path, task, part_column=part_column)


def _table(dataset: DatasetRecord, path: Path, task: Task, *, part_column: str | None) -> RawData:
    wanted = [*(column.name for column in task.features), task.target.name]
    wanted += [part_column] if part_column is not None else []
    n, d = dataset.rows, len(task.features)
    x = np.empty((n, d))
    y: NDArray[np.float64] | NDArray[np.int64] = np.empty(n) if task.labels is None else np.empty(n, dtype=np.int64)
    parts = np.empty(n, dtype=np.int64) if part_column is not None else None
    start = 0
    for batch in _batches(dataset, path, wanted):
        end = start + batch.num_rows
        if end > n:
            raise _mismatch()
        columns = batch.columns
        for place, column in enumerate(task.features):
            x[start:end, place] = _numbers_of(columns[place], column)
        if task.labels is not None and task.target.type is ColumnType.TEXT:
            y[start:end] = _places(columns[d], task.labels, what="target")
        else:
            y[start:end] = _targets(_numbers_of(columns[d], task.target), task)
        if parts is not None:
            parts[start:end] = _places(columns[d + 1], PARTS, what="part")
        start = end
    if start != n:
        raise _mismatch()
    return RawData(x, y, parts)


def _batches(dataset: DatasetRecord, path: Path, wanted: Sequence[str]) -> Iterator[pa.RecordBatch]:
    if dataset.format == "csv":
        return csv_batches(path, csv_names(path), columns=wanted)
    if dataset.format == "parquet":
        # The file's promises were checked when it was uploaded; here its record's rows are what is allocated.
        return parquet_batches(open_parquet(path, limit_bytes=2**62), columns=wanted)
    raise BadData(f"No worker reads files of format {dataset.format!r}.")


def _numbers_of(values: pa.Array, column: ColumnRecord) -> Numbers:
    if pa.types.is_string(values.type):
        found = booleans(values) if column.type is ColumnType.BOOLEAN else numbers(values)
    else:
        found = np.asarray(pc.cast(values, pa.float64(), safe=False).to_numpy(zero_copy_only=False), dtype=np.float64)
    if found is None:
        raise _mismatch()
    if not np.isfinite(found).all():
        raise BadData(f"Column {column.name!r} has values that are missing or not finite.")
    return found


def _places(values: pa.Array, among: Sequence[str], *, what: str) -> NDArray[np.int64]:
    found = pc.index_in(pc.cast(values, pa.string()), value_set=pa.array(list(among), pa.string()))
    if found.null_count:
        raise BadData(f"A {what} is missing, or none of those that the dataset was uploaded with.")
    return np.asarray(found.to_numpy(), dtype=np.int64)


def _targets(values: Numbers, task: Task) -> NDArray[np.float64] | NDArray[np.int64]:
    if not np.isfinite(values).all():
        raise BadData("The target is missing or not finite in some rows.")
    if task.labels is None:
        return values
    if task.target.type is ColumnType.BOOLEAN:
        return values.astype(np.int64)
    known = np.array([int(label) for label in task.labels], dtype=np.float64)
    found = np.minimum(np.searchsorted(known, values), known.size - 1)
    if not np.array_equal(known[found], values):
        raise _mismatch()
    return found.astype(np.int64)


def _npz(dataset: DatasetRecord, path: Path, task: Task) -> RawData:
    headers = {header.name: header for header in read_headers(path, limit_bytes=2**62)}
    names = [*(column.name for column in task.features), task.target.name]
    if any(name not in headers or headers[name].shape[0] != dataset.rows for name in names):
        raise _mismatch()
    y = _targets(read_array(path, headers[task.target.name]), task)
    if len(task.features) == 1:
        x = read_array(path, headers[names[0]]).reshape(dataset.rows, -1)
    else:
        x = np.empty((dataset.rows, task.width))
        start = 0
        for column in task.features:
            part = read_array(path, headers[column.name]).reshape(dataset.rows, -1)
            x[:, start : start + part.shape[1]] = part
            start += part.shape[1]
    if x.shape[1] != task.width:
        raise _mismatch()
    if not np.isfinite(x).all():
        raise BadData("The features have values that are missing or not finite.")
    return RawData(x, y, None)


def _images(dataset: DatasetRecord, path: Path, task: Task, *, part_column: str | None) -> RawData:
    archive = read_image_headers(path, limit_bytes=2**62)
    if len(archive.headers) != dataset.rows or archive.is_mixed:
        raise _mismatch()
    if [column.name for column in task.features] != [IMAGE] or task.target.name != FOLDER or part_column == FOLDER:
        raise BadData(f"Of an archive of images, {IMAGE!r} can be learned from and {FOLDER!r} be predicted.")
    x = np.empty((dataset.rows, task.width))
    height, width = archive.smallest
    for row, pixels in zip(x, read_images(path, archive.headers, height=height, width=width), strict=True):
        row[:] = pixels.reshape(-1)
    folders = pa.array([header.folder for header in archive.headers], pa.string())
    if task.labels is None:
        raise _mismatch()
    return RawData(x, _places(folders, task.labels, what="target"), None)


def _svmlight(dataset: DatasetRecord, path: Path, task: Task) -> RawData:
    blocks = list(read_blocks(path))
    labels = np.concatenate([block.labels for block in blocks]) if blocks else np.empty(0)
    if labels.size != dataset.rows:
        raise _mismatch()
    lengths = np.concatenate([block.row_lengths for block in blocks])
    first = min((int(block.indices.min()) for block in blocks if block.indices.size), default=1)
    wide = dataset.nonzeros is not None and dataset.nonzeros >= 2**31
    indices = np.concatenate([block.indices for block in blocks]) - (0 if first == 0 else 1)
    if indices.size and indices.max() >= task.width:
        raise _mismatch()
    values = np.concatenate([block.values for block in blocks])
    if not np.isfinite(values).all():
        raise BadData("The features have values that are missing or not finite.")
    kind = np.int64 if wide else np.int32
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(kind)
    x = scipy.sparse.csr_array((values, indices.astype(kind), starts), shape=(labels.size, task.width))
    return RawData(x, _targets(labels, task), None)


def _mismatch() -> BadData:
    return BadData("The file is not what it was when it was uploaded: upload it again.")
