"""How a problem is solved: frozen settings and two pure functions, and the loop around them."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import ClassVar, Generic, Protocol, TypeVar

from torch import Tensor

from workers.learn.cost import Cost
from workers.learn.hyperparameters import HyperparameterSpace
from workers.learn.problem import AbstractBilevelProblem

__all__ = ["AbstractMethod", "Answer", "Cost", "State", "Status", "TrajectoryPoint", "natural_values", "run"]


class Status(StrEnum):
    """How a run stands after a point."""

    RUNNING = "running"
    CONVERGED = "converged"
    DIVERGED = "diverged"


@dataclass(frozen=True)
class TrajectoryPoint:
    """What is reported of one step: the point that was evaluated in it."""

    step: int
    hyperparameters: Mapping[str, Tensor]
    """Natural values by name, float64 on the CPU."""
    train_loss: float
    valid_loss: float | None
    """None from a method that holds no rows back."""
    hypergradient_norm: float
    """Norm of the derivative with respect to the raw values; the projected one where there is a box.

    NaN from a method that does not differentiate.
    """
    inner_iterations: int
    inner_residual: float
    """Norm of the inner gradient at the weights that were used."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    certificate: Mapping[str, float | bool | None] | None = None
    status: Status = Status.RUNNING
    is_trial: bool = False
    """Whether the point stands for itself: where its losses are not finite a trial failed, and the run goes on."""


@dataclass(frozen=True)
class Answer:
    """What a run would return if it ended here: raw hyperparameters [h] and the weights [p] found with them."""

    raw: Tensor
    weights: Tensor


class State(Protocol):
    """A frozen dataclass of tensors, numbers, text, None, tuples of them and such dataclasses.

    It holds all that changes during a run, so that a copy of it on disk is a checkpoint.
    """

    @property
    def step(self) -> int:
        """Number of points reported so far: the index of the next."""

    @property
    def cost(self) -> Cost:
        """Everything spent so far."""


P = TypeVar("P", bound=AbstractBilevelProblem)
S = TypeVar("S", bound=State)


class AbstractMethod(ABC, Generic[P, S]):
    """Settings of a method, frozen; what changes is in the state.

    Hence a run can be stopped after any step, written to disk, and taken up again by another process, without the
    method knowing. Randomness is a function of (seed, step), so the run so continued is the same run.
    """

    state_type: ClassVar[type]
    """The dataclass of its states: what a checkpoint is read back into."""

    @abstractmethod
    def init(self, problem: P, *, seed: int) -> S:
        """Return the state before the first step."""

    @abstractmethod
    def step(self, problem: P, state: S) -> tuple[S, TrajectoryPoint]:
        """Evaluate one point, decide where to go next, and say what was found.

        The first step evaluates the initial hyperparameters, unless the method is a search, which has no start.
        """

    @abstractmethod
    def answer(self, problem: P, state: S) -> Answer:
        """Return the best that was found up to `state`.

        Raises:
            LearnError: no point was evaluated yet.
            AllDiverged: there were points, and none with finite losses.
        """


def run(method: AbstractMethod[P, S], problem: P, state: S, *, max_steps: int) -> Iterator[tuple[S, TrajectoryPoint]]:
    """Step until the method converges, the numbers break, or `max_steps` points are reported in all.

    A generator: whoever iterates decides about storing, checkpointing and cancelling.
    """
    while state.step < max_steps:
        state, point = method.step(problem, state)
        losses = [loss for loss in (point.train_loss, point.valid_loss) if loss is not None]
        if not point.is_trial and not all(math.isfinite(loss) for loss in losses):
            point = replace(point, status=Status.DIVERGED)
        yield state, point
        if point.status is not Status.RUNNING:
            return


def natural_values(space: HyperparameterSpace, raw: Tensor) -> dict[str, Tensor]:
    """Return the natural values at `raw` [h] for a report: detached, float64, on the CPU."""
    raw = raw.detach().double().cpu()
    return space.constrain(raw)
