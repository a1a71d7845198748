"""The shapes of all answers: frozen values, written as JSON without being validated a second time.

They are declared in OpenAPI as they stand here. Non-finite numbers travel as `"NaN"`, `"Infinity"` and
`"-Infinity"`; numbers inside trajectory points and results come from the database already written so.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Final, Literal

from pydantic import ConfigDict, Field, JsonValue
from pydantic.fields import FieldInfo

from service.admission import AdmissionWarning
from service.estimates.base import Estimate
from service.records import AttemptOutcome, ColumnType, FailureCode, JobStatus, ReasonCode, WorkerState

VIEW: Final = ConfigDict(ser_json_inf_nan="strings")

Number = float | Literal["NaN", "Infinity", "-Infinity"]
"""A number as it travels."""

Json = dict[str, JsonValue]


def says(description: str) -> FieldInfo:
    """The description of a field."""
    # Not docstrings below the fields: pydantic would parse this file once for each class.
    field: FieldInfo = Field(description=description)
    return field


@dataclass(frozen=True)
class ReasonView:
    """Why a job stands where it stands."""

    __pydantic_config__ = VIEW

    code: Annotated[ReasonCode, says("For programs; more may be added.")]
    detail: str
    queue_position: Annotated[int | None, says("1 for the job that is next, when it waits in the queue.")]


@dataclass(frozen=True)
class FailureView:
    """Why a job, or an attempt of it, ended in failure."""

    __pydantic_config__ = VIEW

    code: Annotated[FailureCode, says("For programs; more may be added.")]
    detail: str
    attempt: int
    retryable: Annotated[bool, says("Whether trying again without a change may help.")]


@dataclass(frozen=True)
class ProgressView:
    """How far a job is."""

    __pydantic_config__ = VIEW

    step: Annotated[int, says("Points recorded.")]
    of: Annotated[int, says("Steps of its budget; it may end earlier.")]
    fraction: Annotated[float, says("0 to 1; 1 when it has succeeded.")]
    eta_s: Annotated[
        float | None,
        says("Seconds until the budget of steps is spent, at the pace so far; null when it is not running."),
    ]


@dataclass(frozen=True)
class JobView:
    """A job."""

    __pydantic_config__ = VIEW

    id: Annotated[str, Field(examples=["job_01m5w3k0qyzx8v2h6t9c4r7n1p"])]
    name: str
    labels: Mapping[str, str]
    priority: int
    method: Annotated[str, says("The kind of its method.")]
    status: JobStatus
    status_reason: ReasonView | None
    failure: FailureView | None
    spec: Annotated[Json, says("The specification with all defaults filled in.")]
    progress: ProgressView
    latest: Annotated[Json | None, says("The last point of its trajectory.")]
    attempt: Annotated[int, says("Number of the last attempt; 0 before the first.")]
    lost_attempts: Annotated[int, says("Attempts that their worker was lost in.")]
    max_attempts: Annotated[int, says("The job fails when so many were lost.")]
    worker: Annotated[str | None, says("The worker that has, or had, it.")]
    run_seconds: Annotated[float, says("Time that ended attempts have used.")]
    created_at: datetime
    queued_at: datetime | None
    started_at: datetime | None
    ended_at: datetime | None
    links: Mapping[str, str]


@dataclass(frozen=True)
class JobPage:
    """Jobs, newest first."""

    __pydantic_config__ = VIEW

    items: list[JobView]
    next_cursor: Annotated[str | None, says("For `cursor`, to go on; null at the end.")]


@dataclass(frozen=True)
class DryRunView:
    """What would be made of a specification."""

    __pydantic_config__ = VIEW

    valid: Annotated[Literal[True], says("An invalid specification is refused as it would be in earnest.")]
    spec: Annotated[Json, says("The specification with all defaults filled in.")]
    estimate: Annotated[Estimate | None, says("What the job would take.")]
    warnings: Annotated[list[AdmissionWarning], says("What is allowed and may disappoint.")]


@dataclass(frozen=True)
class AttemptView:
    """Who ran a job, where, and how that ended."""

    __pydantic_config__ = VIEW

    number: int
    worker: str
    host: str
    device: str
    started_at: datetime
    ended_at: datetime | None
    outcome: Annotated[AttemptOutcome | None, says("Null while it runs.")]
    failure: FailureView | None
    steps_from: Annotated[int, says("Points that were there when it began.")]
    log_tail: str


@dataclass(frozen=True)
class AttemptList:
    """All attempts of a job, the first one first."""

    __pydantic_config__ = VIEW

    items: list[AttemptView]


@dataclass(frozen=True)
class SpreadView:
    """Many strengths of one name, in short."""

    __pydantic_config__ = VIEW

    size: int
    min: Number
    median: Number
    max: Number
    norm: Number


@dataclass(frozen=True)
class PointView:
    """One step of learning. Methods may add fields."""

    __pydantic_config__ = VIEW

    step: Annotated[int, says("0, 1, 2, … without a gap or a repeat.")]
    attempt: int
    at: datetime
    elapsed_s: Annotated[float, says("Time that the job had been running for, over all its attempts.")]
    hyperparameters: Annotated[Mapping[str, Number | SpreadView], says("Strengths in natural units, by name.")]
    train_loss: Number | None
    valid_loss: Number | None
    hypergradient_norm: Number | None
    metrics: Json
    inner: Annotated[Json, says('`{"iterations", "residual"}` and what else the solver says.')]
    certificate: Annotated[Json | None, says("What bounds the error, for methods that know.")]


@dataclass(frozen=True)
class PointPage:
    """Points in the order of their steps."""

    __pydantic_config__ = VIEW

    items: list[PointView]
    next_after: Annotated[int | None, says("For `after`, to go on; null when there are no more yet.")]


@dataclass(frozen=True)
class ResultView:
    """What a job learned."""

    __pydantic_config__ = VIEW

    hyperparameters: Json
    metrics: Annotated[Json, says("By part: `train`, `valid`, `test`.")]
    evidence: Annotated[Json, says("Why the answer may be trusted.")]
    model: Annotated[Json, says("What the final model is: rows, features, classes and the like, by its kind.")]
    cost: Json
    files: list[JsonValue]
    reproduce: Annotated[Json, says("The specification, the seed and the versions that give it again.")]
    calibration: Annotated[
        Json | None, says("How far predictions of parts held back can be believed; null where they are mere numbers.")
    ] = None
    self_tuning: Annotated[Json | None, says("Of `stn`: the schedule of the strengths, and predicted losses.")] = None


@dataclass(frozen=True)
class FileView:
    """A file that a job made."""

    __pydantic_config__ = VIEW

    name: str
    bytes: int
    sha256: str
    links: Mapping[str, str]


@dataclass(frozen=True)
class FileList:
    """All files of a job, by name."""

    __pydantic_config__ = VIEW

    items: list[FileView]


@dataclass(frozen=True)
class ColumnView:
    """A column of a table, an array of an NPZ, the features of an svmlight file as one, or a tensor of weights."""

    __pydantic_config__ = VIEW

    name: str
    type: ColumnType
    shape: Annotated[list[int], says("Of one row: [] for a column, [64] for an array [n, 64]; of weights its own.")]
    missing: Annotated[int, says("Values that are absent or NaN.")]
    values: Annotated[Mapping[str, int] | None, says("Value → rows, where there are few distinct values.")]


@dataclass(frozen=True)
class DatasetView:
    """A dataset: uploaded, or one that ships with the service."""

    __pydantic_config__ = VIEW

    id: Annotated[str, Field(examples=["builtin:digits"])]
    name: str
    format: str
    rows: Annotated[int, says("0 of weights (safetensors), which have none.")]
    columns: list[ColumnView]
    sparse: bool
    nonzeros: int | None
    sha256: Annotated[str, says("Of the file; empty for one that ships with the service.")]
    bytes: int
    created_at: datetime
    links: Mapping[str, str]


@dataclass(frozen=True)
class DatasetPage:
    """Datasets, newest first; those that ship with the service come last."""

    __pydantic_config__ = VIEW

    items: list[DatasetView]
    next_cursor: Annotated[str | None, says("For `cursor`, to go on; null at the end.")]


@dataclass(frozen=True)
class PreviewView:
    """The first rows of a dataset; of weights, which have none, the first tensors."""

    __pydantic_config__ = VIEW

    columns: list[str]
    rows: list[list[JsonValue]]
    columns_left_out: Annotated[int, says("Columns that there are beside those shown.")]


@dataclass(frozen=True)
class MethodView:
    """A method."""

    __pydantic_config__ = VIEW

    name: str
    description: str
    source: Annotated[str | None, says("The paper.")]
    schema: Annotated[Json, says("JSON Schema of `method` in a specification.")]
    models: Annotated[
        Mapping[str, list[str]], says("Model → regularizers that this method can learn on it, alone or together.")
    ]


@dataclass(frozen=True)
class PartView:
    """A model, regularizer or loss."""

    __pydantic_config__ = VIEW

    name: str
    description: str
    source: Annotated[str | None, says("The paper.")]
    schema: Annotated[Json, says("JSON Schema of its part of a specification.")]
    methods: Annotated[list[str], says("Methods that can take it.")]


@dataclass(frozen=True)
class MethodList:
    """All methods."""

    __pydantic_config__ = VIEW

    items: list[MethodView]


@dataclass(frozen=True)
class PartList:
    """All models, all regularizers or all losses."""

    __pydantic_config__ = VIEW

    items: list[PartView]


@dataclass(frozen=True)
class WorkerView:
    """A worker."""

    __pydantic_config__ = VIEW

    id: str
    host: str
    pid: int
    device: Annotated[str, says("`cpu` or `cuda:N`.")]
    device_name: str
    version: str
    state: WorkerState
    job: Annotated[str | None, says("The job that it has.")]
    started_at: datetime
    heartbeat_at: datetime


@dataclass(frozen=True)
class WorkerList:
    """All workers that were heard of lately."""

    __pydantic_config__ = VIEW

    items: list[WorkerView]


@dataclass(frozen=True)
class HealthView:
    """The process answers."""

    __pydantic_config__ = VIEW

    status: Literal["ok"]


@dataclass(frozen=True)
class ReadinessView:
    """Whether requests can be served."""

    __pydantic_config__ = VIEW

    status: Annotated[
        Literal["ready", "degraded", "unavailable"],
        says("`degraded`: jobs are accepted, and start later than they could."),
    ]
    checks: Mapping[str, Literal["ok", "unavailable"]]


@dataclass(frozen=True)
class VersionView:
    """Which service this is."""

    __pydantic_config__ = VIEW

    version: str
    api_version: str


VIEWS: Final[tuple[type[object], ...]] = (
    JobView,
    JobPage,
    DryRunView,
    AttemptList,
    PointPage,
    ResultView,
    FileList,
    DatasetView,
    DatasetPage,
    PreviewView,
    MethodList,
    PartList,
    WorkerList,
    HealthView,
    ReadinessView,
    VersionView,
)
"""All that are an answer by themselves."""
