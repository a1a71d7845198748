"""Trajectories as files: NDJSON, CSV, Parquet, JSON; written in pieces, whatever their length."""

import csv
import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from pydantic import JsonValue
from pydantic_core import to_json

from service.numbers import from_jsonable
from service.records import JsonObject, PointRecord
from service.store.job_rows import rfc3339

Batches = Callable[[], Iterator[list[PointRecord]]]
"""Begins to read the points anew, in batches."""

_FIRST: Final = ("step", "attempt", "at", "elapsed_s")
_WORDS: Final = frozenset({"NaN", "Infinity", "-Infinity"})


class Kind(StrEnum):
    """What all values of a column are."""

    NUMBER = "number"
    BOOLEAN = "boolean"
    TEXT = "text"


@dataclass
class Table:
    """The columns of a trajectory, found by reading all of it once."""

    columns: dict[str, Kind] = field(default_factory=dict)
    last_step: int = -1

    def see(self, point: PointRecord) -> None:
        """Make room for the values of a point."""
        self.last_step = point.step
        for name, value in flat(point.body):
            if value is not None:
                kind = _kind(value)
                self.columns[name] = kind if self.columns.get(name, kind) is kind else Kind.TEXT
            else:
                self.columns.setdefault(name, Kind.NUMBER)


def point_json(point: PointRecord) -> JsonObject:
    """A point as the contract has it."""
    return {
        "step": point.step,
        "attempt": point.attempt,
        "at": rfc3339(point.at),
        "elapsed_s": point.elapsed_s,
        **point.body,
    }


def as_json(batches: Batches, *, limit: int | None) -> Iterator[bytes]:
    """Yield one JSON object with up to `limit` points; `next_after` is null when `batches` had no more."""
    yield b'{"items":['
    comma, left, last, has_more = b"", limit, -1, False
    for batch in batches():
        kept = batch if left is None else batch[:left]
        has_more = len(kept) < len(batch)
        if kept:
            yield comma + b",".join(to_json(point_json(point)) for point in kept)
            comma, last = b",", kept[-1].step
        left = None if left is None else left - len(kept)
    yield b'],"next_after":%s}' % (str(last).encode() if has_more else b"null")


def as_ndjson(batches: Batches) -> Iterator[bytes]:
    """Yield a line of JSON for each point."""
    for batch in batches():
        yield b"".join(to_json(point_json(point)) + b"\n" for point in batch)


def as_csv(batches: Batches) -> Iterator[bytes]:
    """Yield a table after RFC 4180, nested names joined by dots; empty where a point has no value."""
    table = _table(batches())
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow((*_FIRST, *table.columns))
    for batch in _until(batches(), table.last_step):
        for point in batch:
            values = dict(flat(point.body))
            row = [_cell(values.get(name)) for name in table.columns]
            writer.writerow((point.step, point.attempt, rfc3339(point.at), point.elapsed_s, *row))
        yield _taken(text)
    if rest := _taken(text):
        yield rest


def as_parquet(batches: Batches) -> Iterator[bytes]:
    """Yield a Parquet file, a row group for each batch; the columns are those of the CSV file."""
    # Here, not above: it takes a third of a second, and most processes never need it.
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = _table(batches())
    types = {Kind.NUMBER: pa.float64(), Kind.BOOLEAN: pa.bool_(), Kind.TEXT: pa.string()}
    schema = pa.schema(
        [
            ("step", pa.int64()),
            ("attempt", pa.int64()),
            ("at", pa.timestamp("us", tz="UTC")),
            ("elapsed_s", pa.float64()),
            *((name, types[kind]) for name, kind in table.columns.items()),
        ]
    )
    sink = _Sink()
    with pq.ParquetWriter(pa.PythonFile(sink, mode="w"), schema, compression="zstd") as writer:
        for batch in _until(batches(), table.last_step):
            writer.write_table(pa.table(_arrays(batch, table), schema=schema))
            yield sink.taken()
    yield sink.taken()


def flat(value: Mapping[str, JsonValue], prefix: str = "") -> Iterator[tuple[str, JsonValue]]:
    """Yield the leaves of nested objects under names joined by dots."""
    for key, inner in value.items():
        if isinstance(inner, dict) and inner:
            yield from flat(inner, f"{prefix}{key}.")
        elif not isinstance(inner, dict):
            yield prefix + key, inner


def _table(batches: Iterable[list[PointRecord]]) -> Table:
    table = Table()
    for batch in batches:
        for point in batch:
            table.see(point)
    return table


def _until(batches: Iterable[list[PointRecord]], last_step: int) -> Iterator[list[PointRecord]]:
    # A running job adds points between the two readings; their columns may be new.
    for batch in batches:
        kept = [point for point in batch if point.step <= last_step]
        if kept:
            yield kept


def _arrays(batch: Sequence[PointRecord], table: Table) -> dict[str, list[Any]]:
    arrays: dict[str, list[Any]] = {
        "step": [point.step for point in batch],
        "attempt": [point.attempt for point in batch],
        "at": [point.at for point in batch],
        "elapsed_s": [point.elapsed_s for point in batch],
    }
    rows = [dict(flat(point.body)) for point in batch]
    for name, kind in table.columns.items():
        arrays[name] = [_typed(row.get(name), kind) for row in rows]
    return arrays


def _kind(value: JsonValue) -> Kind:
    match value:
        case bool():
            return Kind.BOOLEAN
        case int() | float():
            return Kind.NUMBER
        case str() if value in _WORDS:
            return Kind.NUMBER
        case _:
            return Kind.TEXT


def _typed(value: JsonValue, kind: Kind) -> float | bool | str | None:
    match value:
        case None:
            return None
        case bool() if kind is Kind.BOOLEAN:
            return value
        case int() | float() | str() if kind is Kind.NUMBER:
            return from_jsonable(value)
        case _:
            return str(_cell(value))


def _cell(value: JsonValue) -> float | str | None:
    match value:
        case bool():
            return "true" if value else "false"
        case None | int() | float():
            return value
        case str():
            # A spreadsheet would run a text that begins like a formula.
            return f"'{value}" if value.startswith(("=", "+", "@", "\t", "\r")) else value
        case _:
            return to_json(value).decode()


def _taken(text: io.StringIO) -> bytes:
    content = text.getvalue().encode()
    text.seek(0)
    text.truncate()
    return content


class _Sink(io.RawIOBase):
    """What was written and not yet sent."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, piece: Any) -> int:
        content = bytes(piece)
        self._pieces.append(content)
        return len(content)

    def taken(self) -> bytes:
        content = b"".join(self._pieces)
        self._pieces.clear()
        return content
