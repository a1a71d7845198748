"""A whole tuning job, as a client says it."""

from enum import StrEnum
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from service.spec.base import SafeText, Spec, wrong_at
from service.spec.capabilities import refusal
from service.spec.data import DataSpec
from service.spec.methods import Implicit, MethodSpec
from service.spec.models import LinearModel, Loss, ModelSpec
from service.spec.regularizers import L2, RegularizerSpec

LabelKey = Annotated[SafeText, Field(min_length=1, max_length=63, pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]*$")]
LabelValue = Annotated[SafeText, Field(max_length=256)]
Labels = Annotated[dict[LabelKey, LabelValue], Field(max_length=32)]
JobName = Annotated[SafeText, Field(max_length=200)]
Priority = Annotated[int, Field(ge=-100, le=100)]


class Device(StrEnum):
    """Where a job may run."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


class Precision(StrEnum):
    """Of all numbers in a job; `auto` is float64 for convex models."""

    AUTO = "auto"
    FLOAT32 = "float32"
    FLOAT64 = "float64"


class Objective(Spec):
    """What the strengths are learned for: a loss on the validation rows."""

    on: Literal["valid"] = "valid"
    loss: Loss | None = Field(default=None, strict=False, description="Null: the loss of the job.")


class Budget(Spec):
    """When to stop."""

    outer_steps: Annotated[int, Field(ge=1, le=1_000_000)] = Field(
        default=100, description="Steps 0, 1, … of the strengths, at most this many."
    )
    wall_seconds: Annotated[float, Field(gt=0, le=30 * 86_400)] = Field(
        default=3600.0, description="Time that the job may run, over all its attempts; then it fails."
    )
    stall_seconds: Annotated[float, Field(ge=1, le=86_400)] = Field(
        default=600.0, description="A job without a new step for so long is stopped as stalled."
    )
    tolerance: Annotated[float, Field(ge=1e-12, lt=1)] = Field(
        default=1e-5,
        description="Stop when the projected hypergradient has fallen to this, relative to the loss.",
    )


class Resources(Spec):
    """What the job runs on."""

    device: Device = Field(default=Device.AUTO, strict=False)
    precision: Precision = Field(default=Precision.AUTO, strict=False)
    memory_bytes: Annotated[int, Field(ge=2**26, le=2**44)] | None = Field(
        default=None, description="Host memory that the job may use; null: what the worker allows."
    )


class JobSpec(Spec):
    """A tuning job. Equal specifications run equal computations."""

    name: JobName = Field(default="", description="For people; need not be unique.")
    labels: Labels = Field(default_factory=dict, description="For finding the job again.")
    priority: Priority = Field(default=0, description="Higher runs earlier.")
    seed: Annotated[int, Field(ge=0, le=2**53 - 1)] = Field(default=0, description="Of every random choice.")
    max_attempts: Annotated[int, Field(ge=1, le=1000)] = Field(
        default=3, description="How many workers the job may be lost by before it fails."
    )
    data: DataSpec
    model: ModelSpec = LinearModel()
    loss: Loss = Field(default=Loss.CROSS_ENTROPY, strict=False)
    regularizers: Annotated[list[RegularizerSpec], Field(min_length=1, max_length=8)] = Field(
        default_factory=lambda: [L2()]
    )
    method: MethodSpec = Implicit()
    objective: Objective = Objective()
    budget: Budget = Budget()
    resources: Resources = Resources()
    verify: bool = Field(default=True, description="Check the answer and say so in the result's evidence.")

    @model_validator(mode="after")
    def _parts_fit_together(self) -> Self:
        if self.objective.loss not in (None, self.loss):
            raise wrong_at("objective/loss", f"objective.loss must be the job's loss, {self.loss.value!r}, or null")
        if not any(regularizer.strength.is_learned for regularizer in self.regularizers):
            raise wrong_at("regularizers", "every strength is fixed: nothing is left to be learned")
        kinds = [regularizer.kind for regularizer in self.regularizers]
        if reason := refusal(self.method.kind, self.model.kind, kinds):
            raise wrong_at("method/kind", reason)
        return self
