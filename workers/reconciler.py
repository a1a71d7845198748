"""Keeps the whole in order: what was lost is found, what was promised is done. One leader among all workers.

Torch-free. Every worker has one in a thread; a lease in the database, on the database's clock, says whose turn it is.
"""

import logging
from threading import Event
from typing import Final, final

from service.errors import QueueUnavailable, StoreUnavailable
from service.files import FileStore
from service.queue import Bell
from service.records import WorkerState
from service.settings import Settings
from service.store import OutboxEntry, OutboxKind, Store

log = logging.getLogger(__name__)

_LEADERSHIP: Final = "reconciler"
_OUTBOX_AT_ONCE: Final = 500
_MOST_RINGS: Final = 64
"""In one sweep: each wakes a worker, and each worker takes one job after the other."""

_SWEEPS_PER_PRUNING: Final = 60
_WORKERS_KEPT_DAYS: Final = 7.0
_EXPECTED_SECONDS: Final = 86_400.0
"""After this a file that was to be stored and is not named belongs to somebody who died. Longer than any upload takes:
one that is given up has to be stored again."""


@final
class Reconciler:
    """Sweeps every few seconds, as long as it leads."""

    def __init__(self, store: Store, files: FileStore, bell: Bell, settings: Settings, *, holder: str) -> None:
        """Take everything; do nothing yet.

        Args:
            store: the truth.
            files: where files that nobody needs any more are deleted.
            bell: rung for jobs that wait while workers are idle.
            settings: numbers.
            holder: who this is, among all reconcilers.
        """
        self._store = store
        self._files = files
        self._bell = bell
        self._settings = settings
        self._holder = holder
        # Leases must be looked at several times while they last, or silence could not be told from our absence.
        self._every_seconds = min(settings.sweep_seconds, settings.lease_seconds / 4)
        self._sweeps = 0

    def run(self, ending: Event) -> None:
        """Sweep until `ending` is set, then let another lead at once."""
        is_away = False
        while not ending.wait(self._every_seconds):
            try:
                self.sweep()
            except StoreUnavailable:
                if not is_away:
                    log.warning("The database was lost; order will be restored when it is back")
                is_away = True
            else:
                is_away = False
        try:
            self._store.maintenance.resign(_LEADERSHIP, self._holder)
        except StoreUnavailable:
            log.warning("The leadership could not be given up; it runs out by itself")

    def sweep(self) -> bool:
        """Do everything once; return False if another reconciler leads.

        Raises:
            StoreUnavailable: the database cannot be reached.
        """
        if not self._store.maintenance.lead(_LEADERSHIP, self._holder, 3 * self._every_seconds):
            return False
        self._reap()
        rings = self._empty_outbox()
        self._ring(rings)
        if self._sweeps % _SWEEPS_PER_PRUNING == 0:
            self._prune()
        self._sweeps += 1
        return True

    def _reap(self) -> None:
        """Take jobs from silent workers, unless everybody was silent because nobody could be heard."""
        settings = self._settings
        maintenance, leases = self._store.maintenance, self._store.leases
        away = maintenance.last_sweep()
        if away is None or away > settings.lease_seconds / 2:
            log.info("Leases were extended after an absence", extra={"away_s": away})
            leases.extend_all(settings.lease_seconds)
        maintenance.mark_sweep()
        for job_id in leases.reap(lease_seconds=settings.lease_seconds, backoff_seconds=settings.backoff_seconds):
            log.warning("A job was taken from a silent worker", extra={"job_id": job_id})

    def _empty_outbox(self) -> int:
        """Do what committed transactions promised; return how many rings were among it."""
        maintenance = self._store.maintenance
        rings = 0
        while entries := maintenance.outbox_pending(_OUTBOX_AT_ONCE):
            rings += sum(entry.kind is OutboxKind.RING for entry in entries)
            done = [entry.id for entry in entries if entry.kind is OutboxKind.RING or self._delete(entry)]
            maintenance.outbox_done(done)
            if len(done) < len(entries) or len(entries) < _OUTBOX_AT_ONCE:
                break  # the rest is tried again with the next sweep
        return rings

    def _delete(self, entry: OutboxEntry) -> bool:
        try:
            self._files.delete([entry.subject])
        except OSError as error:
            log.warning("A file could not be deleted; it will be tried again", extra={"error": str(error)})
            return False
        return True

    def _ring(self, announced: int) -> None:
        """Ring for jobs that were announced, and for those that wait although workers are idle.

        The second is what makes a message that Redis lost harmless.
        """
        queued = self._store.maintenance.queued_depth()
        if queued == 0:
            return
        workers = self._store.workers.list(timeout_seconds=self._settings.worker_timeout_seconds)
        idle = sum(worker.state is WorkerState.IDLE for worker in workers)
        try:
            for _ in range(min(max(announced, idle), queued, _MOST_RINGS)):
                self._bell.ring()
        except QueueUnavailable:
            log.debug("Nobody could be rung; workers look for themselves")

    def _prune(self) -> None:
        settings = self._settings
        while keys := self._store.maintenance.prune(
            retention_days=settings.retention_days, idempotency_hours=settings.idempotency_hours
        ):
            log.info("Old jobs were deleted", extra={"files": len(keys)})  # the files themselves by the outbox
        if keys := self._store.maintenance.give_up_files(_EXPECTED_SECONDS):
            log.info("Files were given up that nothing came to need", extra={"files": len(keys)})
        try:
            self._files.tidy()
        except OSError as error:
            log.warning("The file store could not be tidied", extra={"error": str(error)})
        self._store.workers.forget(silent_days=_WORKERS_KEPT_DAYS)
