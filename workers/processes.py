"""What a worker asks of the operating system: children that die with it, memory in use, kills by the kernel."""

import contextlib
import ctypes
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Final

import psutil

_PR_SET_PDEATHSIG: Final = 1


def die_with_parent(parent_pid: int) -> None:
    """Ask the kernel to kill this process when its parent dies, however it dies.

    Called by the child itself as its first act, not between fork and exec, where a parent with threads
    may run almost nothing. The signal is tied to the thread that started the child: that must be one
    that lives as long as the parent, so its main thread.

    Args:
        parent_pid: the process that started this one; if it is gone already, this one ends at once.
    """
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) was refused")
    if os.getppid() != parent_pid:  # it died before the kernel was asked
        os._exit(1)


def prefer_as_victim() -> None:
    """Let the kernel, when memory runs out, kill this process rather than its supervisor or a database."""
    with contextlib.suppress(OSError):  # not Linux, or a container that forbids it
        Path("/proc/self/oom_score_adj").write_text("500")


def lower_thread_priority() -> None:
    """Give way to every other thread of the machine; only for the calling thread."""
    if sys.platform == "linux":  # where a thread has a niceness of its own
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)


def kill_group(pid: int) -> None:
    """Kill the process group that `pid` leads, whatever it is doing; nothing if it is gone."""
    with contextlib.suppress(ProcessLookupError, PermissionError):  # a zombie's group on some systems
        os.killpg(pid, signal.SIGKILL)


def resident_bytes(process: psutil.Process, *, with_children: bool) -> int:
    """Return the memory that a process holds, in bytes, or 0 if it is gone.

    Args:
        process: the process.
        with_children: also count its descendants; walks over all processes of the machine.
    """
    total = 0
    with contextlib.suppress(psutil.NoSuchProcess):
        total = int(process.memory_info().rss)
        for child in process.children(recursive=True) if with_children else ():
            with contextlib.suppress(psutil.NoSuchProcess):
                total += int(child.memory_info().rss)
    return total


def kernel_kills() -> int:
    """Return how many processes the kernel has killed for lack of memory, here since the machine started."""
    total = 0
    for source in (Path("/sys/fs/cgroup/memory.events"), Path("/proc/vmstat")):
        with contextlib.suppress(OSError):
            for line in source.read_text().splitlines():
                name, _, count = line.partition(" ")
                if name == "oom_kill":
                    total += int(count)
    return total
