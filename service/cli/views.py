"""What the command line reads out of the server's answers: tolerant of everything that it does not need.

The server may be newer than this program, so statuses and codes are text here and unknown fields are ignored.
"""

from datetime import datetime
from typing import Final

from pydantic import BaseModel, ConfigDict, JsonValue

ENDED: Final = frozenset({"succeeded", "failed", "cancelled"})


class View(BaseModel):
    """A part of an answer. Non-finite numbers travel as text and are numbers again here."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class Spread(View):
    """How many strengths of one name are spread."""

    size: int
    min: float
    median: float
    max: float
    norm: float | None = None


class PointView(View):
    """One step of learning."""

    step: int
    attempt: int = 0
    elapsed_s: float = 0.0
    hyperparameters: dict[str, float | Spread] = {}
    train_loss: float | None = None
    valid_loss: float | None = None
    hypergradient_norm: float | None = None
    metrics: dict[str, JsonValue] = {}


class ProgressView(View):
    """How far a job is."""

    step: int = 0
    of: int = 0
    fraction: float | None = None
    eta_s: float | None = None


class ReasonView(View):
    """Why a job stands where it stands."""

    code: str
    detail: str = ""
    queue_position: int | None = None


class FailureView(View):
    """Why a job ended in failure."""

    code: str
    detail: str = ""
    attempt: int | None = None
    retryable: bool = False


class JobView(View):
    """A job."""

    id: str
    name: str = ""
    labels: dict[str, str] = {}
    method: str = ""
    status: str
    status_reason: ReasonView | None = None
    failure: FailureView | None = None
    spec: dict[str, JsonValue] = {}
    progress: ProgressView = ProgressView()
    latest: PointView | None = None
    attempt: int = 0
    created_at: datetime | None = None
    started_at: datetime | None = None
    ended_at: datetime | None = None

    @property
    def is_ended(self) -> bool:
        """True when nothing more will happen by itself."""
        return self.status in ENDED


class JobPage(View):
    """A page of jobs, newest first."""

    items: list[JobView]
    next_cursor: str | None = None


class StatusEvent(View):
    """A change of status."""

    status: str
    attempt: int = 0
    reason: ReasonView | None = None
    failure: FailureView | None = None


class LogEvent(View):
    """Lines that a worker wrote about the job."""

    message: str = ""
    text: str = ""

    @property
    def line(self) -> str:
        """What was written."""
        return self.message or self.text


class CostView(View):
    """What the answer cost, or the checks behind it."""

    wall_s: float | None = None
    device_s: float | None = None
    inner_iterations: int | None = None
    gradients: int | None = None
    hessian_vector_products: int | None = None
    peak_memory_bytes: int | None = None


class EvidenceView(View):
    """Why the answer may be trusted."""

    verdict: str = "not_checked"
    sentence: str = ""
    cost: CostView = CostView()


class ResultView(View):
    """What a job learned."""

    hyperparameters: dict[str, JsonValue] = {}
    metrics: dict[str, dict[str, JsonValue]] = {}
    evidence: EvidenceView = EvidenceView()
    cost: CostView = CostView()


class DatasetView(View):
    """An uploaded dataset, or one that ships with the service."""

    id: str
    name: str = ""
    format: str = ""
    rows: int | None = None
    columns: list[JsonValue] = []
    bytes: int | None = None
    sha256: str = ""
    created_at: datetime | None = None


class DatasetPage(View):
    """A page of datasets."""

    items: list[DatasetView]
    next_cursor: str | None = None


class PointerView(View):
    """A place in what was sent, and what is wrong with it."""

    pointer: str = ""
    detail: str = ""


class ProblemView(View):
    """A refusal as RFC 9457 says it."""

    type: str = ""
    title: str = ""
    status: int = 0
    detail: str = ""
    errors: list[PointerView] = []
