"""Processes that are started, restarted when they die, and ended in order."""

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final, final

LONGEST_PAUSE_S: Final = 30.0
STEADY_S: Final = 30.0
"""A child that ran for so long was well: its next death is a first one again."""

_PR_SET_PDEATHSIG: Final = 1
_LIBC: Final = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


@dataclass(frozen=True)
class Program:
    """What a child runs."""

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str]
    log: Path
    stop_seconds: float
    """Time from SIGTERM until it is killed."""
    keep_open: tuple[int, ...] = ()
    """File descriptors that it inherits."""


class State(StrEnum):
    """What a child is doing."""

    RUNNING = "running"
    RESTARTING = "restarting"
    STOPPING = "stopping"
    STOPPED = "stopped"


@final
class Child:
    """One supervised process. Must be used from the main thread: a child lives as long as the thread that forked it."""

    def __init__(self, program: Program, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Take what to run; nothing is started yet."""
        self.program = program
        self.state = State.STOPPED
        self.deaths = 0
        """Times that it died by itself since it was last steady."""
        self.last_exit: int | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._clock = clock
        self._since = 0.0
        self._again_at = 0.0

    @property
    def pid(self) -> int | None:
        """Its process id while it runs."""
        return self._process.pid if self._process is not None else None

    @property
    def up_seconds(self) -> float:
        """How long it has been running."""
        return self._clock() - self._since if self._process is not None else 0.0

    def start(self) -> None:
        """Start the process; it dies with this one, and a Ctrl-C of the terminal does not reach it."""
        parent = os.getpid()

        def bind_to_parent() -> None:
            if _LIBC is not None:
                # SIGTERM, not SIGKILL: workers save their jobs even when this process was killed.
                _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
                if os.getppid() != parent:
                    os._exit(1)

        with self.program.log.open("ab") as log:
            self._process = subprocess.Popen(
                self.program.argv,
                env=dict(self.program.env),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=self.program.keep_open,
                preexec_fn=bind_to_parent,
            )
        self._since = self._clock()
        self.state = State.RUNNING

    def tick(self) -> bool:
        """Notice a death, start again when it is time; return True when the state has changed."""
        match self.state:
            case State.RUNNING if self._process is not None and (code := self._process.poll()) is not None:
                self.deaths = 1 if self.up_seconds > STEADY_S else self.deaths + 1
                self.last_exit = code
                self._process = None
                self._again_at = self._clock() + min(LONGEST_PAUSE_S, 0.25 * 2 ** (self.deaths - 1))
                self.state = State.RESTARTING
                return True
            case State.RESTARTING if self._clock() >= self._again_at:
                self.start()
                return True
            case _:
                return False

    def log_tail(self, lines: int = 12) -> str:
        """The last lines that it wrote."""
        try:
            with self.program.log.open("rb") as log:
                log.seek(max(0, log.seek(0, os.SEEK_END) - 16_384))
                return "\n".join(log.read().decode("utf-8", "replace").splitlines()[-lines:])
        except OSError:
            return ""

    def trim_log(self, limit_bytes: int) -> None:
        """Move a log that has grown past the limit aside; one earlier log is kept."""
        log = self.program.log
        if log.exists() and log.stat().st_size > limit_bytes:
            shutil.copyfile(log, log.with_suffix(".log.1"))
            os.truncate(log, 0)  # the child appends, so it goes on at the new end


def stop(children: Sequence[Child], *, hurry: Callable[[], bool], show: Callable[[], None]) -> list[Child]:
    """End children, all at once, and wait for them; return those that had to be killed.

    Args:
        children: those to end; each has its own `stop_seconds` to do so by itself.
        hurry: asked again and again; when it says True, the rest is killed without waiting.
        show: called while waiting.
    """
    alive = []
    for child in children:
        if child._process is not None and child._process.poll() is None:
            child.state = State.STOPPING
            child._process.send_signal(signal.SIGTERM)
            alive.append(child)
        else:
            child.state = State.STOPPED
    began, killed = time.monotonic(), []
    while alive:
        for child in list(alive):
            process = child._process
            late = time.monotonic() - began > child.program.stop_seconds or hurry()
            if process is not None and process.poll() is None and late:
                _kill_group(process)
                process.wait()
                killed.append(child)
            if process is None or process.poll() is not None:
                child.last_exit = process.returncode if process is not None else None
                child._process = None
                child.state = State.STOPPED
                alive.remove(child)
        show()
        if alive:
            time.sleep(0.05)
    return killed


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    # The child leads its own group; what it started goes with it.
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        process.kill()
