"""Why a job failed, in a code for programs and a sentence for people. No traceback leaves the worker."""

from dataclasses import dataclass
from typing import Final

import torch

from service.records import FailureCode
from workers.data.errors import BadData
from workers.learn.errors import AllDiverged, LearnError

_CPU_ALLOCATION: Final = "DefaultCPUAllocator"
"""In the message of torch's error over host memory, which has no class of its own."""


@dataclass(frozen=True)
class Cause:
    """Of a failure."""

    code: FailureCode
    detail: str
    retryable: bool
    """Whether the same job may succeed when it is run again."""


class Diverged(Exception):
    """The losses were no longer finite."""


class Late(Exception):
    """The budget of time is spent."""


class CheckpointsUnreadable(Exception):
    """There are saved states and none can be used: the job is not started over from nothing in silence."""


def cause_of(error: Exception) -> Cause:
    """Return why a job fails that met `error`."""
    match error:
        case BadData():
            return Cause(FailureCode.BAD_DATA, str(error), retryable=False)
        case Diverged() | AllDiverged():
            return Cause(FailureCode.DIVERGED, str(error), retryable=False)
        case Late():
            return Cause(FailureCode.DEADLINE_EXCEEDED, str(error), retryable=False)
        case torch.OutOfMemoryError():
            return Cause(FailureCode.OUT_OF_MEMORY, "the GPU's memory does not suffice for the job", retryable=False)
        case MemoryError():
            return Cause(FailureCode.OUT_OF_MEMORY, "the memory does not suffice for the job", retryable=False)
        case RuntimeError() if _CPU_ALLOCATION in str(error):
            return Cause(FailureCode.OUT_OF_MEMORY, "the memory does not suffice for the job", retryable=False)
        case LearnError() | CheckpointsUnreadable():
            return Cause(FailureCode.INTERNAL, str(error), retryable=False)
        case OSError():
            return Cause(FailureCode.INTERNAL, "the file store could not be reached for too long", retryable=True)
        case _:
            kind = type(error).__name__
            return Cause(
                FailureCode.INTERNAL, f"the worker met an unexpected {kind}; its log says more", retryable=False
            )
