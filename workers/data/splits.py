"""Dealing rows to parts: by the seed, in their order, or by a column."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, assert_never

import numpy as np
from numpy.typing import NDArray

from service.dealing import Share, share_classes, share_rows
from service.spec.data import ColumnSplit, HoldoutSplit, KFoldSplit
from workers.data.errors import BadData

Indices = NDArray[np.int64]

PARTS: Final = ("train", "valid", "test")
"""What a column may call the parts; their codes are their places here."""

_STREAM: Final = 0x5EED
"""Tells the splits' random numbers from those that others draw with the job's seed."""


@dataclass(frozen=True, eq=False)
class Parts:
    """Row numbers of each part, increasing. With folds, `train` are all rows that are not test rows."""

    train: Indices
    valid: Indices | None
    test: Indices | None
    fold: Indices | None
    """With folds, the fold 0 … k − 1 of each row of `train`; `valid` is None then."""


def deal(
    split: HoldoutSplit | KFoldSplit | ColumnSplit,
    rows: int,
    *,
    classes: Indices | None,
    named: Indices | None,
    is_stratified: bool,
    seed: int,
) -> Parts:
    """Deal `rows` rows to parts. The same arguments give the same parts, on every machine.

    Args:
        split: how.
        rows: n.
        classes: class numbers, [n], or None for regression.
        named: places in `PARTS`, [n], when a column names them.
        is_stratified: whether every part keeps the classes' shares.
        seed: of the shuffling.

    Raises:
        BadData: a class has no row to train on.
    """
    match split:
        case ColumnSplit():
            if named is None:
                raise BadData("the column that names the parts was not read")
            train, valid, test = (np.flatnonzero(named == code) for code in range(3))
            parts = Parts(train, valid, test if test.size else None, None)
        case HoldoutSplit() | KFoldSplit():
            generator = np.random.default_rng([seed, _STREAM]) if split.shuffle else None
            if is_stratified and classes is not None:
                groups = [np.flatnonzero(classes == label) for label in np.unique(classes)]
                shares: Sequence[Share] = share_classes(split, [group.size for group in groups])
            else:
                groups, shares = [np.arange(rows)], [share_rows(split, rows)]
            if generator is not None:
                groups = [generator.permutation(group) for group in groups]
            parts = _cut(split, groups, shares)
        case _:
            assert_never(split)
    if classes is not None:
        _require_every_class(parts, classes)
    return parts


def _cut(split: HoldoutSplit | KFoldSplit, groups: Sequence[Indices], shares: Sequence[Share]) -> Parts:
    # In each group the rows stand as train, valid, test: unshuffled rows are tested on what comes last.
    train = [group[: share.train] for group, share in zip(groups, shares, strict=True)]
    valid = [group[share.train : share.train + share.valid] for group, share in zip(groups, shares, strict=True)]
    test = [group[share.train + share.valid :] for group, share in zip(groups, shares, strict=True)]
    tested = _joined(test)
    held = tested if tested.size else None
    if isinstance(split, HoldoutSplit):
        return Parts(_joined(train), _joined(valid), held, None)
    rows = np.concatenate(train)
    place = np.arange(rows.size)
    # Shuffled: round and round, on from class to class, so that folds differ by at most one row, of every class
    # and in all. In their order: one block of rows each.
    fold = place % split.folds if split.shuffle else place * split.folds // rows.size
    order = np.argsort(rows, kind="stable")
    return Parts(rows[order], None, held, fold[order])


def _joined(pieces: Sequence[Indices]) -> Indices:
    return np.sort(np.concatenate(pieces))


def _require_every_class(parts: Parts, classes: Indices) -> None:
    count = int(classes.max()) + 1
    if parts.fold is None:
        models = [classes[parts.train]]
    else:
        models = [classes[parts.train[parts.fold != fold]] for fold in range(int(parts.fold.max()) + 1)]
    for labels in models:
        absent = np.flatnonzero(np.bincount(labels, minlength=count) == 0)
        if absent.size:
            raise BadData(
                f"{absent.size} of {count} classes have no row in a training part: stratify, or merge rare classes."
            )
