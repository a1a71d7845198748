"""What a specification means on its dataset: columns, classes, parts. Read once, by one function, for everyone."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from service.dealing import TEST, TRAIN, VALID, Share, least_rows, share_classes, share_rows
from service.records import ColumnRecord, ColumnType, DatasetRecord
from service.spec.data import ColumnSplit, DataSpec, KFoldSplit
from service.spec.models import Loss

NUMERIC: Final = frozenset({ColumnType.NUMBER, ColumnType.INTEGER, ColumnType.BOOLEAN})
"""Types that a model can take for numbers."""


@dataclass(frozen=True)
class Refusal:
    """Why a specification cannot be run on its dataset."""

    pointer: str
    """JSON Pointer (RFC 6901) into the specification."""
    detail: str
    """What was found and what would be accepted."""


@dataclass(frozen=True)
class Task:
    """A specification's data, every default filled in."""

    features: tuple[ColumnRecord, ...]
    """In the dataset's order, or in the order that the specification names them in."""
    target: ColumnRecord
    labels: tuple[str, ...] | None
    """Names of the classes in the order of their numbers; None for regression."""
    is_stratified: bool
    rows: Share
    """Of each part; with folds, `train` are the rows of all folds together."""
    folds: int | None

    @property
    def width(self) -> int:
        """d, the number of features."""
        return sum(math.prod(column.shape) for column in self.features)

    @property
    def outputs(self) -> int:
        """c: one for regression and for two classes, else one for each class."""
        return 1 if self.labels is None or len(self.labels) == 2 else len(self.labels)

    @property
    def validation_rows(self) -> int:
        """How many rows the outer objective sees."""
        return self.rows.train if self.folds is not None else self.rows.valid


def read_task(data: DataSpec, dataset: DatasetRecord, *, loss: Loss, holds_out: bool = True) -> Task | list[Refusal]:
    """Read a specification against its dataset: what it means, or all reasons why it cannot be run.

    Pure: it knows the dataset's record, not its rows.

    Args:
        data: the specification.
        dataset: its dataset.
        loss: decides between classes and numbers.
        holds_out: false for a method that needs no validation rows.
    """
    refusals: list[Refusal] = []
    columns = {column.name: column for column in dataset.columns}
    if differ_in_size(dataset):
        refusals.append(Refusal("/data/dataset", "the images differ in size: only a denoiser takes them, with a crop"))
    target = columns.get(data.target)
    if target is None:
        refusals.append(Refusal("/data/target", unknown([data.target], columns)))
    else:
        refusals += _target_refusals(target, loss)
    features = _features(data, columns, refusals)
    classes: Mapping[str, int] | None = None
    if target is not None and loss is Loss.CROSS_ENTROPY:
        classes = target.values
    rows, is_stratified = parts_of(
        data,
        dataset,
        columns,
        classes if not refusals else None,
        refusals,
        stratifiable=loss is Loss.CROSS_ENTROPY,
        holds_out=holds_out,
    )
    if rows is not None and isinstance(data.split, KFoldSplit) and data.split.folds > rows.train:
        detail = f"{data.split.folds} folds need as many rows, {rows.train} are left for them"
        refusals.append(Refusal("/data/split/folds", detail))
    if refusals or target is None or rows is None:
        return refusals
    labels = None if classes is None else _in_order(target.type, classes)
    folds = data.split.folds if isinstance(data.split, KFoldSplit) else None
    return Task(tuple(features), target, labels, is_stratified, rows, folds)


def weights_refusal(dataset: DatasetRecord) -> Refusal | None:
    """Return why a job cannot learn from a dataset of weights, which has no rows; None of any other."""
    if dataset.format != "safetensors":
        return None
    return Refusal(
        "/data/dataset",
        "this dataset holds weights (safetensors), no rows to learn from: name one that was uploaded as csv, parquet, "
        "npz, svmlight or zip-images, or one that ships with the service",
    )


def differ_in_size(dataset: DatasetRecord) -> bool:
    """Whether the rows of a dataset are images that differ in size."""
    # Only then has an archive columns for them; its `image` is as large as what all have in their middle.
    return dataset.format == "zip-images" and any(column.name == "height" for column in dataset.columns)


def _features(data: DataSpec, columns: Mapping[str, ColumnRecord], refusals: list[Refusal]) -> list[ColumnRecord]:
    if data.features is None:
        used = {data.target} | ({data.split.column} if isinstance(data.split, ColumnSplit) else set())
        chosen = [column for name, column in columns.items() if name not in used and column.type in NUMERIC]
        if not chosen:
            refusals.append(
                Refusal("/data/features", "no numeric column is left to predict from: the dataset needs at least one")
            )
    else:
        absent = [name for name in data.features if name not in columns]
        if absent:
            refusals.append(Refusal("/data/features", unknown(absent, columns)))
        chosen = [columns[name] for name in data.features if name in columns]
    texts = [column.name for column in chosen if column.type not in NUMERIC]
    if texts:
        detail = f"texts in {_named(texts)}: features must be numbers; encode them or leave them out"
        refusals.append(Refusal("/data/features", detail))
    missing = [column.name for column in chosen if column.missing and column.type in NUMERIC]
    if missing:
        detail = f"values missing or not finite in {_named(missing)}: fill them in, or name complete columns only"
        refusals.append(Refusal("/data/features", detail))
    return chosen


def _target_refusals(target: ColumnRecord, loss: Loss) -> list[Refusal]:
    def refusal(detail: str) -> list[Refusal]:
        return [Refusal("/data/target", detail)]

    if target.shape != ():
        return refusal(f"the target has shape {list(target.shape)} a row: it must be one value")
    if target.missing:
        return refusal(f"the target is missing or not finite in {target.missing:,} rows: leave those rows out")
    if loss is Loss.SQUARED_ERROR:
        if target.type in (ColumnType.NUMBER, ColumnType.INTEGER):
            return []
        return refusal(f"squared_error needs numbers, the target is {target.type.value}: take cross_entropy")
    if target.type is ColumnType.NUMBER:
        return refusal(
            "cross_entropy needs classes (integers, booleans or texts), the target is of type number: "
            "take squared_error"
        )
    if target.values is None:
        return refusal("the target has too many distinct values for classes: at most 1,000 are taken")
    if len([count for count in target.values.values() if count]) < 2:
        return refusal("cross_entropy needs at least two classes, the target is the same in every row")
    return []


def parts_of(
    data: DataSpec,
    dataset: DatasetRecord,
    columns: Mapping[str, ColumnRecord],
    classes: Mapping[str, int] | None,
    refusals: list[Refusal],
    *,
    stratifiable: bool,
    holds_out: bool = True,
) -> tuple[Share | None, bool]:
    """Count the rows of each part, and say whether parts keep the classes' shares.

    Args:
        data: the specification.
        dataset: its dataset.
        columns: of the dataset, by name.
        classes: class → rows, where there are classes and they are known.
        refusals: what stands against it is added here; then there are no rows.
        stratifiable: whether the target is a class.
        holds_out: whether there must be validation rows.
    """
    split = data.split
    if isinstance(split, ColumnSplit):
        return _named_parts(split, data, columns, refusals, holds_out=holds_out), False
    least = least_rows(split)
    if dataset.rows < least:
        refusals.append(Refusal("/data/split", f"this split needs at least {least} rows, there are {dataset.rows}"))
        return None, False
    if not stratifiable:
        if split.stratify:
            refusals.append(
                Refusal("/data/split/stratify", "only classes can be stratified, not numbers: take false or null")
            )
        return share_rows(split, dataset.rows), False
    is_stratified = split.shuffle if split.stratify is None else split.stratify
    if not is_stratified or classes is None:
        return share_rows(split, dataset.rows), is_stratified
    rare = sorted(name for name, count in classes.items() if 0 < count < least)
    if rare:
        refusals.append(
            Refusal(
                "/data/split/stratify",
                f"every class needs at least {least} rows, one for each part; too few "
                f"{'has' if len(rare) == 1 else 'have'} {_listed(rare)}: leave such rows out or merge classes",
            )
        )
        return None, is_stratified
    shares = share_classes(split, [count for count in classes.values() if count])
    rows = Share(
        train=sum(share.train for share in shares),
        valid=sum(share.valid for share in shares),
        test=sum(share.test for share in shares),
    )
    return rows, is_stratified


def _named_parts(
    split: ColumnSplit,
    data: DataSpec,
    columns: Mapping[str, ColumnRecord],
    refusals: list[Refusal],
    *,
    holds_out: bool,
) -> Share | None:
    pointer = "/data/split/column"
    column = columns.get(split.column)
    if column is None:
        refusals.append(Refusal(pointer, unknown([split.column], columns)))
        return None
    if split.column == data.target:
        refusals.append(Refusal(pointer, "the column that names the parts is the target"))
        return None
    found = column.values
    if column.type is not ColumnType.TEXT or found is None or not set(found) <= {TRAIN, VALID, TEST}:
        refusals.append(Refusal(pointer, f"{split.column!r} must hold the texts train, valid and test, and no others"))
        return None
    if column.missing:
        refusals.append(Refusal(pointer, f"{split.column!r} names no part in {column.missing:,} rows"))
        return None
    needed = (TRAIN, VALID) if holds_out else (TRAIN,)
    absent = [part for part in needed if not found.get(part)]
    if absent:
        both = "both parts are" if holds_out else "that part is"
        refusals.append(Refusal(pointer, f"no row is {' and none is '.join(absent)}: {both} needed"))
        return None
    return Share(train=found[TRAIN], valid=found.get(VALID, 0), test=found.get(TEST, 0))


def _in_order(kind: ColumnType, values: Mapping[str, int]) -> tuple[str, ...]:
    present = [value for value, count in values.items() if count]
    return tuple(sorted(present, key=int) if kind is ColumnType.INTEGER else sorted(present))


def unknown(names: list[str], columns: Mapping[str, ColumnRecord]) -> str:
    """Say that the dataset lacks these columns, and which it has."""
    # What was sent is not echoed; the columns are those of the dataset.
    what = "this column" if len(names) == 1 else f"{len(names)} of these columns"
    return f"the dataset does not have {what}; it has {_listed(list(columns))}"


def _named(names: list[str]) -> str:
    return f"column {_listed(names)}" if len(names) == 1 else f"{len(names):,} columns, {_listed(names)}"


def _listed(names: list[str], most: int = 8) -> str:
    shown = ", ".join(repr(name) for name in names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most:,} more"
