"""The supervisor, seen from its runner: orders come in, reports go out. Torch-free."""

import contextlib
import os
import sys
import threading
from typing import Final, final

from workers.messages import Assignment, Order, Phase, Report

_UNSEEN: Final = -1


@final
class Parent:
    """Both lines to the supervisor. Make it first of all: afterwards standard output leads to standard error.

    So nothing that a library prints can be taken for a report.
    """

    def __init__(self) -> None:
        """Take over standard input and output."""
        self._reports = os.dup(1)
        os.dup2(2, 1)
        # A supervisor that is stopped must not stop its runner too: reports are dropped when the pipe is full.
        os.set_blocking(self._reports, False)
        self._orders = sys.stdin.buffer
        self._order: Order | None = None
        self._phase = Phase.PREPARING
        self._step = _UNSEEN

    @property
    def order(self) -> Order | None:
        """What the supervisor wants; None while it wants the job done."""
        return None if self._order is Order.GO_ON else self._order

    @property
    def has_ordered(self) -> bool:
        """Whether there was any order: its orders are newer than what recording tells of the job's status."""
        return self._order is not None

    def assignment(self) -> Assignment | None:
        """Wait for the job; None if there will be none. Orders are heard from then on."""
        self._send(Report(Phase.READY, 0))
        line = self._orders.readline()
        if not line:
            return None
        threading.Thread(target=self._listen, name="orders", daemon=True).start()
        return Assignment.from_line(line)

    def report(self, phase: Phase, step: int | None = None) -> None:
        """Tell what this runner is at.

        Args:
            phase: what it is at.
            step: steps done, if that has changed.
        """
        self._phase = phase
        self._step = self._step if step is None else step
        self._send(Report(self._phase, self._step))

    def waiting(self) -> None:
        """Say that the job cannot go on, through no fault of its own."""
        self._send(Report(Phase.WAITING, self._step))

    def _send(self, report: Report) -> None:
        with contextlib.suppress(BlockingIOError, BrokenPipeError):
            os.write(self._reports, report.to_line())

    def _listen(self) -> None:
        for line in self._orders:
            self._order = Order(line.decode().strip())
        os._exit(1)  # the supervisor is gone, on a system where the kernel does not see to it
