"""Copies of remote files on this machine's disk, shared by all processes here: held while in use, else pruned.

Every copy is named by its content. Whoever uses one has a shared lock on it (flock, which the kernel gives back when
a process dies), and only what can be locked exclusively is removed. A second lock, beside the copy, lets one process
at a time download or remove it. A lock on a file that has been unlinked meanwhile says nothing and is taken again.
"""

import contextlib
import errno
import fcntl
import logging
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final, final

from service.errors import FileMissing
from service.files import CHANGED, FileStore, checked_hash, sha256_of
from service.settings import Settings

log = logging.getLogger(__name__)

_COPY: Final = re.compile(r"[0-9a-f]{64}", re.ASCII)
_LOCK: Final = ".lock-"
_PART: Final = ".part-"


@final
class FileCache:
    """The copies in one folder."""

    def __init__(self, files: FileStore, folder: Path, *, most_bytes: int, most_days: float) -> None:
        """Take where files come from and where copies lie; nothing is made yet.

        Args:
            files: the file store. One that is itself a folder needs no copies, and none are made.
            folder: of the copies; other processes may use it too.
            most_bytes: copies together, unless more are in use.
            most_days: since a copy was last used.
        """
        self._files = files
        self._folder = folder
        self._most_bytes = most_bytes
        self._most_seconds = 86_400.0 * most_days

    @contextlib.contextmanager
    def held(self, key: str, *, sha256: str) -> Iterator[Path]:
        """Give a path to a file's bytes, for reading only; it is there, and stays, until the context ends.

        Raises:
            FileMissing: the store does not hold it any more, or not as it was stored.
            OSError: the store cannot be reached, or this disk is full.
        """
        if self._files.is_local:
            yield self._files.fetch(key, self._folder, sha256=sha256)
            return
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        copy = self._folder / checked_hash(sha256)
        descriptor = self._opened(copy)
        if descriptor is None:
            descriptor = self._downloaded(key, copy)
        try:
            os.utime(descriptor)  # it was used now: what was used longest ago goes first
            yield copy
            os.utime(descriptor)
        finally:
            os.close(descriptor)

    def prune(self, *, room_bytes: int = 0) -> None:
        """Remove what is too old, and then what was used longest ago until all fits; nothing that is in use.

        Args:
            room_bytes: that are about to be needed besides.
        """
        copies: list[tuple[float, int, Path]] = []
        for path in self._folder.glob("*"):
            if path.name.startswith(_PART):
                self._remove_abandoned(path)
            elif _COPY.fullmatch(path.name):
                with contextlib.suppress(FileNotFoundError):  # another process removed it just now
                    stat = path.stat()
                    copies.append((stat.st_mtime, stat.st_size, path))
        left_bytes = room_bytes + sum(size for _, size, _ in copies)
        for used_at, size_bytes, copy in sorted(copies):
            if left_bytes <= self._most_bytes and time.time() - used_at <= self._most_seconds:
                break
            if self._removed(copy):
                left_bytes -= size_bytes

    def _opened(self, copy: Path) -> int | None:
        """Return a descriptor with a shared lock on a copy that is whole; None if there is none."""
        descriptor = _locked(copy, fcntl.LOCK_SH)
        if descriptor is not None and sha256_of(copy) != copy.name:
            log.warning("A damaged copy was found; it will be downloaded again", extra={"sha256": copy.name})
            os.close(descriptor)
            return None
        return descriptor

    def _downloaded(self, key: str, copy: Path) -> int:
        """Return a descriptor with a shared lock on a copy that was not there, and now is."""
        with _alone_with(copy, wait=True):
            descriptor = self._opened(copy)  # while this process waited, another one has downloaded it
            if descriptor is not None:
                return descriptor
            self.prune(room_bytes=self._files.size(key))
            part = copy.with_name(_PART + copy.name)
            descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_SH)  # before it has the name under which others may remove it
                with open(descriptor, "wb", closefd=False) as target:
                    found = self._files.download(key, target)
                if found != copy.name:
                    raise FileMissing(CHANGED)
                part.replace(copy)
            except BaseException as error:
                os.close(descriptor)
                part.unlink(missing_ok=True)
                if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                    self.prune(room_bytes=self._most_bytes)  # all that nobody uses, for the next try
                raise
            return descriptor

    def _removed(self, copy: Path) -> bool:
        """Remove a copy; False if it is in use, or being downloaded anew."""
        with _alone_with(copy, wait=False) as is_alone:
            if not is_alone:
                return False
            try:
                descriptor = _locked(copy, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            if descriptor is not None:
                copy.unlink(missing_ok=True)
                os.close(descriptor)
            return True

    def _remove_abandoned(self, part: Path) -> None:
        """Remove what a process had downloaded until it died."""
        with _alone_with(part.with_name(part.name.removeprefix(_PART)), wait=False) as is_alone:
            if is_alone:
                part.unlink(missing_ok=True)


def make_cache(files: FileStore, settings: Settings) -> FileCache:
    """Return the cache of datasets in the data folder."""
    return FileCache(files, settings.data_dir / "cache", most_bytes=settings.cache_bytes, most_days=settings.cache_days)


@contextlib.contextmanager
def _alone_with(copy: Path, *, wait: bool) -> Iterator[bool]:
    """Be the only process that downloads or removes a copy; gives False if another is and this one does not wait."""
    lock = copy.with_name(_LOCK + copy.name)
    try:
        descriptor = _locked(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB), flags=os.O_CREAT)
    except BlockingIOError:
        yield False
        return
    assert descriptor is not None  # noqa: S101  (it is made if it is not there)
    try:
        yield True
    finally:
        lock.unlink(missing_ok=True)  # while it is held: who waits for it finds that it is gone, and makes a new one
        os.close(descriptor)


def _locked(path: Path, operation: int, *, flags: int = 0) -> int | None:
    """Open and lock a file, and return the descriptor; None if it is not there.

    Raises:
        BlockingIOError: another process has it, and `operation` does not wait.
    """
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | flags, 0o600)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(descriptor, operation)
        except BaseException:
            os.close(descriptor)
            raise
        if os.fstat(descriptor).st_nlink:
            return descriptor
        os.close(descriptor)  # it was removed while this process waited
