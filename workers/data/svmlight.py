"""svmlight (libsvm) files: a label and `index:value` pairs a line, read in blocks of whole lines."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from workers.data.columns import Numbers
from workers.data.errors import BadData

LARGEST_INDEX: Final = 2**31 - 2
_BLOCK: Final = 8 << 20
_LONGEST_LINE: Final = 64 << 20


@dataclass(frozen=True)
class Block:
    """Rows in compressed sparse row form; indices are as in the file, not yet counted from zero."""

    labels: Numbers
    row_lengths: NDArray[np.int64]
    indices: NDArray[np.int64]
    values: Numbers


def read_blocks(path: Path) -> Iterator[Block]:
    """The rows of the file, in order; comments (`#`) and blank lines are left out.

    Raises:
        BadData: a line is not `label index:value …` with growing indices; the message names its number.
    """
    line = 1
    for piece in _whole_lines(path):
        count = piece.count(b"\n") + (not piece.endswith(b"\n"))
        block = _parse(piece, first_line=line)
        if block.labels.size:
            yield block
        line += count


def _whole_lines(path: Path) -> Iterator[bytes]:
    rest = b""
    with path.open("rb") as stream:
        while piece := stream.read(_BLOCK):
            end = piece.rfind(b"\n") + 1
            if not end:
                rest += piece
                if len(rest) > _LONGEST_LINE:
                    raise BadData("A line is longer than 64 MiB: is this svmlight text?")
                continue
            yield rest + piece[:end]
            rest = piece[end:]
    if rest:
        yield rest


def _parse(piece: bytes, *, first_line: int) -> Block:
    try:
        text = piece.decode("ascii")
    except UnicodeDecodeError as error:
        line = first_line + piece.count(b"\n", 0, error.start)
        raise BadData(f"Line {line:,} is not plain text: svmlight is `label index:value …` in ASCII.") from error
    lines = pc.split_pattern(pa.array([text], pa.large_string()), "\n").flatten()
    if "#" in text:
        lines = pc.replace_substring_regex(lines, "#.*$", "")
    lines = pc.ascii_trim_whitespace(lines)
    is_used = pc.not_equal(lines, "")
    numbers = np.flatnonzero(np.asarray(is_used.to_numpy(zero_copy_only=False))) + first_line
    if not numbers.size:
        return Block(np.empty(0), np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0))
    tokens_of = pc.ascii_split_whitespace(lines.filter(is_used))
    starts = np.asarray(tokens_of.offsets.to_numpy(), dtype=np.int64)
    tokens = tokens_of.flatten()
    starts = starts - starts[0]
    is_label = np.zeros(len(tokens), dtype=bool)
    is_label[starts[:-1]] = True

    def line_of(token: int) -> int:
        return int(numbers[np.searchsorted(starts, token, side="right") - 1])

    label_at = np.flatnonzero(is_label)
    label_tokens = tokens.take(pa.array(label_at))
    labels = _floats(label_tokens)
    if labels is None:
        bad = _first_bad(label_tokens)
        raise BadData(
            f"Line {line_of(int(label_at[bad])):,} begins with no number: svmlight is `label index:value …`, one label."
        )

    pair_at = np.flatnonzero(~is_label)
    pairs = tokens.take(pa.array(pair_at))
    is_pair = _bools(pc.match_substring_regex(pairs, r"^[0-9]{1,10}:[^:]+$"))
    if not is_pair.all():
        bad = int(pair_at[np.flatnonzero(~is_pair)[0]])
        what = "a query id, which no model here uses" if tokens[bad].as_py().startswith("qid:") else "no index:value"
        raise BadData(f"Line {line_of(bad):,} has {what}: svmlight is `label index:value …`, indices 0 or 1 upward.")
    halves = pc.split_pattern(pairs, ":").flatten()
    indices = np.asarray(pc.cast(halves.take(pa.array(np.arange(0, len(halves), 2))), pa.int64()).to_numpy())
    value_tokens = halves.take(pa.array(np.arange(1, len(halves), 2)))
    values = _floats(value_tokens)
    if values is None:
        bad = int(pair_at[_first_bad(value_tokens)])
        raise BadData(f"Line {line_of(bad):,} has a value that is no number.")
    if indices.size and indices.max() > LARGEST_INDEX:
        bad = int(pair_at[int(np.argmax(indices > LARGEST_INDEX))])
        raise BadData(f"Line {line_of(bad):,} has a feature index above {LARGEST_INDEX:,}.")
    if indices.size:
        # Within a row indices must grow; a pair right after a label begins a row.
        begins = is_label[pair_at - 1]
        falls = np.flatnonzero((np.diff(indices, prepend=-1) <= 0) & ~begins)
        if falls.size:
            raise BadData(
                f"Line {line_of(int(pair_at[falls[0]])):,} has feature indices that do not grow: "
                "each feature once, in increasing order."
            )
    return Block(labels=labels, row_lengths=np.diff(starts) - 1, indices=indices.astype(np.int64), values=values)


def _floats(tokens: pa.Array) -> Numbers | None:
    try:
        return np.asarray(pc.cast(tokens, pa.float64()).to_numpy(zero_copy_only=False), dtype=np.float64)
    except pa.ArrowInvalid:
        return None


def _first_bad(tokens: pa.Array) -> int:
    for place, token in enumerate(tokens):
        if _floats(pa.array([token.as_py()])) is None:
            return place
    raise AssertionError("called only for tokens of which one is bad")


def _bools(array: pa.Array) -> NDArray[np.bool_]:
    return np.asarray(array.to_numpy(zero_copy_only=False), dtype=np.bool_)
