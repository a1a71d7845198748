"""CSV and Parquet: rows in batches, one Arrow array a column."""

import codecs
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as papq

from workers.data.errors import BadData

MOST_COLUMNS: Final = 20_000
LONGEST_NAME: Final = 256
_BLOCK: Final = 16 << 20
_TEXT_PIECE: Final = 1 << 20


def csv_names(path: Path) -> list[str]:
    """The names in a CSV's header.

    Raises:
        BadData: the file is not UTF-8 text, or has no usable header.
    """
    _require_text(path)
    try:
        with pacsv.open_csv(path, read_options=_READ, parse_options=_PARSE) as reader:
            names = list(reader.schema.names)
    except pa.ArrowInvalid as error:
        raise _csv_refusal(error) from error
    _require_names(names)
    if len(names) == 1 and re.search(r"[;\t|]", names[0]):
        raise BadData("The header has no comma: separate the columns by commas, not by semicolons, tabs or bars.")
    return names


def csv_batches(path: Path, names: Sequence[str], *, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """The rows of a CSV, every one of `columns` as strings, just as they stand in the file.

    Raises:
        BadData: a row has more or fewer values than the header.
    """
    convert = pacsv.ConvertOptions(
        column_types={name: pa.string() for name in names},
        include_columns=list(columns),
        strings_can_be_null=False,
        quoted_strings_can_be_null=False,
    )
    try:
        with pacsv.open_csv(path, read_options=_READ, parse_options=_PARSE, convert_options=convert) as reader:
            yield from reader
    except pa.ArrowInvalid as error:
        raise _csv_refusal(error) from error


_READ: Final = pacsv.ReadOptions(use_threads=False, block_size=_BLOCK)
_PARSE: Final = pacsv.ParseOptions(delimiter=",", newlines_in_values=True)


def _require_text(path: Path) -> None:
    decoder = codecs.getincrementaldecoder("utf-8")()
    line, quotes = 1, 0
    with path.open("rb") as stream:
        while True:
            piece = stream.read(_TEXT_PIECE)
            nul = piece.find(b"\0")
            if nul >= 0:
                line += piece.count(b"\n", 0, nul)
                raise BadData(f"Line {line} has a NUL byte: this is no text, or text in UTF-16; save it as UTF-8.")
            try:
                decoder.decode(piece, final=not piece)
            except UnicodeDecodeError as error:
                line += error.object.count(b"\n", 0, error.start)
                raise BadData(f"Line {line} is not UTF-8 text: save the file as UTF-8.") from error
            if not piece:
                break
            line += piece.count(b"\n")
            quotes += piece.count(b'"')
    # The parser would take all that follows an open quote for one value, and drop those rows without a word.
    if quotes % 2:
        raise BadData("A quote is not closed: the file has an odd number of them; within a value they are doubled.")


def _require_names(names: Sequence[str]) -> None:
    if len(names) > MOST_COLUMNS:
        raise BadData(
            f"The file has {len(names):,} columns, at most {MOST_COLUMNS:,} are taken: "
            "send the features as one array in an NPZ, or as svmlight."
        )
    seen: set[str] = set()
    for place, name in enumerate(names, start=1):
        if not name:
            raise BadData(f"Column {place} has no name: the first row must name every column.")
        if len(name) > LONGEST_NAME:
            raise BadData(f"The name of column {place} has {len(name)} characters, at most {LONGEST_NAME} are taken.")
        if "\0" in name:
            raise BadData(f"The name of column {place} has a NUL character.")
        if name in seen:
            raise BadData(f"Two columns are called {name!r}: give every column a name of its own.")
        seen.add(name)


def _csv_refusal(error: pa.ArrowInvalid) -> BadData:
    text = str(error)
    if "Empty CSV" in text:
        return BadData("The file has no rows below its header: a header and at least one row are needed.")
    if match := re.search(r"Row #(\d+): Expected (\d+) columns, got (\d+)", text):
        row, expected, got = (int(group) for group in match.groups())
        return BadData(
            f"Row {row:,} (the header is row 1) has {got:,} values where the header has {expected:,}: "
            "a comma within a value needs quotes around it."
        )
    if "straddling" in text:
        return BadData("A row is longer than 16 MiB, or a quote is not closed.")
    return BadData("The file could not be read as CSV: is it comma-separated text with a header?")


def open_parquet(path: Path, *, limit_bytes: int) -> papq.ParquetFile:
    """Open a Parquet file whose metadata promise no more than `limit_bytes` of values.

    Raises:
        BadData: it is no Parquet file, is too large unpacked, or has columns that cannot be used.
    """
    try:
        file = papq.ParquetFile(path, memory_map=False, pre_buffer=False)
        metadata, schema = file.metadata, file.schema_arrow
        names = list(schema.names)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError, UnicodeDecodeError) as error:
        raise BadData("The file could not be read as Parquet.") from error
    _require_names(names)
    for column in schema:
        if not (is_number(column.type) or pa.types.is_boolean(column.type) or is_text(column.type)):
            raise BadData(
                f"Column {column.name!r} is of type {column.type}: numbers, booleans and texts are taken; "
                "write vectors as one column each."
            )
    if metadata.num_rows == 0 or metadata.num_columns == 0:
        raise BadData("The file has no rows.")
    # A run-length code may stand for any number of rows: the rows are what count, not only the bytes.
    packed = sum(metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups))
    unpacked = max(packed, 8 * metadata.num_rows * metadata.num_columns)
    if unpacked > limit_bytes:
        raise BadData(f"Unpacked, the file needs {unpacked:,} bytes, at most {limit_bytes:,} are taken.")
    return file


def parquet_batches(file: papq.ParquetFile, *, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """The rows of a Parquet file.

    Raises:
        BadData: a page is damaged.
    """
    rows = max(1, min(65_536, _BLOCK // (8 * max(1, len(columns)))))
    try:
        for batch in file.iter_batches(batch_size=rows, columns=list(columns), use_threads=False):
            # Parquet takes any bytes for a text; nothing behind this does.
            batch.validate(full=True)
            yield batch
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        raise BadData("The Parquet file is damaged: its rows could not be read.") from error


def is_number(kind: pa.DataType) -> bool:
    """Whether an Arrow type holds numbers."""
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))


def is_text(kind: pa.DataType) -> bool:
    """Whether an Arrow type holds texts, spelled out or by their number in a dictionary."""
    if pa.types.is_dictionary(kind):
        return is_text(kind.value_type)
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))
