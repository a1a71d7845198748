"""NPZ files: what their headers claim is checked before anything is allocated."""

import math
import re
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

import numpy as np
from numpy.typing import NDArray

from workers.data.errors import BadData
from workers.data.tables import LONGEST_NAME

MOST_ARRAYS: Final = 64
MOST_DIMENSIONS: Final = 4
_PIECE: Final = 16 << 20
_LONGEST_HEADER: Final = 4096
_DESCR: Final = re.compile(r"'descr'\s*:\s*'([!-&(-~]{2,16})'", re.ASCII)
_ORDER: Final = re.compile(r"'fortran_order'\s*:\s*(True|False)", re.ASCII)
_SHAPE: Final = re.compile(r"'shape'\s*:\s*\(((?:[0-9]{1,18}\s*,\s*)*(?:[0-9]{1,18})?)\s*\)", re.ASCII)
_NUMBERS: Final = re.compile(r"[|<>=]?(?:b1|[iu][1248]|f[248])", re.ASCII)
_ENCRYPTED: Final = 0x1
_SCIPY_SPARSE: Final = {"data", "indices", "indptr", "shape", "format"}


@dataclass(frozen=True)
class ArrayHeader:
    """What an array in an NPZ claims to be; its member's size agrees."""

    name: str
    member: str
    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]
    is_fortran: bool
    offset: int
    """Where its numbers begin in the member."""


def read_headers(path: Path, *, limit_bytes: int) -> list[ArrayHeader]:
    """Return the headers of all arrays, without reading an array.

    Raises:
        BadData: the file is no NPZ, holds objects, or an array claims more than there is.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            _require_members(members, limit_bytes=limit_bytes)
            headers = [_read_header(archive, member) for member in members]
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError) as error:
        raise BadData("The file could not be read as NPZ: it is no zip archive, or damaged.") from error
    lengths = {header.name: header.shape[0] for header in headers}
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{name} has {rows:,}" for name, rows in list(lengths.items())[:5])
        raise BadData(f"All arrays need the same first dimension, the rows: {listed}.")
    if not headers[0].shape[0]:
        raise BadData("The arrays have no rows.")
    return headers


def read_pieces(path: Path, header: ArrayHeader) -> Iterator[NDArray[np.float64]]:
    """The numbers of an array in the order of its member, flat, in pieces, as float64.

    Raises:
        BadData: the member is damaged.
    """
    size = _PIECE // header.dtype.itemsize * header.dtype.itemsize
    left = math.prod(header.shape) * header.dtype.itemsize
    try:
        with zipfile.ZipFile(path) as archive, archive.open(header.member) as stream:
            stream.seek(header.offset)
            while left:
                piece = _read_exactly(stream, min(size, left))
                left -= len(piece)
                yield np.frombuffer(piece, dtype=header.dtype).astype(np.float64)
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
        raise BadData(f"Array {header.name!r} is damaged: its bytes do not match their checksum.") from error


def read_array(path: Path, header: ArrayHeader) -> NDArray[np.float64]:
    """The whole array as float64, in its own shape, C order."""
    flat = np.empty(math.prod(header.shape))
    start = 0
    for piece in read_pieces(path, header):
        flat[start : start + piece.size] = piece
        start += piece.size
    shaped = flat.reshape(header.shape[::-1]).T if header.is_fortran else flat.reshape(header.shape)
    return np.ascontiguousarray(shaped)


def _require_members(members: list[zipfile.ZipInfo], *, limit_bytes: int) -> None:
    if not members:
        raise BadData("The NPZ holds no arrays.")
    if len(members) > MOST_ARRAYS:
        raise BadData(f"The NPZ holds {len(members):,} arrays, at most {MOST_ARRAYS} are taken.")
    unpacked = sum(member.file_size for member in members)
    if unpacked > limit_bytes:
        raise BadData(f"Unpacked, the file needs {unpacked:,} bytes, at most {limit_bytes:,} are taken.")
    names = [member.filename.removesuffix(".npy") for member in members]
    if set(names) >= _SCIPY_SPARSE:
        raise BadData("This is a sparse matrix saved by SciPy: send sparse features as svmlight.")
    for member, name in zip(members, names, strict=True):
        if not member.filename.endswith(".npy"):
            raise BadData(f"{member.filename[:LONGEST_NAME]!r} is no array: an NPZ holds .npy members only.")
        if not name or len(name) > LONGEST_NAME or not name.isprintable():
            raise BadData(f"An array's name needs 1 to {LONGEST_NAME} printable characters.")
        if names.count(name) > 1:
            raise BadData(f"Two arrays are called {name!r}.")
        if member.flag_bits & _ENCRYPTED:
            raise BadData("The NPZ is encrypted.")
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise BadData(f"Array {name!r} is packed in a way that numpy.savez does not use.")


def _read_header(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> ArrayHeader:
    name = member.filename.removesuffix(".npy")
    with archive.open(member) as stream:
        start = stream.read(8)
        width = {b"\x93NUMPY\x01\x00": 2, b"\x93NUMPY\x02\x00": 4}.get(start)
        if width is None:
            raise BadData(f"Array {name!r} is not written as numpy.savez writes arrays of numbers.")
        length = int.from_bytes(_read_exactly(stream, width), "little")
        if length > _LONGEST_HEADER:
            raise BadData(f"Array {name!r} has a header of {length:,} bytes: that is not one of plain numbers.")
        header = _read_exactly(stream, length).decode("latin-1")
    # The header is a Python literal. It is matched, not evaluated: for plain numbers nothing more is needed.
    kind, order, shape_text = (pattern.search(header) for pattern in (_DESCR, _ORDER, _SHAPE))
    if kind is None or order is None or shape_text is None:
        raise BadData(f"Array {name!r} is not one of plain numbers: structured types are not taken.")
    if "O" in kind[1]:
        raise BadData(f"Array {name!r} holds Python objects, which would have to be unpickled: save numbers.")
    if not _NUMBERS.fullmatch(kind[1]):
        raise BadData(f"Array {name!r} is of type {kind[1]}: booleans, integers and floats of up to 64 bits are taken.")
    shape = tuple(int(length) for length in re.findall(r"[0-9]+", shape_text[1]))
    if not 1 <= len(shape) <= MOST_DIMENSIONS:
        raise BadData(f"Array {name!r} has {len(shape)} dimensions: 1 to {MOST_DIMENSIONS} are taken, rows first.")
    if 0 in shape[1:]:
        raise BadData(f"Array {name!r} of shape {shape} holds nothing in a row.")
    dtype: np.dtype[np.generic] = np.dtype(kind[1])
    offset = len(start) + width + len(header)
    claimed = math.prod(shape) * dtype.itemsize
    if claimed + offset != member.file_size:
        raise BadData(
            f"Array {name!r} claims {claimed:,} bytes of numbers, its member holds {member.file_size - offset:,}."
        )
    return ArrayHeader(name, member.filename, shape, dtype, order[1] == "True", offset)


def _read_exactly(stream: IO[bytes], size: int) -> bytes:
    pieces = []
    while size:
        piece = stream.read(size)
        if not piece:
            raise EOFError
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)
