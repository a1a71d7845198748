"""The heartbeat of a worker: a thread that keeps its row and its lease alive. Torch-free."""

import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Final, final

from service.errors import LeaseLost, NotFound, StoreUnavailable
from service.records import JobStatus, Lease, WorkerState
from service.store import NewWorker, Store

log = logging.getLogger(__name__)


@final
class Pulse:
    """Tells the database every few seconds that the worker lives, and renews the lease that it holds.

    A database that is away is tried again with every beat. How long a lease lasts is judged by the database's
    clock alone; no clock of this machine is ever compared with it.
    """

    def __init__(self, store: Store, worker: NewWorker, *, heartbeat_seconds: float, lease_seconds: float) -> None:
        """Start nothing yet."""
        self._store: Final = store
        self._worker: Final = worker
        self._heartbeat_seconds: Final = heartbeat_seconds
        self._lease_seconds: Final = lease_seconds
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._is_ending = False
        self._lease: Lease | None = None
        self._state = WorkerState.IDLE
        self._status = JobStatus.RUNNING
        self._is_lost = False
        self._is_away = False
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="pulse")
        self._work = self._threads.submit(self._beat_until_ended)

    @property
    def status(self) -> JobStatus:
        """The job's status at the last renewal."""
        return self._status

    @property
    def is_lost(self) -> bool:
        """Whether the lease belongs to another attempt by now."""
        return self._is_lost

    @property
    def is_away(self) -> bool:
        """Whether the database did not answer the last time."""
        return self._is_away

    def hold(self, lease: Lease) -> None:
        """Renew `lease` from now on."""
        with self._lock:
            self._lease, self._status, self._is_lost = lease, JobStatus.RUNNING, False
            self._state = WorkerState.BUSY
        self._wake.set()

    def let_go(self) -> None:
        """Renew nothing any more."""
        with self._lock:
            self._lease = None
            self._state = WorkerState.IDLE if self._state is WorkerState.BUSY else self._state
        self._wake.set()

    def drain(self) -> None:
        """Say from now on that the worker is leaving."""
        with self._lock:
            self._state = WorkerState.DRAINING
        self._wake.set()

    def check(self) -> None:
        """Raise what ended the thread, if something did: without it every lease would run out."""
        if self._work.done():
            self._work.result()

    def end(self) -> None:
        """End the thread."""
        self._is_ending = True
        self._wake.set()
        self._threads.shutdown(wait=True)

    def _beat_until_ended(self) -> None:
        while not self._is_ending:
            self._wake.clear()
            try:
                self._beat()
            except StoreUnavailable:
                if not self._is_away:
                    log.warning("The database was lost; the worker goes on")
                self._is_away = True
            else:
                if self._is_away:
                    log.info("The database was found again")
                self._is_away = False
            self._wake.wait(self._heartbeat_seconds)

    def _beat(self) -> None:
        with self._lock:
            lease, state = self._lease, self._state
        if lease is not None and not self._is_lost:
            try:
                status = self._store.leases.renew(lease, lease_seconds=self._lease_seconds)
            except LeaseLost:
                with self._lock:
                    self._is_lost = self._lease == lease
            else:
                with self._lock:
                    if self._lease == lease:
                        self._status = status
        try:
            self._store.workers.heartbeat(self._worker.id, state=state, job_id=lease.job_id if lease else None)
        except NotFound:  # the list was pruned, or the database restored from a backup
            self._store.workers.register(self._worker)
