"""What the store gives out: values, never rows."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Final

from pydantic import JsonValue


class JobStatus(StrEnum):
    """Where a job stands in its life."""

    QUEUED = "queued"
    RUNNING = "running"
    PAUSING = "pausing"
    PAUSED = "paused"
    CANCELLING = "cancelling"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        """True when nothing but a retry or a deletion can follow."""
        return self in FINAL

    @property
    def is_held(self) -> bool:
        """True while a worker holds the job."""
        return self in HELD


FINAL: Final = frozenset({JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED})
HELD: Final = frozenset({JobStatus.RUNNING, JobStatus.PAUSING, JobStatus.CANCELLING})

TRANSITIONS: Final[Mapping[JobStatus, frozenset[JobStatus]]] = {
    JobStatus.QUEUED: frozenset({JobStatus.RUNNING, JobStatus.PAUSED, JobStatus.CANCELLED, JobStatus.FAILED}),
    JobStatus.RUNNING: frozenset(
        {JobStatus.QUEUED, JobStatus.PAUSING, JobStatus.CANCELLING, JobStatus.SUCCEEDED, JobStatus.FAILED}
    ),
    JobStatus.PAUSING: frozenset(
        {JobStatus.RUNNING, JobStatus.PAUSED, JobStatus.CANCELLING, JobStatus.SUCCEEDED, JobStatus.FAILED}
    ),
    JobStatus.PAUSED: frozenset({JobStatus.QUEUED, JobStatus.CANCELLED}),
    JobStatus.CANCELLING: frozenset({JobStatus.CANCELLED, JobStatus.SUCCEEDED}),
    JobStatus.SUCCEEDED: frozenset(),
    JobStatus.FAILED: frozenset({JobStatus.QUEUED}),
    JobStatus.CANCELLED: frozenset({JobStatus.QUEUED}),
}
"""Every legal change of status. `failed → queued` and `cancelled → queued` are retries."""


class FailureCode(StrEnum):
    """Why a job failed: stable, for programs."""

    DIVERGED = "diverged"
    OUT_OF_MEMORY = "out_of_memory"
    DEADLINE_EXCEEDED = "deadline_exceeded"
    WORKER_LOST = "worker_lost"
    STALLED = "stalled"
    BAD_DATA = "bad_data"
    INTERNAL = "internal"


class ReasonCode(StrEnum):
    """Why a job stands where it stands: stable, for programs."""

    WAITING_FOR_WORKER = "waiting_for_worker"
    WAITING_FOR_GPU = "waiting_for_gpu"
    NO_WORKER_ONLINE = "no_worker_online"
    BACKOFF = "backoff"
    PAUSED_BY_USER = "paused_by_user"
    PAUSE_REQUESTED = "pause_requested"
    CANCEL_REQUESTED = "cancel_requested"
    CANCELLED_BY_USER = "cancelled_by_user"


class AttemptOutcome(StrEnum):
    """How an attempt ended."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    PAUSED = "paused"
    DRAINED = "drained"
    LOST = "lost"


JsonObject = dict[str, JsonValue]
"""A JSON object as the database keeps it; non-finite numbers are the strings NaN, Infinity, -Infinity."""


@dataclass(frozen=True)
class StatusReason:
    """Why a job stands where it stands."""

    code: ReasonCode
    detail: str
    queue_position: int | None = None
    """1 for the job that is next, when it waits in the queue."""


@dataclass(frozen=True)
class Failure:
    """Why a job, or an attempt of it, ended in failure."""

    code: FailureCode
    detail: str
    attempt: int
    retryable: bool


@dataclass(frozen=True)
class JobRecord:
    """A job as it stood when it was read."""

    id: str
    name: str
    labels: Mapping[str, str]
    priority: int
    status: JobStatus
    status_reason: StatusReason | None
    failure: Failure | None
    spec: JsonObject
    """The specification with all defaults filled in."""
    method: str
    version: int
    """Grows by one with every change that a client can see, points included; the ETag."""
    attempt: int
    """Number of the last attempt; 0 before the first. Also the fencing number of its writes."""
    lost_attempts: int
    """How many attempts were lost by their worker; the job fails when this reaches `max_attempts`."""
    max_attempts: int
    worker_id: str | None
    steps_done: int
    """Points recorded: steps 0 … steps_done − 1."""
    steps_of: int
    """The budget's outer steps."""
    run_seconds: float
    """Time held by workers, over all ended attempts."""
    latest: JsonObject | None
    """The last point."""
    result: JsonObject | None
    created_at: datetime
    queued_at: datetime | None
    started_at: datetime | None
    ended_at: datetime | None


@dataclass(frozen=True)
class Checkpoint:
    """A saved state of a run, as a file in the file store."""

    key: str
    sha256: str
    step: int
    """Steps done when it was taken: the run goes on with this step."""


@dataclass(frozen=True)
class Lease:
    """The right of one attempt to write to its job; void as soon as another attempt begins."""

    job_id: str
    attempt: int


@dataclass(frozen=True)
class Claim:
    """A job that a worker has just taken, with all that it needs to begin."""

    lease: Lease
    spec: JsonObject
    checkpoints: tuple[Checkpoint, ...]
    """Newest first; the second is for when the first turns out damaged."""
    steps_done: int
    """Points already recorded: those steps, recomputed after a crash, are not recorded again."""
    run_seconds: float
    """Time that earlier attempts have used of the wall-clock budget; a retry grants it anew."""
    elapsed_s: float
    """Of the last point: the next ones go on from there."""


@dataclass(frozen=True)
class PointRecord:
    """One point of a trajectory."""

    step: int
    attempt: int
    at: datetime
    elapsed_s: float
    body: JsonObject
    """The remaining fields of the contract's trajectory point."""


@dataclass(frozen=True)
class EventRecord:
    """Something that a client sees happen, in the one order in which it happened."""

    seq: int
    kind: str
    """`status`, `point` or `log`."""
    body: JsonObject


@dataclass(frozen=True)
class AttemptRecord:
    """Who ran a job, where, and how that ended."""

    number: int
    worker_id: str
    host: str
    device: str
    started_at: datetime
    ended_at: datetime | None
    outcome: AttemptOutcome | None
    failure: Failure | None
    steps_from: int
    """Steps that were recorded when it began."""
    log_tail: str


@dataclass(frozen=True)
class FileRecord:
    """A file that a job made."""

    name: str
    key: str
    sha256: str
    size_bytes: int


class ColumnType(StrEnum):
    """What a column, or an array, holds."""

    NUMBER = "number"
    INTEGER = "integer"
    TEXT = "text"
    BOOLEAN = "boolean"


@dataclass(frozen=True)
class ColumnRecord:
    """A column of a table, an array of an NPZ, the features of an svmlight file as one, or a tensor of weights."""

    name: str
    type: ColumnType
    shape: tuple[int, ...]
    """Of one row: () for a column, (64,) for an array [n, 64]; of weights, which have no rows, the tensor's own."""
    missing: int
    """Values that are absent, NaN or infinite."""
    values: Mapping[str, int] | None
    """Value → rows, for up to 1,000 distinct integers, booleans or texts; None for all else."""


@dataclass(frozen=True)
class DatasetRecord:
    """An uploaded dataset, or one that ships with the service."""

    id: str
    name: str
    format: str
    rows: int
    """0 of weights (safetensors), which have none."""
    columns: tuple[ColumnRecord, ...]
    is_sparse: bool
    nonzeros: int | None
    sha256: str
    size_bytes: int
    key: str
    """Where the bytes lie in the file store; empty for a built-in dataset."""
    created_at: datetime


class WorkerState(StrEnum):
    """What a worker is doing."""

    IDLE = "idle"
    BUSY = "busy"
    DRAINING = "draining"
    OFFLINE = "offline"


@dataclass(frozen=True)
class WorkerRecord:
    """A worker that is alive, or was."""

    id: str
    host: str
    pid: int
    device: str
    """`cpu` or `cuda:N`."""
    device_name: str
    version: str
    state: WorkerState
    job_id: str | None
    started_at: datetime
    heartbeat_at: datetime


class KeyScope(StrEnum):
    """What an API key may do; each includes those before it."""

    READ = "read"
    SUBMIT = "submit"
    ADMIN = "admin"


@dataclass(frozen=True)
class KeyRecord:
    """An API key without its secret."""

    id: str
    name: str
    scope: KeyScope
    created_at: datetime
    last_used_at: datetime | None
    revoked_at: datetime | None


@dataclass(frozen=True)
class StoredAnswer:
    """An HTTP answer kept for a repeated request with the same idempotency key."""

    status: int
    headers: Mapping[str, str]
    body: str
