"""The images of a job: read, cropped, and dealt to parts."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from service.image_task import ImageTask, read_image_task
from service.records import ColumnRecord, ColumnType, DatasetRecord
from service.spec.data import ColumnSplit, DataSpec
from service.spec.models import Denoiser
from workers.data.errors import BadData
from workers.data.images import FOLDER, Archive, centre, read_image_headers, read_images
from workers.data.npz import ArrayHeader, read_array, read_headers
from workers.data.splits import PARTS, Parts, deal


@dataclass(frozen=True, eq=False)
class LoadedImages:
    """Everything that a denoiser learns from and is tested on; pixels about in 0 … 1."""

    task: ImageTask
    clean: NDArray[np.float64]
    """[n, h, w] or [n, h, w, 3]."""
    noisy: NDArray[np.float64] | None
    """Of the same shape; None where noise is to be added."""
    parts: Parts

    @property
    def learned_on(self) -> NDArray[np.int64]:
        """Rows of the images that strengths are learned on: training and validation part together."""
        assert self.parts.valid is not None  # noqa: S101 (a denoiser has no folds)
        return np.sort(np.concatenate([self.parts.train, self.parts.valid]))


def load_images(
    data: DataSpec, dataset: DatasetRecord, path: Path | None, model: Denoiser, *, seed: int
) -> LoadedImages:
    """Read a job's images. The same arguments give the same images.

    Args:
        data: the specification of the data.
        dataset: the record of the dataset that it names.
        path: the dataset's file.
        model: says how images are cropped.
        seed: of the split.

    Raises:
        BadData: the data cannot be used as the specification wants; the message says why.
    """
    task = read_image_task(data, dataset, model)
    if isinstance(task, list):
        raise BadData("; ".join(f"{refusal.pointer}: {refusal.detail}" for refusal in task))
    if path is None:
        raise BadData("The dataset has no file.")
    named = None
    if dataset.format == "zip-images":
        archive = read_image_headers(path, limit_bytes=2**62)
        if len(archive.headers) != dataset.rows or archive.row_shape != task.clean.shape or task.noisy is not None:
            raise _mismatch()
        clean, noisy = _of_archive(path, archive, task), None
        if isinstance(data.split, ColumnSplit):
            named = _parts(archive, data.split.column)
    elif dataset.format == "npz":
        headers = {header.name: header for header in read_headers(path, limit_bytes=2**62)}
        clean = _of_array(path, headers, task.clean, task, rows=dataset.rows)
        noisy = None if task.noisy is None else _of_array(path, headers, task.noisy, task, rows=dataset.rows)
    else:
        raise BadData(f"No images are read from files of format {dataset.format!r}: npz and zip-images are taken.")
    parts = deal(data.split, dataset.rows, classes=None, named=named, is_stratified=False, seed=seed)
    return LoadedImages(task, clean, noisy, parts)


def _of_archive(path: Path, archive: Archive, task: ImageTask) -> NDArray[np.float64]:
    height, width = task.shape[:2]
    images = np.empty((len(archive.headers), *task.shape))
    for image, pixels in zip(images, read_images(path, archive.headers, height=height, width=width), strict=True):
        np.divide(pixels, 255.0, out=image)
    return images


def _of_array(
    path: Path, headers: dict[str, ArrayHeader], column: ColumnRecord, task: ImageTask, *, rows: int
) -> NDArray[np.float64]:
    header = headers.get(column.name)
    if header is None or header.shape != (rows, *column.shape):
        raise _mismatch()
    whole = read_array(path, header)
    if not np.isfinite(whole).all():
        raise BadData(f"The images {column.name!r} have values that are missing or not finite.")
    height, width = task.shape[:2]
    cut = centre(np.moveaxis(whole, 0, -1), height, width)
    return np.ascontiguousarray(np.moveaxis(cut, -1, 0)) / (255.0 if column.type is ColumnType.INTEGER else 1.0)


def _parts(archive: Archive, column: str) -> NDArray[np.int64]:
    if column != FOLDER:
        raise _mismatch()
    folders = pa.array([header.folder for header in archive.headers], pa.string())
    found = pc.index_in(folders, value_set=pa.array(list(PARTS), pa.string()))
    if found.null_count:
        raise _mismatch()
    return np.asarray(found.to_numpy(), dtype=np.int64)


def _mismatch() -> BadData:
    return BadData("The file is not what it was when it was uploaded: upload it again.")
