"""What a supervisor and its runner say to each other, one line at a time. Torch-free."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from pydantic import TypeAdapter

from service.records import Claim


@dataclass(frozen=True)
class Assignment:
    """The one job of a runner: the first line it hears."""

    claim: Claim
    device: str
    """`cpu` or `cuda`: a runner sees at most one GPU."""
    threads: int
    """Of a computation on the CPU. A resumed run keeps the number that it began with, to stay the same run."""

    def to_line(self) -> bytes:
        """Return it as a line of JSON."""
        return _ASSIGNMENT.dump_json(self) + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> "Assignment":
        """Read it back.

        Raises:
            pydantic.ValidationError: the line says something else.
        """
        return _ASSIGNMENT.validate_json(line)


_ASSIGNMENT: Final = TypeAdapter(Assignment)


class Order(StrEnum):
    """What a supervisor wants of a runner at its next step; a later order replaces an earlier one."""

    GO_ON = "go_on"
    """A pause was withdrawn."""
    PAUSE = "pause"
    CANCEL = "cancel"
    DRAIN = "drain"
    """The worker leaves: save, and let another one go on."""
    DEADLINE = "deadline"
    """The budget of time is spent: save, and fail."""


LATE: Final = "the job did not end within its budget of wall-clock time"
"""Why a job fails after `Order.DEADLINE`, whoever of the two writes it down."""


class Phase(StrEnum):
    """What a runner is at."""

    READY = "ready"
    """Everything is imported: it waits for its job."""
    PREPARING = "preparing"
    STEPPING = "stepping"
    """Its steps are counted against the stall limit."""
    WAITING = "waiting"
    """It cannot go on before the database or the file store is back."""
    CHECKING = "checking"
    CONCLUDING = "concluding"
    """Its verdict is being written; a lease that ends now has probably ended by that."""
    ENDED = "ended"
    """The verdict is written, or not its to write any more."""


@dataclass(frozen=True)
class Report:
    """A sign of life of a runner."""

    phase: Phase
    step: int
    """Steps done."""

    def to_line(self) -> bytes:
        """Return it as a line."""
        return f"{self.phase} {self.step}\n".encode()

    @classmethod
    def from_line(cls, line: bytes) -> "Report":
        """Read it back.

        Raises:
            ValueError: the line says something else.
        """
        phase, step = line.decode().split()
        return cls(Phase(phase), int(step))
