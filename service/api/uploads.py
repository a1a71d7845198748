"""Receives a multipart form with one file: to disk while it is hashed, never held in memory, never over its limit."""

import hashlib
import tempfile
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final, final

from anyio import to_thread
from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header
from starlette.requests import Request

from service.api.refusals import (
    BodyTooLarge,
    Fault,
    FilesUnavailable,
    InvalidRequest,
    MalformedBody,
    UnsupportedMediaType,
)

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

FORM_ALLOWANCE_BYTES: Final = 64 * 2**10
"""What a form may hold beside its file: boundaries, headers, short fields."""

_PIECE: Final = 2**20
_LONGEST_FIELD: Final = 4096
_MOST_PARTS: Final = 16
_ABANDONED_SECONDS: Final = 86_400.0
_PREFIX: Final = "upload-"


@dataclass(frozen=True)
class Upload:
    """A form that has arrived."""

    path: Path
    """The file, until the end of the context that it was received in."""
    filename: str
    sha256: str
    size_bytes: int
    fields: Mapping[str, str]


@asynccontextmanager
async def received(request: Request, *, folder: Path, limit_bytes: int, known: frozenset[str]) -> AsyncIterator[Upload]:
    """Receive a form whose file is in the field `file`.

    Args:
        request: whose body has not been read yet.
        folder: where the file is put meanwhile.
        limit_bytes: of the file.
        known: names of the other fields that there may be.

    Raises:
        UnsupportedMediaType: it is no multipart form.
        MalformedBody: it says that it is one.
        InvalidRequest: a field is missing, unknown or said twice.
        BodyTooLarge: the file grew over the limit; the rest of it was not read.
        FilesUnavailable: the disk is full.
    """
    kind, options = parse_options_header(request.headers.get("content-type"))
    if kind != b"multipart/form-data":
        raise UnsupportedMediaType("send a form of the content type `multipart/form-data`")
    if not options.get(b"boundary"):
        raise MalformedBody("the content type names no boundary")
    path = await _make_aside(folder)
    try:
        with path.open("wb") as target:
            form = _Form(target, limit_bytes=limit_bytes, known=known | {"file"})
            await _feed(request, form, options[b"boundary"])
        yield form.upload(path)
    finally:
        path.unlink(missing_ok=True)


async def _feed(request: Request, form: "_Form", boundary: bytes) -> None:
    try:
        parser = MultipartParser(boundary, form.callbacks)
        async for chunk in request.stream():
            parser.write(chunk)
            if form.waiting_bytes >= _PIECE:
                await to_thread.run_sync(form.write_out)
        parser.finalize()
        await to_thread.run_sync(form.write_out)
    except FormParserError as error:
        raise MalformedBody("the body is no multipart form, or was cut off") from error
    except OSError as error:
        raise FilesUnavailable("the file could not be kept: the disk may be full") from error
    if not form.is_complete:
        raise MalformedBody("the form was cut off before its last boundary")


async def _make_aside(folder: Path) -> Path:
    def make() -> Path:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        remove_abandoned(folder)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=_PREFIX, delete=False) as file:
            return Path(file.name)

    try:
        return await to_thread.run_sync(make)
    except OSError as error:
        raise FilesUnavailable("the file could not be kept: the disk may be full") from error


def remove_abandoned(folder: Path) -> None:
    """Remove what uploads left behind when their process was killed; nothing that may still be arriving."""
    for path in folder.glob(f"{_PREFIX}*"):
        try:
            if time.time() - path.stat().st_mtime > _ABANDONED_SECONDS:
                path.unlink()
        except FileNotFoundError:
            continue


@final
class _Form:
    """Takes a form from the parser, a callback at a time."""

    def __init__(self, target: BinaryIO, *, limit_bytes: int, known: frozenset[str]) -> None:
        self._target = target
        self._limit_bytes = limit_bytes
        self._known = known
        self._digest = hashlib.sha256()
        self._size_bytes = 0
        self._waiting: list[bytes] = []
        self._fields: dict[str, bytearray] = {}
        self._parts = 0
        self._name = ""
        self._filename: str | None = None
        self._header = bytearray()
        self._value = bytearray()
        self._disposition = b""
        self.waiting_bytes = 0
        self.is_complete = False

    @property
    def callbacks(self) -> "MultipartCallbacks":
        return {
            "on_part_begin": self._begin,
            "on_part_data": self._data,
            "on_header_field": self._header_field,
            "on_header_value": self._header_value,
            "on_header_end": self._header_end,
            "on_headers_finished": self._headers_finished,
            "on_end": self._end,
        }

    def write_out(self) -> None:
        """Hash and write what has arrived; blocks, hence called in a thread."""
        pieces = b"".join(self._waiting)
        self._waiting.clear()
        self.waiting_bytes = 0
        self._digest.update(pieces)
        self._target.write(pieces)

    def upload(self, path: Path) -> Upload:
        if self._filename is None:
            raise InvalidRequest([Fault("is required: the file's bytes, with a filename", pointer="/file")])
        return Upload(
            path=path,
            filename=self._filename,
            sha256=self._digest.hexdigest(),
            size_bytes=self._size_bytes,
            fields={name: _text(name, bytes(value)) for name, value in self._fields.items()},
        )

    def _begin(self) -> None:
        self._parts += 1
        if self._parts > _MOST_PARTS:
            raise MalformedBody("the form has too many parts")
        self._disposition = b""

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = bytes(self._value)
        self._header.clear()
        self._value.clear()

    def _headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        self._name = options.get(b"name", b"").decode("utf-8", "replace")
        if self._name not in self._known:
            listed = ", ".join(sorted(self._known))
            raise InvalidRequest([Fault(f"a field of the form is not known here; there are: {listed}", pointer="")])
        if self._name == "file":
            if self._filename is not None:
                raise InvalidRequest([Fault("is there twice: upload one file at a time", pointer="/file")])
            self._filename = options.get(b"filename", b"").decode("utf-8", "replace")
        elif self._name in self._fields:
            raise InvalidRequest([Fault("is there twice", pointer=f"/{self._name}")])
        else:
            self._fields[self._name] = bytearray()

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._name != "file":
            value = self._fields[self._name]
            value += data[start:end]
            if len(value) > _LONGEST_FIELD:
                raise InvalidRequest([Fault(f"may have at most {_LONGEST_FIELD:,} bytes", pointer=f"/{self._name}")])
            return
        self._size_bytes += end - start
        if self._size_bytes > self._limit_bytes:
            raise BodyTooLarge(self._limit_bytes)
        self._waiting.append(data[start:end])
        self.waiting_bytes += end - start

    def _end(self) -> None:
        self.is_complete = True


def _text(name: str, value: bytes) -> str:
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        raise InvalidRequest([Fault("must be UTF-8 text", pointer=f"/{name}")]) from None
