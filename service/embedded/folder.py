"""The data folder of embedded mode: made, checked, and held by one run at a time."""

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


class FolderUnusable(Exception):
    """The data folder cannot be used; the message says why and what to do."""


def prepare(folder: Path) -> Path:
    """Make the folder and return its absolute path.

    Raises:
        FolderUnusable: it cannot be written to.
    """
    folder = folder.absolute()
    try:
        # Datasets and the queue's socket are nobody else's business.
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        (folder / "logs").mkdir(exist_ok=True)
        probe = folder / ".writable"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise FolderUnusable(
            f"{folder} cannot be written to: {error.strerror}; name another with --data-dir"
        ) from error
    return folder


@contextmanager
def held(folder: Path, *, patience_s: float, say: Callable[[str], None]) -> Iterator[int]:
    """Hold the folder; yields the lock's file descriptor, which children inherit.

    The lock goes with its last holder: while children of a run that was killed still save themselves, the
    folder is not free, and this waits for them, up to `patience_s`.

    Raises:
        FolderUnusable: another run holds it.
    """
    lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        _acquire(lock, folder, patience_s=patience_s, say=say)
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
        yield lock
    finally:
        os.close(lock)


def _acquire(lock: int, folder: Path, *, patience_s: float, say: Callable[[str], None]) -> None:
    deadline, told = time.monotonic() + patience_s, False
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(lock, 32, 0).decode("ascii", "replace").strip()
            if (holder.isdecimal() and _is_alive(int(holder))) or time.monotonic() > deadline:
                raise FolderUnusable(
                    f"{folder} is in use by another `hyperdial up` (process {holder or 'unknown'}): "
                    "stop that one, or name another folder with --data-dir"
                ) from None
            if not told:
                say("waiting for processes of an earlier run to save themselves")
                told = True
            time.sleep(0.1)
        else:
            return


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
