"""Points on this machine's disk while the database is away."""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Final, final

from service.records import Lease
from service.settings import Settings
from service.store.recording import NewPoint

_BATCH: Final = 500
"""Points that are replayed in one transaction."""


def spool_folder(settings: Settings) -> Path:
    """Return the folder of all spools of this machine."""
    return settings.data_dir / "spool"


@final
class Spool:
    """The points of one attempt that could not be recorded yet, in order, in a file of bounded size."""

    def __init__(self, folder: Path, lease: Lease, *, limit_bytes: int) -> None:
        """Make no file before it is needed.

        Args:
            folder: where the file will lie.
            lease: whose points they are.
            limit_bytes: size that the file may reach.
        """
        self._path = folder / f"{lease.job_id}.{lease.attempt}.jsonl"
        self._limit_bytes = limit_bytes
        self._size_bytes = 0
        self._descriptor: int | None = None

    @property
    def is_empty(self) -> bool:
        """Whether nothing waits."""
        return self._size_bytes == 0

    def append(self, points: Sequence[NewPoint]) -> bool:
        """Store points durably; return False, and store none, when they do not fit or the disk refuses."""
        lines = b"".join(
            json.dumps([point.step, point.elapsed_s, point.body], separators=(",", ":")).encode() + b"\n"
            for point in points
        )
        if self._size_bytes + len(lines) > self._limit_bytes:
            return False
        try:
            descriptor = self._open()
            os.pwrite(descriptor, lines, self._size_bytes)  # over what a refused write may have left
            os.fsync(descriptor)
        except OSError:
            return False
        self._size_bytes += len(lines)
        return True

    def batches(self) -> Iterator[list[NewPoint]]:
        """Return the points in order, some hundred at a time."""
        if self.is_empty:
            return
        with self._path.open("rb") as stream:
            left = self._size_bytes
            while lines := list(islice(stream, _BATCH)):
                kept = []
                for line in lines:
                    if left <= 0:
                        break
                    left -= len(line)
                    step, elapsed_s, body = json.loads(line)
                    kept.append(NewPoint(step=step, elapsed_s=elapsed_s, body=body))
                if kept:
                    yield kept

    def clear(self) -> None:
        """Forget everything: it was recorded, or is not ours to record any more."""
        self._size_bytes = 0
        if self._descriptor is not None:
            self._path.unlink(missing_ok=True)
            os.close(self._descriptor)
            self._descriptor = None

    def _open(self) -> int:
        if self._descriptor is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # says: its runner is alive
        return self._descriptor


def remove_abandoned(folder: Path) -> None:
    """Remove the files of runners that are gone: what they had not recorded, the next attempt computes again."""
    for path in folder.glob("*.jsonl"):
        with contextlib.suppress(OSError), path.open("rb") as stream:  # locked, or removed meanwhile
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink(missing_ok=True)
