"""How many rows each part gets. The service counts with it, the workers deal by it, so both say the same."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from service.spec.data import HoldoutSplit, KFoldSplit

TRAIN: Final = "train"
VALID: Final = "valid"
TEST: Final = "test"


@dataclass(frozen=True)
class Share:
    """Rows of each part: of all, or of one class. With folds `valid` is 0 and `train` are the rows of all folds."""

    train: int
    valid: int
    test: int


def least_rows(split: HoldoutSplit | KFoldSplit) -> int:
    """How many rows all rows together, and each class that is stratified, need: one for each part."""
    # Folds: a class that lies in one fold only would be missing where that fold is left out.
    return 2 + (split.test > 0)


def share_rows(split: HoldoutSplit | KFoldSplit, rows: int) -> Share:
    """Share `rows`, at least `least_rows`, among the parts; no part that is wanted stays empty."""
    return share_classes(split, [rows])[0]


def share_classes(split: HoldoutSplit | KFoldSplit, sizes: Sequence[int]) -> list[Share]:
    """Share the rows of each class so that parts keep the classes' shares, and each class has a row in each part.

    Args:
        split: the fractions.
        sizes: rows of each class, each at least `least_rows`.
    """
    rows = sum(sizes)
    valid_fraction = split.valid if isinstance(split, HoldoutSplit) else 0.0
    test = _apportion(_rounded(rows, split.test), sizes, [size - 2 for size in sizes])
    left = [size - taken for size, taken in zip(sizes, test, strict=True)]
    valid = _apportion(_rounded(rows, valid_fraction), sizes, [size - 1 for size in left])
    return [
        Share(train=rest - of_valid, valid=of_valid, test=of_test)
        for rest, of_valid, of_test in zip(left, valid, test, strict=True)
    ]


def _rounded(rows: int, fraction: float) -> int:
    return max(1, int(rows * fraction + 0.5)) if fraction > 0 else 0


def _apportion(total: int, sizes: Sequence[int], most: Sequence[int]) -> list[int]:
    """Shares in proportion to `sizes`, each from 1 to `most`, that sum to `total` as nearly as that allows.

    Source: the method of largest remainders (Hamilton); ties go to the earlier class.
    """
    if total == 0:
        return [0] * len(sizes)
    everything = sum(sizes)
    # In integers, so that every machine rounds alike.
    shares = [max(1, min(limit, total * size // everything)) for size, limit in zip(sizes, most, strict=True)]
    missing = [total * size - share * everything for size, share in zip(sizes, shares, strict=True)]
    by_remainder = sorted(range(len(sizes)), key=lambda place: (-missing[place], place))
    while sum(shares) < total and any(share < limit for share, limit in zip(shares, most, strict=True)):
        for place in by_remainder:
            if sum(shares) < total and shares[place] < most[place]:
                shares[place] += 1
    while sum(shares) > total and any(share > 1 for share in shares):
        for place in reversed(by_remainder):
            if sum(shares) > total and shares[place] > 1:
                shares[place] -= 1
    return shares
