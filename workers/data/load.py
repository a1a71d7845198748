"""The data of a job, as its models take it: read, split, standardised."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from service.records import DatasetRecord
from service.spec.data import ColumnSplit, DataSpec
from service.spec.models import Loss
from service.task import Task, read_task
from workers.data.errors import BadData
from workers.data.reading import Features, RawData, read
from workers.data.scaling import Scaler, scaled, scaled_by, standardized
from workers.data.splits import Parts, deal

__all__ = ["BadData", "LoadedData", "feature_names", "load"]


@dataclass(frozen=True, eq=False)
class LoadedData:
    """Everything that a model is trained, validated and tested on."""

    task: Task
    x: Features
    """[n, d], float64: dense in C order, or sparse; standardised if the specification wants it."""
    y: NDArray[np.float64] | NDArray[np.int64]
    """[n]: class numbers 0 … C − 1, or the numbers to predict."""
    parts: Parts
    """Which row is for what."""
    scaler: Scaler | None
    """What was done to the features; None if nothing."""

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """The classes in the order of their numbers; None for regression."""
        return self.task.labels


def load(
    data: DataSpec,
    dataset: DatasetRecord,
    path: Path | None,
    *,
    loss: Loss,
    seed: int,
    holds_out: bool = True,
    scaler: Scaler | None = None,
) -> LoadedData:
    """Read a job's data and make it ready. The same arguments give the same data.

    The scaler's statistics are those of the training rows; with folds, of all rows that are not test rows, so that
    one matrix serves all folds. That lets a fold's validation rows into the scale, though not into the weights.

    Args:
        data: the specification of the data.
        dataset: the record of the dataset that it names.
        path: the dataset's file; None for a built-in one.
        loss: decides between classes and numbers.
        seed: of the split.
        holds_out: false for a method that needs no validation rows: they are training rows then.
        scaler: what the features are scaled by instead of what the training rows say, if they are scaled at all.

    Raises:
        BadData: the data cannot be used as the specification wants; the message says why.
    """
    task = read_task(data, dataset, loss=loss, holds_out=holds_out)
    if isinstance(task, list):
        raise BadData("; ".join(f"{refusal.pointer}: {refusal.detail}" for refusal in task))
    part_column = data.split.column if isinstance(data.split, ColumnSplit) else None
    raw = read(dataset, path, task, part_column=part_column)
    parts = deal(
        data.split,
        dataset.rows,
        classes=None if task.labels is None else raw.y.astype(np.int64, copy=False),
        named=raw.parts,
        is_stratified=task.is_stratified,
        seed=seed,
    )
    if not holds_out and parts.valid is not None:
        parts = replace(parts, train=np.sort(np.concatenate([parts.train, parts.valid])), valid=None)
    raw, used = _scaled(raw, parts, scaler) if data.standardize else (raw, None)
    return LoadedData(task, raw.x, raw.y, parts, used)


def _scaled(raw: RawData, parts: Parts, given: Scaler | None) -> tuple[RawData, Scaler]:
    if given is not None:
        if not isinstance(raw.x, np.ndarray) or not given.mean.shape == given.scale.shape == raw.x.shape[1:]:
            raise BadData("A scale is given for dense features, one for each.")
        return replace(raw, x=scaled_by(raw.x, given)), given
    if isinstance(raw.x, np.ndarray):
        x, scaler = standardized(raw.x, parts.train)
        return replace(raw, x=x), scaler
    sparse, scaler = scaled(raw.x, parts.train)
    return replace(raw, x=sparse), scaler


def feature_names(task: Task) -> Iterator[str]:
    """A name for each of the d features: a column's own, or `x[0]`, `x[0,1]`, … within an array."""
    for column in task.features:
        if not column.shape:
            yield column.name
        for place in product(*(range(length) for length in column.shape)):
            if place:
                yield f"{column.name}[{','.join(map(str, place))}]"
