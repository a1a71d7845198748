"""A runner, seen from its supervisor: one process, started ahead, used once. Torch-free."""

import contextlib
import logging
import os
import select
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from typing import IO, Final, final

import psutil

from workers.messages import Assignment, Order, Phase, Report
from workers.processes import kill_group, resident_bytes

log = logging.getLogger(__name__)

RUNNER: Final = (sys.executable, "-m", "workers.spare")
"""The command that starts a runner; it gets the process id of its parent as the last argument."""

_TAIL_BYTES: Final = 16_384


@final
class Child:
    """A runner process, in a group of its own. Start it from a thread that lives as long as this process.

    Orders go through its standard input and reports come from its standard output, a line each. What it writes to
    standard error is passed on to ours, and its end is kept for the record.
    """

    def __init__(self, command: Sequence[str], *, env: Mapping[str, str]) -> None:
        """Start the process; it begins by importing what it needs.

        Args:
            command: what to run.
            env: the whole environment of the process.
        """
        self._process = subprocess.Popen(
            [*command, str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=dict(env),
            start_new_session=True,
        )
        self._orders = _pipe(self._process.stdin)
        self._reports = _pipe(self._process.stdout)
        self._unread = b""
        self._tail: deque[bytes] = deque()
        self._pump = threading.Thread(target=self._pass_on, args=(_pipe(self._process.stderr),), daemon=True)
        self._pump.start()
        self._resources = psutil.Process(self._process.pid)
        self.is_ready = False
        """Whether it has imported everything."""

    @property
    def pid(self) -> int:
        """Its process id, which is also that of its group."""
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """How it ended, −N for signal N; None while it lives."""
        return self._process.poll()

    def hand_over(self, assignment: Assignment) -> None:
        """Give it its one job; if it has died, its exit code says so."""
        self._send(assignment.to_line())

    def order(self, order: Order) -> None:
        """Tell it what to do at its next step; if it has died, its exit code says so."""
        self._send(f"{order}\n".encode())

    def reports(self, *, seconds: float) -> list[Report]:
        """Wait for reports, for up to `seconds`; return at once when there are some, or when the process ends."""
        if not select.select([self._reports], [], [], seconds)[0]:
            return []
        data = os.read(self._reports.fileno(), 65_536)
        if not data:  # it has closed its end: it has ended, or is about to
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(seconds)
            return []
        *lines, self._unread = (self._unread + data).split(b"\n")
        reports = [report for report in map(_understood, lines) if report is not None]
        self.is_ready = self.is_ready or any(report.phase is Phase.READY for report in reports)
        return reports

    def resident_bytes(self, *, with_children: bool) -> int:
        """Return the memory that it holds, in bytes."""
        return resident_bytes(self._resources, with_children=with_children)

    def kill(self) -> None:
        """End it and all that it started, now; return when it is gone."""
        kill_group(self._process.pid)
        self._process.wait()

    def close(self) -> str:
        """Kill it if it lives, release everything, and return the end of what it wrote to standard error."""
        self.kill()
        self._pump.join(timeout=1.0)  # longer only if something it started has escaped its group
        for pipe in (self._orders, self._reports):
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
        return b"".join(self._tail).decode(errors="replace")[-_TAIL_BYTES:]

    def _send(self, line: bytes) -> None:
        with contextlib.suppress(BrokenPipeError):
            self._orders.write(line)
            self._orders.flush()

    def _pass_on(self, errors: IO[bytes]) -> None:
        size = 0
        with errors:
            for line in errors:
                with contextlib.suppress(OSError):  # nobody reads ours
                    sys.stderr.buffer.write(line)
                    sys.stderr.flush()
                self._tail.append(line)
                size += len(line)
                while size > _TAIL_BYTES and len(self._tail) > 1:
                    size -= len(self._tail.popleft())


def _understood(line: bytes) -> Report | None:
    """Return what a line reports; None if that is unknown, as from a version that was installed just now."""
    try:
        return Report.from_line(line)
    except ValueError:
        log.warning("A report was not understood", extra={"line": line[:100].decode(errors="replace")})
        return None


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    if pipe is None:
        raise ValueError("the process was started without this pipe")
    return pipe
