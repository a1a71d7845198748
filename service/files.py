"""Where the bytes lie: datasets, and the files that jobs make; a folder, or any S3-like store by its URL."""

import hashlib
import os
import re
import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, Final, final
from urllib.parse import unquote, urlsplit

import obstore
import obstore.exceptions
import obstore.store

from service.errors import FileMissing

Source = Path | bytes

CHANGED: Final = "The file store no longer holds this file as it was stored: its bytes have changed."

_CHUNK: Final = 1 << 20
_NAME: Final = r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}"
_DATASET: Final = re.compile(
    r"datasets/(?P<folder>[0-9a-f]{2})/(?P<sha256>(?P=folder)[0-9a-f]{62})(?:-[0-9a-f]{16})?", re.ASCII
)
_JOB_FILE: Final = re.compile(rf"jobs/job_[0-9a-z]{{1,64}}/{_NAME}", re.ASCII)


def new_dataset_key(sha256: str) -> str:
    """A key for a dataset's bytes: their own hash, and something that no other key has.

    A key is used once: whoever removes a file that nobody needs may be late without harm, for the same bytes that
    come again lie elsewhere.
    """
    return checked_key(f"datasets/{sha256[:2]}/{sha256}-{secrets.token_hex(8)}")


def job_key(job_id: str, name: str) -> str:
    """The key of a file that a job made."""
    return checked_key(f"jobs/{job_id}/{name}")


def checked_key(key: str) -> str:
    """Return `key` if it is one that this service makes; what a user calls a thing never becomes a path.

    Raises:
        ValueError: for every other key.
    """
    if _DATASET.fullmatch(key) or _JOB_FILE.fullmatch(key):
        return key
    raise ValueError("not a key of this file store: datasets/ab/abcdef… and jobs/job_…/name are")


def sha256_of(source: Source) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    if isinstance(source, bytes):
        return hashlib.sha256(source).hexdigest()
    with source.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


class _AbstractBackend(ABC):
    """A place for bytes under keys that were already checked. An absent key raises `FileNotFoundError`."""

    @abstractmethod
    def put(self, key: str, source: Source, *, expected: str | None) -> tuple[str, int]: ...

    @abstractmethod
    def open_range(self, key: str, start: int, end: int) -> Generator[bytes]: ...

    @abstractmethod
    def size(self, key: str) -> int: ...

    @abstractmethod
    def path(self, key: str) -> Path | None: ...

    @abstractmethod
    def delete(self, keys: list[str]) -> None: ...

    @abstractmethod
    def keys(self, prefix: str) -> Iterator[str]: ...

    @abstractmethod
    def tidy(self) -> None: ...

    @abstractmethod
    def ping(self) -> None: ...


@final
class FileStore:
    """A file store by its URL: `file:///folder`, or `s3://bucket/prefix`, `memory://`, … through obstore.

    A file is there in full or not at all, whatever happens while it is written, and a second `put` to a key
    replaces the first. Credentials of remote stores come from the environment (`AWS_*`, …), as their own tools
    read them. A store that cannot be reached, or a disk that is full, raises `OSError`.
    """

    def __init__(self, url: str) -> None:
        """Open the store at `url`; a folder is made if it is not there.

        Raises:
            ValueError: the URL names no store.
        """
        parts = urlsplit(url)
        if parts.scheme == "file":
            if parts.netloc not in ("", "localhost") or not parts.path.startswith("/"):
                raise ValueError("a folder's URL has three slashes and an absolute path: file:///var/lib/hyperdial")
            self._backend: _AbstractBackend = _Folder(Path(unquote(parts.path)))
        else:
            try:
                self._backend = _ObjectStore(url)
            except obstore.exceptions.BaseError as error:
                raise ValueError(f"no file store has the URL scheme {parts.scheme!r}: take file:///… or s3://…") from (
                    error
                )

    def put(self, key: str, source: Source) -> tuple[str, int]:
        """Store the bytes of `source`, durably, and return their SHA-256 and their number.

        Raises:
            ValueError: the key is not of this store, or names other content than `source` has.
        """
        match = _DATASET.fullmatch(checked_key(key))
        return self._backend.put(key, source, expected=match["sha256"] if match else None)

    def open_range(self, key: str, start: int = 0, end: int | None = None) -> Generator[bytes]:
        """Return the bytes from `start` up to, not with, `end`, in pieces; absence is noticed here, not later.

        Whoever does not read to the end closes what is returned.

        Raises:
            FileMissing: nothing is stored under `key`.
            ValueError: the range does not lie within the file.
        """
        size = self.size(key)
        end = size if end is None else end
        if not 0 <= start <= end <= size:
            raise ValueError(f"bytes {start} to {end} do not lie within a file of {size}")
        try:
            return self._backend.open_range(key, start, end)
        except FileNotFoundError:
            raise FileMissing from None

    def size(self, key: str) -> int:
        """How many bytes lie under `key`.

        Raises:
            FileMissing: none do.
        """
        try:
            return self._backend.size(checked_key(key))
        except FileNotFoundError:
            raise FileMissing from None

    @property
    def is_local(self) -> bool:
        """Whether the files lie in a folder of this machine, so that nobody needs copies of them."""
        return isinstance(self._backend, _Folder)

    def fetch(self, key: str, folder: Path, *, sha256: str) -> Path:
        """Return a path on this machine to the bytes, for reading only; its content has been checked.

        Args:
            key: what is wanted.
            folder: what a remote store downloads to; the folder store answers with its own file.
            sha256: of the bytes.

        Raises:
            FileMissing: nothing is stored under `key`, or not what was once stored.
        """
        checked_hash(sha256)
        try:
            path = self._backend.path(checked_key(key))
        except FileNotFoundError:
            raise FileMissing from None
        if path is None:
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / sha256
            with path.open("wb") as target:
                found = self.download(key, target)
        else:
            found = sha256_of(path)
        if found != sha256:
            raise FileMissing(CHANGED)
        return path

    def download(self, key: str, target: BinaryIO) -> str:
        """Write the bytes to `target`, and return their SHA-256.

        Raises:
            FileMissing: nothing is stored under `key`.
        """
        digest = hashlib.sha256()
        for piece in self.open_range(key):
            digest.update(piece)
            target.write(piece)
        return digest.hexdigest()

    def delete(self, keys: Iterable[str]) -> None:
        """Remove what lies under `keys`; one that is gone already is no error."""
        self._backend.delete([checked_key(key) for key in keys])

    def keys(self, prefix: str = "") -> Iterator[str]:
        """Every key that begins with `prefix`, in no order."""
        return self._backend.keys(prefix)

    def tidy(self) -> None:
        """Remove what processes that died have left half written, a day later; nothing that has a key."""
        self._backend.tidy()

    def ping(self) -> None:
        """Ask the store for something small.

        Raises:
            OSError: it cannot be reached or not be written to.
        """
        self._backend.ping()


@final
class _Folder(_AbstractBackend):
    """Files below one folder. Each is written aside, synced and renamed."""

    def __init__(self, root: Path) -> None:
        root.mkdir(parents=True, exist_ok=True)
        self._root = root.resolve()
        self._aside = self._root / ".aside"
        self._aside.mkdir(exist_ok=True)
        self.tidy()

    def put(self, key: str, source: Source, *, expected: str | None) -> tuple[str, int]:
        path = self._path(key)
        aside = self._aside / secrets.token_hex(16)
        try:
            with aside.open("xb") as target:
                sha256, size_bytes = _copy(source, target)
                target.flush()
                os.fsync(target.fileno())
            _require(sha256, expected)
            self._rename(aside, path)
        finally:
            aside.unlink(missing_ok=True)
        _sync(path.parent)  # without it a power cut may forget the rename
        return sha256, size_bytes

    def open_range(self, key: str, start: int, end: int) -> Generator[bytes]:
        stream = self._path(key).open("rb")

        def pieces() -> Generator[bytes]:
            with stream:
                yield b""
                yield from _pieces(stream, start, end)

        opened = pieces()
        next(opened)  # closing a generator that was never begun would leave the file open
        return opened

    def size(self, key: str) -> int:
        return self._path(key).stat().st_size

    def path(self, key: str) -> Path | None:
        path = self._path(key)
        path.stat()
        return path

    def delete(self, keys: list[str]) -> None:
        for key in keys:
            path = self._path(key)
            path.unlink(missing_ok=True)
            try:
                path.parent.rmdir()
            except OSError:
                continue  # other files are in it, or it is gone

    def keys(self, prefix: str) -> Iterator[str]:
        # From the deepest folder that the prefix names: a job's files are found without looking at all others.
        for folder, folders, names in os.walk(self._root / prefix.rpartition("/")[0]):
            folders[:] = [name for name in folders if not name.startswith(".")]
            for name in names:
                key = (Path(folder) / name).relative_to(self._root).as_posix()
                if key.startswith(prefix):
                    yield key

    def tidy(self) -> None:
        _remove_abandoned(self._aside)

    def ping(self) -> None:
        probe = self._aside / secrets.token_hex(16)
        probe.write_bytes(b"")
        probe.unlink()

    def _rename(self, aside: Path, path: Path) -> None:
        for is_last in (False, False, True):
            for folder in (path.parent.parent, path.parent):
                if not folder.is_dir():
                    folder.mkdir(parents=True, exist_ok=True)
                    _sync(folder.parent)
            try:
                aside.replace(path)
            except FileNotFoundError:  # a deletion has just removed the empty folder
                if is_last:
                    raise
            else:
                return

    def _path(self, key: str) -> Path:
        path = (self._root / key).resolve()
        if not path.is_relative_to(self._root):
            raise ValueError("the key leads out of the file store")
        return path


@final
class _ObjectStore(_AbstractBackend):
    """Objects of a store that obstore knows; an object appears when its upload is complete."""

    def __init__(self, url: str) -> None:
        self._store = obstore.store.from_url(url)

    def put(self, key: str, source: Source, *, expected: str | None) -> tuple[str, int]:
        sha256 = sha256_of(source)
        _require(sha256, expected)
        size_bytes = len(source) if isinstance(source, bytes) else source.stat().st_size
        with _reachable():
            obstore.put(self._store, key, source)
        return sha256, size_bytes

    def open_range(self, key: str, start: int, end: int) -> Generator[bytes]:
        with _reachable():
            # It knows no empty ranges.
            answer = obstore.get(self._store, key, options={"range": (start, end)}) if start < end else None
        return self._stream(answer)

    def _stream(self, answer: "obstore.GetResult | None") -> Generator[bytes]:
        if answer is None:
            return
        with _reachable():
            for piece in answer.stream(min_chunk_size=_CHUNK):
                yield bytes(piece)

    def size(self, key: str) -> int:
        with _reachable():
            return obstore.head(self._store, key)["size"]

    def path(self, key: str) -> Path | None:  # noqa: ARG002
        return None

    def delete(self, keys: list[str]) -> None:
        with _reachable():
            for key in keys:
                try:
                    obstore.delete(self._store, key)
                except FileNotFoundError:
                    continue

    def keys(self, prefix: str) -> Iterator[str]:
        # obstore matches whole path segments, a key's prefix may end within one.
        segments = prefix.rpartition("/")[0]
        with _reachable():
            for page in obstore.list(self._store, prefix=segments or None):
                yield from (entry["path"] for entry in page if entry["path"].startswith(prefix))

    def tidy(self) -> None:
        """Nothing: parts of an upload that was broken off are seen by the store only, and removed by its own rules."""

    def ping(self) -> None:
        with _reachable():
            next(iter(obstore.list(self._store, chunk_size=1)), None)


class _reachable:  # noqa: N801  (reads as a statement: with _reachable())
    """Translates a remote store's failures into `OSError`; absence stays `FileNotFoundError`."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, _kind: type[BaseException] | None, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, obstore.exceptions.BaseError) and not isinstance(error, OSError):
            raise OSError("the file store could not be reached or refused the request") from error


def _copy(source: Source, target: BinaryIO) -> tuple[str, int]:
    digest = hashlib.sha256()
    size_bytes = 0
    for piece in [source] if isinstance(source, bytes) else _pieces(source.open("rb"), 0, None):
        digest.update(piece)
        size_bytes += target.write(piece)
    return digest.hexdigest(), size_bytes


def _pieces(stream: BinaryIO, start: int, end: int | None) -> Iterator[bytes]:
    with stream:
        stream.seek(start)
        left = end - start if end is not None else None
        while piece := stream.read(_CHUNK if left is None else min(_CHUNK, left)):
            yield piece
            if left is not None:
                left -= len(piece)


def _require(sha256: str, expected: str | None) -> None:
    if expected is not None and sha256 != expected:
        raise ValueError("a dataset's key is the SHA-256 of its bytes; these bytes have another")


def checked_hash(sha256: str) -> str:
    """Return `sha256` if it is a hash, so that it may become a name on the disk.

    Raises:
        ValueError: it is none.
    """
    if not re.fullmatch(r"[0-9a-f]{64}", sha256, re.ASCII):
        raise ValueError("a SHA-256 is 64 hexadecimal digits")
    return sha256


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_abandoned(aside: Path, *, older_than: float = 86_400.0) -> None:
    # What a crash left half written. A day: no upload takes so long, and others may be writing right now.
    for path in aside.iterdir():
        try:
            if time.time() - path.stat().st_mtime > older_than:
                path.unlink()
        except FileNotFoundError:
            continue
