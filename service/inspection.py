"""Looks at an uploaded file in a process of its own, with limits: what is in it, or why it cannot be used."""

import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from pydantic import JsonValue, TypeAdapter

from service.errors import JobError
from service.records import ColumnRecord, JsonObject

log = logging.getLogger(__name__)

_MODULE: Final = "workers.data.inspect"
"""A name, not an import: the service runs where torch and numpy are not."""
_REFUSED: Final = 3


class DatasetFormat(StrEnum):
    """Formats that can be uploaded."""

    CSV = "csv"
    PARQUET = "parquet"
    NPZ = "npz"
    SVMLIGHT = "svmlight"
    ZIP_IMAGES = "zip-images"
    SAFETENSORS = "safetensors"


class UnusableFile(JobError):
    """The file cannot be used as a dataset."""


class InspectionUnavailable(JobError):
    """This server cannot look into files: the packages that read them are not installed."""


@dataclass(frozen=True)
class InspectionLimits:
    """What reading one file may take."""

    unpacked_bytes: int = 8 * 2**30
    memory_bytes: int = 8 * 2**30
    """Address space; the libraries alone take 1 GiB of it, little of that in memory."""
    cpu_seconds: int = 600
    wall_seconds: float = 900.0


@dataclass(frozen=True)
class Inspection:
    """What was found in a file."""

    rows: int
    """0 for a file of weights, which has none."""
    columns: tuple[ColumnRecord, ...]
    is_sparse: bool
    nonzeros: int | None


_ANSWER: Final = TypeAdapter(Inspection)
_PREVIEW: Final = TypeAdapter(dict[str, JsonValue])


def inspect(path: Path, file_format: DatasetFormat, *, limits: InspectionLimits) -> Inspection:
    """Read the file in a limited process and return what it holds. Blocks for as long as that takes.

    Raises:
        UnusableFile: it cannot be used; the detail is a sentence that says why.
        InspectionUnavailable: the reader is not installed here.
    """
    return _ANSWER.validate_json(_run([str(path.absolute()), file_format.value], limits))


def preview(path: Path, file_format: DatasetFormat, *, rows: int, limits: InspectionLimits) -> JsonObject:
    """The first rows: `{"columns": [name, …], "rows": [[value, …], …], "columns_left_out": n}`.

    Raises:
        UnusableFile, InspectionUnavailable: as `inspect` does.
    """
    answer = _run([str(path.absolute()), file_format.value, "--preview", str(rows)], limits)
    return _PREVIEW.validate_json(answer)


def preview_builtin(dataset_id: str, *, rows: int, limits: InspectionLimits) -> JsonObject:
    """The first rows of a dataset that ships with the service, as `preview` gives them."""
    return _PREVIEW.validate_json(_run([dataset_id, "builtin", "--preview", str(rows)], limits))


def _run(arguments: list[str], limits: InspectionLimits) -> bytes:
    command = [sys.executable, "-P", "-m", _MODULE, *arguments]
    command += ["--limit", str(limits.unpacked_bytes), "--memory", str(limits.memory_bytes)]
    command += ["--cpu-seconds", str(limits.cpu_seconds)]
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as errors:
        try:
            status = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=errors,
                timeout=limits.wall_seconds,
                env=_environment(),
                cwd=tempfile.gettempdir(),
                check=False,
            ).returncode
        except subprocess.TimeoutExpired:
            raise UnusableFile(f"Reading the file took longer than {limits.wall_seconds:g} s.") from None
        out.seek(0)
        answer = out.read()
        errors.seek(0)
        complaint = errors.read(1 << 16).decode(errors="replace")
    if status == 0:
        return answer
    if status == _REFUSED:
        raise UnusableFile(_refusal(answer))
    if "ModuleNotFoundError" in complaint:
        log.error("The inspection of files is not installed.", extra={"complaint": complaint[-2000:]})
        raise InspectionUnavailable
    log.warning("An inspection crashed.", extra={"status": status, "complaint": complaint[-2000:]})
    raise UnusableFile(_crash(status, complaint, limits))


def _environment() -> dict[str, str]:
    # No secret of the service reaches the process that parses a stranger's file. One thread: threads cost address
    # space. The system's allocator: the others reserve it in blocks of a gigabyte.
    return {
        "PATH": os.environ.get("PATH", os.defpath),
        "LANG": "C.UTF-8",
        "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry),
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "ARROW_DEFAULT_MEMORY_POOL": "system",
    }


def _refusal(answer: bytes) -> str:
    try:
        refused = json.loads(answer)["refused"]
    except (ValueError, KeyError, TypeError):
        return "The file could not be read."
    return str(refused)


def _crash(status: int, complaint: str, limits: InspectionLimits) -> str:
    if -status == signal.SIGXCPU:
        return f"Reading the file took more than {limits.cpu_seconds} s of processor time."
    signs = ("MemoryError", "bad_alloc", "annot allocate memory", "failed to map segment")
    if -status in (signal.SIGKILL, signal.SIGABRT) or any(sign in complaint for sign in signs):
        return f"Reading the file takes more than {limits.memory_bytes / 2**30:.3g} GiB of memory."
    return "The file could not be read: it is damaged, or not of the format that was said."
