"""The domain's refusals. The docstring of a class is the message for people."""

from service.records import JobStatus


class JobError(Exception):
    """The request cannot be met."""

    def __init__(self, detail: str | None = None) -> None:
        """Take `detail`, or the docstring, as the message."""
        self.detail = detail or (type(self).__doc__ or "").strip()
        Exception.__init__(self, self.detail)


class NotFound(JobError):
    """There is no such object."""


class StateConflict(JobError):
    """The job's status does not allow this."""

    def __init__(self, current: JobStatus, allowed: frozenset[JobStatus], verb: str) -> None:
        """Say what the status is and which would allow `verb`."""
        states = ", ".join(sorted(allowed))
        JobError.__init__(self, f"a job that is {current} cannot {verb}; one that is {states} can")
        self.current = current
        self.allowed = allowed


class StaleVersion(JobError):
    """The object has changed since it was read: read it again."""


class DatasetInUse(JobError):
    """A job that has not ended needs this dataset: end it first, or delete with `force=true`."""


class IdempotencyMismatch(JobError):
    """This Idempotency-Key was used with another request: take a new key."""


class IdempotencyInProgress(JobError):
    """The first request with this Idempotency-Key has not been answered yet: try again shortly."""


class LeaseLost(JobError):
    """Another attempt has taken the job: nothing more may be written to it."""


class StoreUnavailable(JobError):
    """The database cannot be reached."""


class QueueUnavailable(JobError):
    """The queue cannot be reached."""


class FileForgotten(JobError):
    """The file took so long to be referred to that it was given up: store it anew."""


class FileMissing(JobError):
    """The file store does not hold this file."""
