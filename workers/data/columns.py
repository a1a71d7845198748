"""Strings to numbers, and what is counted of a column while it streams by."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, TypeVar, final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from service.records import ColumnRecord, ColumnType

Numbers = NDArray[np.float64]

MISSING: Final = frozenset({"", "NA", "N/A", "#N/A", "n/a", "NaN", "nan", "NULL", "null", "None"})
"""What stands for an absent value in a column of numbers or booleans; in one of texts only the empty text does."""

MOST_VALUES: Final = 1000
"""A column with more distinct values is not counted by value."""

LONGEST_TEXT: Final = 256
"""Texts longer than this are not names of classes; columns that hold any are not counted by value."""

_MOST_ENTRIES: Final = 50_000
"""Of all counts by value together: a record must stay a few megabytes."""

_Key = TypeVar("_Key", int, str)

_EXACT: Final = float(2**53)


def numbers(strings: pa.Array) -> Numbers | None:
    """The numbers that `strings` are, [n], NaN where one is missing; None if one is something else.

    The same function reads a file when it is uploaded and when a job runs, so both see the same numbers.
    """
    trimmed = pc.utf8_trim_whitespace(strings)
    try:
        return _float64(pc.cast(trimmed, pa.float64()))
    except pa.ArrowInvalid:
        is_missing = pc.is_in(trimmed, value_set=pa.array(sorted(MISSING)))
    try:
        return _float64(pc.cast(pc.if_else(is_missing, pa.scalar(None, pa.string()), trimmed), pa.float64()))
    except pa.ArrowInvalid:
        return None


def booleans(strings: pa.Array) -> Numbers | None:
    """0 for false, 1 for true (in any case), NaN where one is missing, [n]; None if one is something else."""
    trimmed = pc.utf8_trim_whitespace(strings)
    low = pc.ascii_lower(trimmed)
    codes = pc.index_in(low, value_set=pa.array(["false", "true"]))
    absent = pc.is_in(trimmed, value_set=pa.array(sorted(MISSING)))
    if not pc.all(pc.or_(pc.is_valid(codes), absent)).as_py():
        return None
    return _float64(pc.cast(codes, pa.float64()))


def _float64(array: pa.Array) -> Numbers:
    return np.asarray(array.to_numpy(zero_copy_only=False), dtype=np.float64)


@final
@dataclass(eq=False)
class ColumnTally:
    """What is known of one column so far. Feed it piece by piece, then ask for the `record`."""

    name: str
    rows: int = 0
    _missing: int = 0
    """NaN, infinite, or one of `MISSING`: for a column of numbers or booleans."""
    _empty: int = 0
    """Empty or null: for a column of texts."""
    _kinds: set[ColumnType] = field(default_factory=set)
    _whole: dict[int, int] | None = field(default_factory=dict)
    _texts: dict[str, int] | None = field(default_factory=dict)
    _all_whole: bool = True

    def add_strings(self, strings: pa.Array) -> None:
        """Take strings of a text format and find out what they are."""
        self._count_texts(strings)
        if self._kinds == {ColumnType.TEXT}:
            self.rows += len(strings)
        elif (values := numbers(strings)) is not None:
            self.add_numbers(values)
        elif (values := booleans(strings)) is not None:
            self._kinds.add(ColumnType.BOOLEAN)
            self._missing += int(np.isnan(values).sum())
            self.rows += len(strings)
        else:
            self._kinds = {ColumnType.TEXT}
            self.rows += len(strings)

    def add_texts(self, strings: pa.Array) -> None:
        """Take strings that are texts because their format says so."""
        self._kinds = {ColumnType.TEXT}
        self._count_texts(strings)
        self.rows += len(strings)

    def add_numbers(self, values: Numbers) -> None:
        """Take numbers, [n]."""
        self.rows += values.size
        finite = values[np.isfinite(values)]
        self._missing += values.size - finite.size
        if not finite.size:
            return
        self._kinds.add(ColumnType.NUMBER)
        if self._all_whole:
            self._all_whole = bool(np.all(finite == np.floor(finite)) and np.abs(finite).max() <= _EXACT)
        if not self._all_whole:
            self._whole = None
        elif self._whole is not None:
            found, counts = np.unique(finite, return_counts=True)
            keys = [int(value) for value in found] if found.size <= MOST_VALUES else None
            self._whole = _added(self._whole, keys, counts.tolist())

    def add_booleans(self, values: pa.Array) -> None:
        """Take typed booleans."""
        self._kinds.add(ColumnType.BOOLEAN)
        self.rows += len(values)
        self._missing += values.null_count
        self._count_texts(pc.cast(values, pa.string()))

    def record(self) -> ColumnRecord:
        """What was found."""
        kind = self._kind()
        values: dict[str, int] | None
        if kind is ColumnType.INTEGER:
            values = None if self._whole is None else {str(key): self._whole[key] for key in sorted(self._whole)}
        elif kind is ColumnType.BOOLEAN:
            values = {"false": 0, "true": 0}
            for text, count in (self._texts or {}).items():
                if (low := text.strip().lower()) in values:
                    values[low] += count
        elif kind is ColumnType.TEXT:
            values = None if self._texts is None else {key: self._texts[key] for key in sorted(self._texts)}
        else:
            values = None
        missing = self._empty if kind is ColumnType.TEXT else self._missing
        return ColumnRecord(name=self.name, type=kind, shape=(), missing=missing, values=values)

    def _kind(self) -> ColumnType:
        if not self._kinds:
            return ColumnType.NUMBER
        if self._kinds == {ColumnType.NUMBER}:
            return ColumnType.INTEGER if self._all_whole else ColumnType.NUMBER
        # Numbers here and booleans there can only be told apart as texts.
        return self._kinds.copy().pop() if len(self._kinds) == 1 else ColumnType.TEXT

    def _count_texts(self, strings: pa.Array) -> None:
        self._empty += strings.null_count + int(pc.sum(pc.equal(strings, "")).as_py() or 0)
        if self._texts is None:
            return
        counted = pc.value_counts(strings.drop_null())
        keys: list[str] | None = None
        if len(counted) <= MOST_VALUES + 1:
            keys = counted.field("values").to_pylist()
            if any(len(key) > LONGEST_TEXT for key in keys):
                keys = None
        self._texts = _added(self._texts, keys, counted.field("counts").to_pylist() if keys is not None else [])
        if self._texts is not None:
            self._texts.pop("", None)


def _added(so_far: dict[_Key, int], keys: list[_Key] | None, counts: Iterable[int]) -> dict[_Key, int] | None:
    if keys is None:
        return None
    for key, count in zip(keys, counts, strict=True):
        so_far[key] = so_far.get(key, 0) + count
    return so_far if len(so_far) <= MOST_VALUES else None


def within_budget(columns: list[ColumnRecord]) -> list[ColumnRecord]:
    """Keep counts by value for the columns with the fewest distinct values, as classes have, up to a total."""
    left = _MOST_ENTRIES
    kept: set[int] = set()
    for place in sorted(range(len(columns)), key=lambda place: len(columns[place].values or ())):
        left -= len(columns[place].values or ())
        if left < 0:
            break
        kept.add(place)
    return [
        column
        if place in kept or column.values is None
        else ColumnRecord(name=column.name, type=column.type, shape=column.shape, missing=column.missing, values=None)
        for place, column in enumerate(columns)
    ]
