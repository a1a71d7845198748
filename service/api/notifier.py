"""Tells waiting requests that a job has changed: one thread and one query for all of them."""

import asyncio
import logging
import threading
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Final, final

from service.errors import StoreUnavailable

log = logging.getLogger(__name__)

_RETRY_SECONDS: Final = 1.0


@dataclass(eq=False)
class _Waiter:
    job_id: str
    known: int
    loop: asyncio.AbstractEventLoop
    is_due: asyncio.Event = field(default_factory=asyncio.Event)

    def wake(self) -> None:
        try:
            self.loop.call_soon_threadsafe(self.is_due.set)
        except RuntimeError:  # the loop was closed: nobody waits any more
            log.debug("a waiter was gone before it could be woken")


@final
class Notifier:
    """Polls the versions of the jobs that somebody waits for, and nothing while nobody waits.

    Polling is what both databases can do, needs no connection for each waiter, and sees the changes of every
    process on every machine.
    """

    def __init__(self, versions: Callable[[Collection[str]], Mapping[str, int]], *, interval: float = 0.2) -> None:
        """Take the query for the current versions of some jobs, and how often to ask, in seconds."""
        self._versions = versions
        self._interval = interval
        self._changed = threading.Condition()
        self._waiters: set[_Waiter] = set()
        self._thread: threading.Thread | None = None
        self._is_closed = False

    @property
    def is_closed(self) -> bool:
        """True when the process is about to end: whoever waits should answer now."""
        return self._is_closed

    async def wait(self, job_id: str, *, known: int, seconds: float) -> None:
        """Return when the job has another version than `known` or is gone, after `seconds`, or at the end.

        The caller reads the job again, whatever the reason was.
        """
        waiter = _Waiter(job_id, known, asyncio.get_running_loop())
        with self._changed:
            if self._is_closed:
                return
            self._waiters.add(waiter)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="notifier", daemon=True)
                self._thread.start()
            self._changed.notify_all()
        try:
            async with asyncio.timeout(seconds):
                await waiter.is_due.wait()
        except TimeoutError:
            return
        finally:
            with self._changed:
                self._waiters.discard(waiter)

    def close(self) -> None:
        """Wake everybody who waits, now and from now on."""
        with self._changed:
            self._is_closed = True
            waiters = tuple(self._waiters)
            self._changed.notify_all()
        for waiter in waiters:
            waiter.wake()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiters or self._is_closed)
                if self._is_closed:
                    return
                watched = {waiter.job_id for waiter in self._waiters}
            pause = self._interval if self._look(watched) else _RETRY_SECONDS
            with self._changed:
                # New waiters do not cut the pause short: the database is asked this often at most.
                self._changed.wait_for(lambda: self._is_closed, timeout=pause)

    def _look(self, watched: Collection[str]) -> bool:
        try:
            current = self._versions(watched)
        except StoreUnavailable:
            log.warning("waiting requests could not be served: the database is away")
            return False
        with self._changed:
            due = [w for w in self._waiters if w.job_id in watched and current.get(w.job_id) != w.known]
        for waiter in due:
            waiter.wake()
        return True
