"""Which device a worker is bound to, found out without torch, whose CUDA must not be touched before a job starts."""

import ctypes
import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

_NVML: Final = "libnvidia-ml.so.1"
_TEXT_BYTES: Final = 96


@dataclass(frozen=True)
class Device:
    """What a worker computes on."""

    name: str
    """`cpu` or `cuda:N`."""
    title: str
    """For people: the model."""
    uuid: str | None = None
    """Of a GPU: what `CUDA_VISIBLE_DEVICES` shows a runner."""

    @property
    def kind(self) -> str:
        """`cpu` or `cuda`."""
        return self.name.partition(":")[0]


def find_device(wanted: str, environment: Mapping[str, str]) -> Device:
    """Return the device that is meant by `auto`, `cpu`, `cuda` or `cuda:N`.

    Args:
        wanted: `auto` is the first GPU that can be seen, else the CPU.
        environment: a `CUDA_VISIBLE_DEVICES` in it limits and orders what N counts.

    Raises:
        ValueError: there is no such device.
    """
    if wanted == "cpu":
        return Device("cpu", _cpu_title())
    match = re.fullmatch(r"auto|cuda(?::(\d+))?", wanted, re.ASCII)
    if match is None:
        raise ValueError(f"the device is {wanted!r}: auto, cpu, cuda and cuda:N are possible")
    gpus = _visible(_gpus(), environment.get("CUDA_VISIBLE_DEVICES"))
    index = int(match[1] or 0)
    if index < len(gpus):
        return replace(gpus[index], name=f"cuda:{index}")
    if wanted == "auto":
        return Device("cpu", _cpu_title())
    raise ValueError(f"there is no {wanted}: {len(gpus)} GPUs can be seen")


def _visible(gpus: list[Device], visible: str | None) -> list[Device]:
    if visible is None:
        return gpus
    chosen = []
    for entry in filter(None, (part.strip() for part in visible.split(","))):
        found = [gpu for gpu in gpus if entry in (gpu.name, gpu.uuid)]
        if entry.startswith("MIG-"):  # a slice of a GPU, which NVML lists elsewhere
            found = [Device(entry, "MIG slice", entry)]
        if not found:
            break  # as CUDA does: what follows an unknown entry is not seen
        chosen.append(found[0])
    return chosen


def _gpus() -> list[Device]:
    """Return all NVIDIA GPUs as their management library lists them, named by their number."""
    try:
        nvml = ctypes.CDLL(_NVML)
    except OSError:
        return []
    if nvml.nvmlInit_v2() != 0:
        return []
    try:
        count = ctypes.c_uint()
        if nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)) != 0:
            return []
        gpus = []
        for index in range(count.value):
            handle = ctypes.c_void_p()
            if nvml.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(index), ctypes.byref(handle)) != 0:
                continue
            title, uuid = (ctypes.create_string_buffer(_TEXT_BYTES) for _ in range(2))
            nvml.nvmlDeviceGetName(handle, title, ctypes.c_uint(_TEXT_BYTES))
            nvml.nvmlDeviceGetUUID(handle, uuid, ctypes.c_uint(_TEXT_BYTES))
            gpus.append(Device(str(index), title.value.decode(), uuid.value.decode()))
        return gpus
    finally:
        nvml.nvmlShutdown()


def _cpu_title() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def runner_environment(environment: Mapping[str, str], device: Device, *, threads: int) -> dict[str, str]:
    """Return the environment of a runner: what is inherited, one GPU or none, and repeatable arithmetic."""
    return {
        **environment,
        "CUDA_VISIBLE_DEVICES": device.uuid or "",
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # without it cuBLAS may sum in another order each time
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "OPENBLAS_NUM_THREADS": "1",  # of numpy and scipy, which do no heavy work here; torch has its own
        "OMP_DYNAMIC": "false",
        # Waiting threads sleep instead of spinning: beside other processes, spinning was seen to cost fifty times
        # the time of the work itself.
        "OMP_WAIT_POLICY": "passive",
        "MKL_DYNAMIC": "false",
    }
