"""What only the HTTP layer refuses. As in `service.errors`, the docstring of a class is its message."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from service.errors import JobError
from service.rates import Verdict
from service.records import KeyScope


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong with a request."""

    detail: str
    pointer: str | None = None
    """JSON Pointer (RFC 6901) into the body; None when it is not the body that is wrong."""
    parameter: str | None = None
    """Name of the query parameter or header."""


class Unauthenticated(JobError):
    """An API key is needed: send it as `Authorization: Bearer hd_…`."""


class ScopeMissing(JobError):
    """The API key does not allow this."""

    def __init__(self, needed: KeyScope, has: KeyScope) -> None:
        """Say which scope would allow it."""
        JobError.__init__(self, f"this needs a key with the scope {needed.value!r}; the key has {has.value!r}")


class ForeignPage(JobError):
    """A page of another site sent this request; without API keys only the service's own pages and programs may."""


class InvalidRequest(JobError):
    """The request is understood, and something in it is wrong."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        """Take all that is wrong."""
        first, others = faults[0], len(faults) - 1
        place = first.pointer or first.parameter
        more = f" (and {others} more, see errors)" if others else ""
        JobError.__init__(self, f"{place}: {first.detail}{more}" if place else f"{first.detail}{more}")
        self.faults = tuple(faults)


class MalformedBody(JobError):
    """The body is not what its content type says."""


class EmptyBody(JobError):
    """A body is needed: a JSON object."""


class UnsupportedMediaType(JobError):
    """The body's content type is not one that is understood here: send `application/json`."""


class NotAcceptable(JobError):
    """None of the content types in Accept can be given."""


class BodyTooLarge(JobError):
    """The body is larger than this service takes."""

    def __init__(self, limit_bytes: int) -> None:
        """Say what the limit is."""
        JobError.__init__(self, f"the body may have at most {limit_bytes:,} bytes")


class BadCursor(JobError):
    """The cursor is not one that this list gave out with these filters: begin again without it."""


class BadIdempotencyKey(JobError):
    """An Idempotency-Key is 1 to 255 visible ASCII characters."""


class PreconditionRequired(JobError):
    """A change needs `If-Match` with the ETag that was read, so that nobody's change is overwritten unseen."""


class RateExceeded(JobError):
    """Too many requests: wait as long as Retry-After says."""

    def __init__(self, verdict: Verdict, *, whose: str) -> None:
        """Say what the limit is, and when it will be met again."""
        rate = verdict.rate
        JobError.__init__(
            self,
            f"{whose} may send {rate.count:,} requests in {rate.period_seconds:,} s; the next is served in "
            f"{verdict.retry_seconds:.3g} s",
        )
        self.retry_seconds = max(1, math.ceil(verdict.retry_seconds))


class TooManyStreams(JobError):
    """This process serves as many event streams as it may: try again shortly, or poll the job."""


class NothingLeft(JobError):
    """The job has ended and all its events were received."""


class RangeUnsatisfiable(JobError):
    """The range lies beyond the file's end."""

    def __init__(self, size_bytes: int) -> None:
        """Say how long the file is."""
        JobError.__init__(self, f"the file has {size_bytes:,} bytes: the range must begin before its end")
        self.size_bytes = size_bytes


class FilesUnavailable(JobError):
    """The file store cannot be reached or is full."""
