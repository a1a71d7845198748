"""How many CPUs there are to share."""

import contextlib
import os
import sys
from pathlib import Path
from typing import Final

_CGROUPS: Final = Path("/sys/fs/cgroup")
_OWN_CGROUP: Final = Path("/proc/self/cgroup")


def usable_cpus(*, cgroups: Path = _CGROUPS, own: Path = _OWN_CGROUP) -> int:
    """Return how many CPUs this process may use: those of its affinity, fewer if a quota says so.

    A quota may be set for the process's control group, as systemd does it for a service, or for any above it, as
    containers have it. A part of a CPU is none, but there is always one.

    Args:
        cgroups: where version 2 of control groups is mounted.
        own: the file that names this process's group.
    """
    count = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    group = cgroups
    with contextlib.suppress(OSError, StopIteration):
        lines = own.read_text(encoding="ascii", errors="replace").splitlines()
        group = cgroups / next(line.removeprefix("0::/") for line in lines if line.startswith("0::/"))
    for folder in (group, *group.parents):
        if not folder.is_relative_to(cgroups):
            break
        with contextlib.suppress(OSError, ValueError):
            quota, period = (folder / "cpu.max").read_text(encoding="ascii").split()
            count = min(count, max(1, int(quota) // int(period)))  # "max" is no number: no quota
    return count


def share_of_cpus(workers: int) -> int:
    """Return how many threads each of so many workers gets, so that together they use what there is: one at least."""
    return max(1, usable_cpus() // workers)
