"""A copy of a SQLite database, made before its tables are changed."""

import contextlib
import glob
import os
import sqlite3
from pathlib import Path
from typing import Final
from urllib.parse import quote

_KEPT: Final = 2


class BackupFailed(RuntimeError):
    """The database could not be copied before its upgrade; nothing was changed."""


def back_up(path: Path, *, revision: str) -> Path:
    """Copy a database beside itself, whoever reads or writes it meanwhile, and keep the last two such copies.

    One copy for each revision: an upgrade that is tried again replaces the copy that it made before.

    Args:
        path: of the database.
        revision: of its schema, which is part of the copy's name.

    Returns:
        The copy: one file, complete, on the disk.

    Raises:
        BackupFailed: the disk is full or cannot be written to.
    """
    copy = path.with_name(f"{path.name}.{revision}.backup")
    aside = path.with_name(f".{copy.name}.{os.getpid()}")
    try:
        try:
            _copy(path, aside)
            aside.replace(copy)
        finally:
            aside.unlink(missing_ok=True)
        _sync(copy.parent)
    except (OSError, sqlite3.Error) as error:
        raise BackupFailed(
            f"{path} could not be copied to {copy} before its upgrade, and was not upgraded: {error}; "
            f"{path.stat().st_size:,} bytes are needed beside it"
        ) from error
    _forget_older(path)
    return copy


def _copy(path: Path, target: Path) -> None:
    # SQLite's own copy, not a file's: what is committed may still lie in the log, and opening the file by other
    # means and closing it again would give up this process's locks on it (sqlite.org/howtocorrupt.html, 2.2).
    os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, path.stat().st_mode & 0o777))
    with (
        contextlib.closing(sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True)) as source,
        contextlib.closing(sqlite3.connect(target)) as copy,
    ):
        source.backup(copy)
        copy.execute("PRAGMA journal_mode = DELETE")  # one file, without a log beside it
    _sync(target)


def _forget_older(path: Path) -> None:
    copies = sorted(path.parent.glob(f"{glob.escape(path.name)}.*.backup"), key=lambda copy: copy.stat().st_mtime_ns)
    for copy in copies[:-_KEPT]:
        with contextlib.suppress(OSError):  # it costs only space
            copy.unlink()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
