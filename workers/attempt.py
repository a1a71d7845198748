"""One attempt at a job, from the side of its supervisor: limits, orders and how it ended. Torch-free."""

import logging
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from threading import Event
from typing import Final, final

from service.errors import LeaseLost, StoreUnavailable
from service.records import AttemptOutcome, Claim, FailureCode, JobStatus
from service.spec.job import JobSpec
from service.store.leases import Leases
from workers.child import Child
from workers.messages import LATE, Assignment, Order, Phase
from workers.processes import kernel_kills
from workers.pulse import Pulse

log = logging.getLogger(__name__)

_TICK_SECONDS: Final = 0.1
"""How often limits are looked at: short enough that memory cannot run away in between."""

_TREE_SECONDS: Final = 1.0
"""How often what the runner started is counted too, which is slower to find."""

_LAST_WORDS_SECONDS: Final = 5.0
"""Time to exit for a runner whose verdict is written."""


@dataclass(frozen=True)
class Limits:
    """What an attempt may use."""

    wall_seconds: float
    """Left of the budget when the attempt began."""
    stall_seconds: float
    memory_bytes: int | None
    grace_seconds: float
    """Time for the runner to save itself after an order."""

    @classmethod
    def of(cls, spec: JobSpec, *, run_seconds: float, memory_bytes: int | None, grace_seconds: float) -> "Limits":
        """Return the limits of a job.

        Args:
            spec: what the client asked for.
            run_seconds: what earlier attempts have used.
            memory_bytes: the worker's limit, which counts unless the job sets its own.
            grace_seconds: as in the field.
        """
        return cls(
            wall_seconds=spec.budget.wall_seconds - run_seconds,
            stall_seconds=spec.budget.stall_seconds,
            memory_bytes=spec.resources.memory_bytes or memory_bytes,
            grace_seconds=grace_seconds,
        )


@final
class Attempt:
    """Watches one runner until its job is out of this worker's hands.

    The runner does the work and writes the verdict. What is written here is written for runners that cannot: that
    died, hang, or use more than they may.
    """

    def __init__(
        self,
        child: Child,
        claim: Claim,
        limits: Limits,
        *,
        leases: Leases,
        pulse: Pulse,
        draining: Event,
        backoff_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take the runner, not yet at work, and what is to be watched."""
        self._child = child
        self._claim = claim
        self._limits = limits
        self._leases = leases
        self._pulse = pulse
        self._draining = draining
        self._backoff_seconds = backoff_seconds
        self._clock = clock
        self._began = clock()
        self._kernel_kills = kernel_kills()
        self._phase = Phase.PREPARING
        self._step = -1
        self._stepped_at = self._began
        self._counted_at = self._began
        self._memory_bytes = 0
        self._given: Order | None = None
        self._given_at = 0.0
        self._details: Final = {"job_id": claim.lease.job_id, "attempt": claim.lease.attempt}

    def conduct(self, assignment: Assignment, *, on_tick: Callable[[], None]) -> None:
        """Let the runner work, and return when the job has ended or is another's.

        Args:
            assignment: what the runner is told.
            on_tick: called about ten times a second.
        """
        self._child.hand_over(assignment)
        while True:
            for report in self._child.reports(seconds=_TICK_SECONDS):
                self._hear(report.phase, report.step)
            now = self._clock()
            if self._phase is Phase.ENDED or (self._pulse.is_lost and self._phase is Phase.CONCLUDING):
                self._bid_farewell()
                return
            if self._pulse.is_lost:
                log.warning("The job was taken by another attempt", extra=self._details)
                self._child.close()
                return
            if (exit_code := self._child.exit_code) is not None:
                self._bury(exit_code)
                return
            if self._stopped(now):
                return
            self._give_orders(now)
            self._pulse.check()
            on_tick()

    def _hear(self, phase: Phase, step: int) -> None:
        if phase is not self._phase or step != self._step or phase is Phase.WAITING:
            self._stepped_at = self._clock()
        self._phase, self._step = phase, step

    def _stopped(self, now: float) -> bool:
        """Kill a runner that is over a limit, or did not follow an order in time, and say why."""
        limits = self._limits
        if limits.memory_bytes is not None and self._memory(now) > limits.memory_bytes:
            self._fail(
                FailureCode.OUT_OF_MEMORY,
                f"the job held {_size(self._memory_bytes)} of memory; its limit is {_size(limits.memory_bytes)}",
                retryable=False,
            )
        elif self._phase is Phase.STEPPING and now - self._stepped_at > limits.stall_seconds:
            self._fail(
                FailureCode.STALLED,
                f"no step ended within {limits.stall_seconds:g} seconds after {max(self._step, 0)} steps",
                retryable=True,
            )
        elif self._given is not None and now - self._given_at > self._grace(self._given):
            return self._enforce(self._given)
        else:
            return False
        return True

    def _grace(self, order: Order) -> float:
        # Before the first step there is nothing to save, and after the last one a cancelled job has no use for it.
        nothing_to_save = self._phase is Phase.PREPARING or (order is Order.CANCEL and self._phase is Phase.CHECKING)
        return 0.0 if nothing_to_save else self._limits.grace_seconds

    def _enforce(self, order: Order) -> bool:
        match order:
            case Order.DEADLINE:
                self._fail(FailureCode.DEADLINE_EXCEEDED, LATE, retryable=False)
            case Order.CANCEL:
                self._release(AttemptOutcome.CANCELLED)
            case Order.DRAIN:
                self._release(AttemptOutcome.DRAINED)
            case Order.PAUSE | Order.GO_ON:  # a pause takes as long as the step that is under way
                return False
        return True

    def _give_orders(self, now: float) -> None:
        wanted = self._wanted(now)
        if wanted is not None and wanted is not self._given:
            log.info("The runner was given an order", extra=self._details | {"order": wanted.value})
            self._child.order(wanted)
            if wanted is Order.DRAIN:
                self._pulse.drain()
            self._given, self._given_at = wanted, now

    def _wanted(self, now: float) -> Order | None:
        if self._pulse.status is JobStatus.CANCELLING:
            return Order.CANCEL
        if self._draining.is_set():
            return Order.DRAIN
        if now - self._began > self._limits.wall_seconds:
            return Order.DEADLINE
        if self._pulse.status is JobStatus.PAUSING:
            return Order.PAUSE
        return Order.GO_ON if self._given is Order.PAUSE else None

    def _memory(self, now: float) -> int:
        with_children = now - self._counted_at > _TREE_SECONDS
        if with_children:
            self._counted_at = now
        self._memory_bytes = self._child.resident_bytes(with_children=with_children)
        return self._memory_bytes

    def _bid_farewell(self) -> None:
        until = self._clock() + _LAST_WORDS_SECONDS
        while self._child.exit_code is None and self._clock() < until:
            self._child.reports(seconds=_TICK_SECONDS)
        self._child.close()

    def _bury(self, exit_code: int) -> None:
        """Say that the runner died; if it had written its verdict just before, that stands."""
        tail = self._child.close()
        code, detail = self._cause(exit_code)
        log.error("The runner died", extra=self._details | {"detail": detail})
        self._settle(
            lambda: self._leases.lose(
                self._claim.lease,
                detail,
                backoff_seconds=self._backoff_seconds,
                failure_code=code,
                log_tail=tail,
            )
        )

    def _cause(self, exit_code: int) -> tuple[FailureCode, str]:
        if exit_code == -signal.SIGKILL and kernel_kills() > self._kernel_kills:
            return (
                FailureCode.OUT_OF_MEMORY,
                "the system ran out of memory and killed the job's process"
                + (f", which held {_size(self._memory_bytes)}" if self._memory_bytes else ""),
            )
        if exit_code < 0:
            return FailureCode.WORKER_LOST, f"the job's process was killed by {signal.Signals(-exit_code).name}"
        return FailureCode.WORKER_LOST, f"the job's process ended without a verdict, with exit code {exit_code}"

    def _fail(self, code: FailureCode, detail: str, *, retryable: bool) -> None:
        tail = self._child.close()
        log.warning("The runner was stopped", extra=self._details | {"code": code.value, "detail": detail})
        self._settle(lambda: self._leases.fail(self._claim.lease, code, detail, retryable=retryable, log_tail=tail))

    def _release(self, outcome: AttemptOutcome) -> None:
        tail = self._child.close()
        log.warning("The runner was killed for not leaving in time", extra=self._details)
        self._settle(lambda: self._leases.release(self._claim.lease, outcome, log_tail=tail))

    def _settle(self, write: Callable[[], object]) -> None:
        """Write down how it ended, as soon as the database can take it.

        A worker that is asked to leave waits no longer than its grace; the lease then runs out by itself.
        """
        until: float | None = None
        while not self._pulse.is_lost:
            try:
                write()
            except LeaseLost:
                return
            except StoreUnavailable:
                if self._draining.is_set():
                    until = until or self._clock() + self._limits.grace_seconds
                    if self._clock() > until:
                        log.warning("The verdict could not be written", extra=self._details)
                        return
                time.sleep(_TICK_SECONDS)
            else:
                return


def _size(number: int) -> str:
    return f"{number / 2**20:,.0f} MiB"
