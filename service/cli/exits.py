"""How a command ends: the exit codes, and the one error that commands raise for people."""

from collections.abc import Sequence
from enum import IntEnum
from typing import Final


class ExitCode(IntEnum):
    """What the shell sees. Stable: scripts are written against it."""

    OK = 0
    JOB_FAILED = 1
    USAGE = 2
    REFUSED = 3
    UNREACHABLE = 4
    INTERRUPTED = 130


EXIT_CODES: Final[dict[ExitCode, str]] = {
    ExitCode.OK: "done; for a watched job: it succeeded",
    ExitCode.JOB_FAILED: "the job failed or was cancelled; a check of `doctor` failed; a local service could not start",
    ExitCode.USAGE: "the command line, a file that it names or a setting is wrong",
    ExitCode.REFUSED: "the server refused the request (4xx)",
    ExitCode.UNREACHABLE: "the server, or the database, cannot be reached or had an error (5xx)",
    ExitCode.INTERRUPTED: "interrupted by Ctrl-C",
}
"""Every exit code and what it means, as `--help` and the documentation show it."""


class CommandError(Exception):
    """A command cannot do what was asked: the message says what was found, the hint what to do."""

    def __init__(
        self, message: str, *, code: ExitCode, hint: str | None = None, details: Sequence[tuple[str, str]] = ()
    ) -> None:
        """Take the message, an optional hint, and `details`: pairs of a JSON Pointer and what is wrong there."""
        Exception.__init__(self, message)
        self.message = message
        self.code = code
        self.hint = hint
        self.details = tuple(details)
