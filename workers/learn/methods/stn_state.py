"""What a self-tuning network remembers."""

from dataclasses import dataclass
from enum import StrEnum

from torch import Tensor

from workers.learn.cost import Cost
from workers.learn.methods.implicit import ImplicitState
from workers.learn.methods.implicit_online import OnlineState
from workers.learn.methods.stn_schedule import Schedule
from workers.learn.outer.adam import AdamState
from workers.learn.training.optimizers import Moments
from workers.learn.training.training import TrainingState


class Variant(StrEnum):
    """How weights depend on hyperparameters."""

    CLASSIC = "classic"
    """Weights W(h), trained together on the perturbed training loss."""
    CENTERED = "centered"
    """Weights W + R(h' − h): W trained at h itself, R, with own gates, on the perturbed loss to first order."""


@dataclass(frozen=True, eq=False)
class BestPoint:
    """The point with the lowest validation loss at unperturbed hyperparameters, all of it from one moment."""

    raw: Tensor
    """[h]."""
    scale: Tensor
    """[h]."""
    w: Tensor
    """Averaged, [p], before the response."""
    response: Tensor
    """Averaged, [q]."""
    buffers: Tensor
    """Normalization statistics of these weights, [b]."""
    value: float


@dataclass(frozen=True, eq=False)
class STNState:
    """All that changes during a run."""

    step: int
    cost: Cost
    seed: int
    raw: Tensor
    """h, the unconstrained hyperparameters, [h]."""
    scale: Tensor
    """s, with σ = softplus(s) the standard deviation of their perturbations, [h]."""
    adam: AdamState
    scale_adam: AdamState
    training: TrainingState
    response: Tensor
    """θ, [q]."""
    response_moments: Moments
    response_average: Tensor
    """Of θ over the last steps, [q]: what is looked at, beside the average of the weights."""
    strength_steps: int
    """Steps of the hyperparameters so far."""
    best: BestPoint | None
    schedule: Schedule
    learning_cost: Cost
    """What was spent before polishing."""
    polishing: OnlineState | ImplicitState | None
