"""A worker: takes jobs, one at a time, and lets a runner do each. Bound to one device, and torch-free."""

import contextlib
import json
import logging
import os
import socket
import time
from collections.abc import Callable, Sequence
from threading import Event
from typing import Final, final

from pydantic import ValidationError

from service.cpus import usable_cpus
from service.errors import LeaseLost, StoreUnavailable
from service.identifiers import new_id
from service.records import Claim, FailureCode
from service.settings import Settings
from service.spec.job import Device as DeviceChoice
from service.spec.job import JobSpec
from service.store import NewWorker, Store
from service.version import version
from workers.attempt import Attempt, Limits
from workers.bell import Listener
from workers.child import RUNNER, Child
from workers.devices import Device, runner_environment
from workers.messages import Assignment
from workers.pulse import Pulse
from workers.spool import remove_abandoned, spool_folder

log = logging.getLogger(__name__)

_GENTLE_SECONDS: Final = 5.0
"""How often the database is asked for jobs while the bell can be heard."""

_START_UP_SECONDS: Final = 1.0
"""After this the next runner is started: a job's own start-up is over by then, and gets the CPU to itself."""

_LONGEST_BACKOFF_SECONDS: Final = 60.0
"""Between two tries to start a runner that cannot start."""


@final
class Supervisor:
    """Claims jobs while it has a runner that is ready, and hands each to the runner.

    The bell is only listened to while there is nothing to do. A runner that has imported everything waits ahead of
    each job, so that one starts in a tenth of a second; it is used once and replaced.
    """

    def __init__(
        self,
        store: Store,
        listener: Listener,
        settings: Settings,
        device: Device,
        *,
        draining: Event,
        command: Sequence[str] = RUNNER,
    ) -> None:
        """Take everything; start nothing.

        Args:
            store: the truth.
            listener: hears of new jobs sooner than by asking.
            settings: numbers.
            device: the only one that its runners see.
            draining: set by whoever wants the worker to leave.
            command: starts a runner.
        """
        self._store = store
        self._listener = listener
        self._settings = settings
        self._device = device
        self._draining = draining
        self._command = command
        self._threads = settings.threads or usable_cpus()
        self._environment = runner_environment(os.environ, device, threads=self._threads)
        self._spare: Child | None = None
        self._failures = 0
        self._spare_after = 0.0
        self.worker_id: Final = new_id("worker")

    def run(self, *, check: Callable[[], None] = lambda: None) -> None:
        """Work until `draining` is set; must be called from the main thread, which runners are tied to.

        Args:
            check: called between jobs; what it raises ends the worker.
        """
        remove_abandoned(spool_folder(self._settings))
        worker = NewWorker(
            id=self.worker_id,
            host=socket.gethostname(),
            pid=os.getpid(),
            device=self._device.name,
            device_name=self._device.title,
            version=version(),
        )
        if not self._registered(worker):
            return
        pulse = Pulse(
            self._store,
            worker,
            heartbeat_seconds=self._settings.heartbeat_seconds,
            lease_seconds=self._settings.lease_seconds,
        )
        log.info("The worker started", extra={"worker_id": self.worker_id, "device": self._device.name})
        try:
            while not self._draining.is_set():
                pulse.check()
                check()
                if not self._spare_is_ready(seconds=0.5):
                    continue
                claim = self._claimed()
                if claim is None:
                    self._wait_for_work()
                else:
                    self._work(claim, pulse)
        finally:
            if self._spare is not None:
                self._spare.close()
            pulse.end()
            with contextlib.suppress(StoreUnavailable):
                self._store.workers.leave(self.worker_id)
        log.info("The worker left", extra={"worker_id": self.worker_id})

    def _registered(self, worker: NewWorker) -> bool:
        is_away = False
        while not self._draining.is_set():
            try:
                self._store.workers.register(worker)
            except StoreUnavailable:
                if not is_away:
                    log.warning("The database cannot be reached; the worker waits for it")
                is_away = True
                self._draining.wait(self._settings.poll_seconds)
            else:
                return True
        return False

    def _spare_is_ready(self, *, seconds: float) -> bool:
        """Return whether a runner waits; start one if it is time to, and hear from one that is starting.

        Args:
            seconds: how long to wait for it.
        """
        spare = self._spare
        if spare is None:
            left = self._spare_after - time.monotonic()
            if left > 0:
                self._draining.wait(min(left, seconds))
            else:
                self._spare = Child(self._command, env=self._environment)
            return False
        if spare.exit_code is not None:
            tail = spare.close()
            self._spare = None
            self._failures += 1
            self._spare_after = time.monotonic() + min(_LONGEST_BACKOFF_SECONDS, 2.0**self._failures)
            log.error("A runner died before it had a job", extra={"exit_code": spare.exit_code, "tail": tail[-2000:]})
            return False
        if not spare.is_ready:
            spare.reports(seconds=seconds)
        return spare.is_ready

    def _claimed(self) -> Claim | None:
        try:
            return self._store.leases.claim(
                self.worker_id, device=self._device.name, lease_seconds=self._settings.lease_seconds
            )
        except StoreUnavailable:
            self._draining.wait(self._settings.poll_seconds)
            return None

    def _wait_for_work(self) -> None:
        poll_seconds = self._settings.poll_seconds
        until = time.monotonic() + (max(poll_seconds, _GENTLE_SECONDS) if self._listener.is_listening else poll_seconds)
        while not self._draining.is_set() and (left := until - time.monotonic()) > 0:
            if self._listener.wait(min(poll_seconds, left)) or not self._listener.is_listening:
                return

    def _work(self, claim: Claim, pulse: Pulse) -> None:
        child, self._spare, self._failures = self._spare, None, 0
        if child is None:
            raise ValueError("a job was claimed without a runner for it")
        about = {"job_id": claim.lease.job_id, "attempt": claim.lease.attempt}
        log.info("A job was taken", extra=about)
        settings = self._settings
        pulse.hold(claim.lease)
        try:
            # As JSON: a stored specification holds the texts of its enumerations.
            spec = JobSpec.model_validate_json(json.dumps(claim.spec))
            self._spare_after = time.monotonic() + _START_UP_SECONDS
            limits = Limits.of(
                spec,
                run_seconds=claim.run_seconds,
                memory_bytes=settings.memory_bytes,
                grace_seconds=settings.grace_seconds,
            )
            attempt = Attempt(
                child,
                claim,
                limits,
                leases=self._store.leases,
                pulse=pulse,
                draining=self._draining,
                backoff_seconds=settings.backoff_seconds,
            )
            attempt.conduct(Assignment(claim, self._device_for(spec), self._threads), on_tick=self._prepare_spare)
        except ValidationError:
            self._refuse(claim)
        finally:
            child.close()
            pulse.let_go()
            self._spare_after = 0.0
        log.info("A job was done with", extra=about)

    def _prepare_spare(self) -> None:
        if not self._draining.is_set():
            self._spare_is_ready(seconds=0.0)

    def _device_for(self, spec: JobSpec) -> str:
        return "cpu" if spec.resources.device is DeviceChoice.CPU else self._device.kind

    def _refuse(self, claim: Claim) -> None:
        """Fail a job whose specification was accepted by a version of the code that understood it."""
        with contextlib.suppress(LeaseLost, StoreUnavailable):
            self._store.leases.fail(
                claim.lease,
                FailureCode.INTERNAL,
                f"the job's specification is not one that version {version()} understands: clone the job",
                retryable=False,
                log_tail="",
            )
