"""Everything that a run leaves behind on its way, written by a thread of its own, in order."""

import contextlib
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from threading import Condition
from typing import Final, final

from service.errors import StoreUnavailable
from service.files import FileStore, job_key
from service.records import Checkpoint, JobStatus, Lease
from service.store.leases import Leases
from service.store.recording import NewPoint
from workers.spool import Spool

log = logging.getLogger(__name__)

_MOST_POINTS: Final = 5000
"""Points in memory; then the run waits."""

_MOST_NOTES: Final = 200

_RETRY_SECONDS: Final = 0.5
"""Between two tries of a database or a file store that is away."""


@dataclass(frozen=True)
class Snapshot:
    """A state as bytes, about to become a checkpoint."""

    step: int
    data: bytes


@dataclass(frozen=True)
class _Backlog:
    """What was taken from the run and is not stored yet."""

    points: tuple[NewPoint, ...] = ()
    notes: tuple[str, ...] = ()
    saved: Snapshot | None = None

    def __add__(self, later: "_Backlog") -> "_Backlog":
        return _Backlog(
            self.points + later.points,
            (self.notes + later.notes)[-_MOST_NOTES:],
            later.saved or self.saved,  # the newest state is all that matters
        )

    def __bool__(self) -> bool:
        return bool(self.points or self.notes or self.saved)


@final
class Recorder:
    """Records points in batches and, after them, checkpoints.

    A checkpoint is stored only when every point before it is recorded: a crash costs work, never a gap. While the
    database is away, points go to the spool and the run continues; checkpoints wait. Every batch renews the lease.
    """

    def __init__(
        self,
        leases: Leases,
        files: FileStore,
        lease: Lease,
        spool: Spool,
        *,
        lease_seconds: float,
        record_seconds: float,
    ) -> None:
        """Start the thread.

        Args:
            leases: what points are recorded with.
            files: what checkpoints are stored in.
            lease: of the attempt; every write is refused once it is lost.
            spool: for the time that the database is away.
            lease_seconds: how long each write renews the lease for.
            record_seconds: points are recorded at most this late.
        """
        self._leases = leases
        self._files = files
        self._lease = lease
        self._spool = spool
        self._lease_seconds = lease_seconds
        self._record_seconds = record_seconds
        self._status = JobStatus.RUNNING
        self._is_away = False

        # Shared between the run and the thread, under `_changed`:
        self._changed = Condition()
        self._points: list[NewPoint] = []
        self._notes: list[str] = []
        self._saved: Snapshot | None = None
        self._backlog = _Backlog()
        self._is_hurried = False
        self._is_closing = False

        self._threads = ThreadPoolExecutor(1, thread_name_prefix="recorder")
        self._work = self._threads.submit(self._write_until_closed)

    @property
    def status(self) -> JobStatus:
        """The job's status when something was last recorded: tells of a pause or a cancellation."""
        return self._status

    def point(self, point: NewPoint, *, wait: Callable[[], None]) -> None:
        """Take a point; blocks, calling `wait`, only while neither database nor spool can take more.

        Raises:
            LeaseLost: another attempt has the job.
        """
        self._check()
        while len(self._points) + len(self._backlog.points) >= _MOST_POINTS:
            self.settle(wait=wait, seconds=_RETRY_SECONDS)
        with self._changed:
            self._points.append(point)

    def note(self, sentence: str) -> None:
        """Take a sentence for the job's log, which its clients see."""
        with self._changed:
            self._notes.append(sentence)

    def checkpoint(self, saved: Snapshot) -> None:
        """Take a state, to be stored after all points taken so far; it replaces one that still waits."""
        with self._changed:
            self._saved = saved

    def settle(self, *, wait: Callable[[], None], seconds: float | None = None, points_only: bool = False) -> bool:
        """Wait until all that was taken is stored; return whether it is.

        Args:
            wait: called about ten times a second meanwhile; may raise to end the waiting.
            seconds: how long to wait at most; None: as long as it takes.
            points_only: do not wait for a checkpoint.

        Raises:
            LeaseLost: another attempt has the job.
        """
        until = None if seconds is None else time.monotonic() + seconds
        while True:
            with self._changed:
                if self._is_settled(points_only):
                    return True
                self._check()
                self._is_hurried = True
                self._changed.notify_all()
                if self._changed.wait_for(lambda: self._is_settled(points_only), timeout=0.1):
                    return True
            if until is not None and time.monotonic() >= until:
                return False
            wait()

    def close(self) -> None:
        """End the thread after a last try to store what it has; what it cannot store is dropped."""
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
        self._threads.shutdown(wait=True)
        self._spool.clear()

    def _check(self) -> None:
        if self._work.done():
            self._work.result()

    def _is_settled(self, points_only: bool) -> bool:  # noqa: FBT001
        backlog = self._backlog
        if self._points or self._notes or backlog.points or backlog.notes or not self._spool.is_empty:
            return False
        return points_only or not (self._saved or backlog.saved)

    def _write_until_closed(self) -> None:
        is_last = False
        while not is_last:
            with self._changed:
                if self._is_away:  # not so often, whoever is in a hurry
                    self._changed.wait_for(lambda: self._is_closing, timeout=_RETRY_SECONDS)
                else:
                    self._changed.wait_for(lambda: self._is_hurried or self._is_closing, timeout=self._record_seconds)
                self._is_hurried = False
                is_last = self._is_closing
                self._backlog += _Backlog(tuple(self._points), tuple(self._notes), self._saved)
                self._points, self._notes, self._saved = [], [], None
            if self._backlog or not self._spool.is_empty:
                self._write()
            with self._changed:
                self._changed.notify_all()

    def _write(self) -> None:
        try:
            self._record()
            self._save()
        except StoreUnavailable:
            if not self._is_away:
                log.warning("The database was lost; points are kept on disk")
            self._is_away = True
            points = self._backlog.points
            if points and self._spool.append(points):
                self._backlog = replace(self._backlog, points=())
        except OSError as error:
            log.warning("A checkpoint could not be stored; it will be tried again", extra={"error": str(error)})
            self._is_away = True
        else:
            if self._is_away:
                log.info("Everything that waited was stored")
            self._is_away = False

    def _record(self) -> None:
        for points in self._spool.batches():
            self._status = self._leases.record(self._lease, points, lease_seconds=self._lease_seconds)
        if not self._spool.is_empty:
            self._spool.clear()
        backlog = self._backlog
        if backlog.points or backlog.notes:
            self._status = self._leases.record(
                self._lease, backlog.points, lease_seconds=self._lease_seconds, logs=backlog.notes
            )
            self._backlog = replace(backlog, points=(), notes=())

    def _save(self) -> None:
        saved = self._backlog.saved
        if saved is None:
            return
        # The attempt is part of the name: one that lost its lease overwrites nothing.
        key = job_key(self._lease.job_id, f"checkpoint-{self._lease.attempt}-{saved.step}.safetensors")
        # If this process dies, or loses its lease, before it has named the file, the file is removed some time later.
        self._leases.expect_files(self._lease, [key], lease_seconds=self._lease_seconds)
        sha256, _ = self._files.put(key, saved.data)
        checkpoint = Checkpoint(key=key, sha256=sha256, step=saved.step)
        stale = self._leases.save_checkpoint(self._lease, checkpoint, lease_seconds=self._lease_seconds)
        self._backlog = replace(self._backlog, saved=None)
        with contextlib.suppress(OSError):  # they only cost space; they go with the job
            self._files.delete(stale)
