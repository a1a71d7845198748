"""What every search has in common: train at a point, compare, keep the best."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from workers.learn.cost import Cost
from workers.learn.errors import AllDiverged, LearnError
from workers.learn.method import Answer, Status, TrajectoryPoint, natural_values
from workers.learn.problem import AbstractBilevelProblem, Part
from workers.learn.trainer import AbstractTrainer, Trained

P = TypeVar("P", bound=AbstractBilevelProblem)


@dataclass(frozen=True)
class Trial:
    """A model that was trained, and where."""

    raw: Tensor
    weights: Tensor
    value: float
    """Outer loss at the weights: finite."""


@dataclass(frozen=True)
class SearchState:
    """All that changes during a search whose next point does not depend on what was found."""

    step: int
    cost: Cost
    seed: int
    best: Trial | None
    previous: Trial | None
    """The last trial that succeeded."""

    @staticmethod
    def start(seed: int) -> "SearchState":
        """Return the state before the first trial."""
        return SearchState(step=0, cost=Cost(), seed=seed, best=None, previous=None)

    def answer(self) -> Answer:
        """Return the best trial; see `AbstractMethod.answer`."""
        if self.best is not None:
            return Answer(self.best.raw, self.best.weights)
        if self.step == 0:
            raise LearnError("no point was evaluated yet")
        raise AllDiverged(f"the losses were not finite in any of {self.step} trials")


@dataclass(frozen=True)
class Box:
    """The raw hyperparameters among which a search chooses."""

    low: Tensor
    """[h], float64 on the CPU."""
    high: Tensor
    like: Tensor
    """The initial raw values: of the dtype and on the device of the run."""

    @staticmethod
    def of(problem: AbstractBilevelProblem, *, seed: int) -> "Box":
        """Return the box of a problem.

        Raises:
            LearnError: there is nothing to search, or no end to it.
        """
        space = problem.space
        if space.size == 0:
            raise LearnError("there is nothing to learn: every strength is fixed")
        for block in space.blocks:
            if not all(math.isfinite(bound) for bound in block.raw_bounds):
                raise LearnError(
                    f"{block.name} cannot be searched: it has no finite bounds; take a method that learns by gradient"
                )
        low, high = space.bounds(torch.float64, torch.device("cpu"))
        w = problem.initial_weights(seed)
        return Box(low, high, space.initial(w.dtype, w.device))

    def at(self, problem: AbstractBilevelProblem, fractions: Tensor) -> Tensor:
        """Return the raw values, [h], at fractions [h] (0 … 1, float64) of the way from `low` to `high`."""
        raw = self.low + fractions * (self.high - self.low)
        # Rounding, in the run's own precision above all, may step over a bound.
        return problem.space.clamp(raw.to(self.like))


def conduct(
    problem: P, trainer: AbstractTrainer[P], state: SearchState, raw: Tensor, *, status: Status = Status.RUNNING
) -> tuple[SearchState, TrajectoryPoint]:
    """Train at `raw` [h] and return the state after it and what to report.

    Training starts from the nearer of the last and the best trial, if it takes such help. All trials have the job's
    seed: what differs between them is due to the hyperparameters alone.
    """
    near = min(
        (trial for trial in (state.previous, state.best) if trial is not None),
        key=lambda trial: float(torch.linalg.vector_norm(trial.raw - raw)),
        default=None,
    )
    trained = trainer.train(problem, raw, w0=None if near is None else near.weights, seed=state.seed)
    train = problem.evaluate(trained.weights, Part.TRAIN)["loss"]
    valid = problem.evaluate(trained.weights, Part.VALID)
    best, previous = state.best, state.previous
    if math.isfinite(trained.value) and math.isfinite(train):
        previous = Trial(raw, trained.weights, trained.value)
        best = previous if best is None or previous.value < best.value else best
    state = replace(state, step=state.step + 1, cost=state.cost + trained.cost, best=best, previous=previous)
    return state, _point(problem, state, raw, trained, train, valid, status)


def _point(
    problem: AbstractBilevelProblem,
    state: SearchState,
    raw: Tensor,
    trained: Trained,
    train_loss: float,
    valid: Mapping[str, float],
    status: Status,
) -> TrajectoryPoint:
    return TrajectoryPoint(
        step=state.step - 1,
        hyperparameters=natural_values(problem.space, raw),
        train_loss=train_loss,
        valid_loss=trained.value,
        hypergradient_norm=math.nan,
        inner_iterations=trained.iterations,
        inner_residual=trained.residual,
        metrics={
            **{f"valid_{name}": value for name, value in valid.items() if name != "loss"},
            "best_valid_loss": math.nan if state.best is None else state.best.value,
            "gradient_equivalents": float(state.cost.gradient_equivalents),
        },
        status=status,
        is_trial=True,
    )
