"""Training a network at given strengths: mini-batch steps from one state to another."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, final

import torch
from torch import Tensor

from workers.learn.errors import LearnError
from workers.learn.problems.network import NetworkProblem
from workers.learn.problems.network_loss import DataGradient
from workers.learn.training.optimizers import AbstractOptimizer, Moments
from workers.learn.training.schedule import AbstractSchedule


@dataclass(frozen=True, eq=False)
class TrainingState:
    """All that changes while a network is trained; for k networks side by side every tensor has a first axis of k."""

    step: int
    w: Tensor
    """[p]."""
    buffers: Tensor
    """Normalization statistics, averaged over the steps so far, [b]."""
    moments: Moments
    average: Tensor
    """Of the weights over the last steps, [p]: what is looked at."""

    def copied(self) -> "TrainingState":
        """Return the same in memory of its own."""
        return TrainingState(self.step, self.w.clone(), self.buffers, self.moments.copied(), self.average.clone())


_EVERY: Final = 5
"""Steps between two weights that enter the average: closer ones are nearly the same."""

_PARTS: Final = 10
"""The average reaches back over one in so many of the steps taken, at most: the beginning is worth nothing."""


@final
@dataclass(frozen=True)
class Training:
    """An optimizer and what becomes of its learning rate.

    A step is one forward and one backward pass over a batch; D ∘ w, the gradient of the penalties, is added in closed
    form. Batches are a function of (seed, step), so a training that is taken up again is the same training.

    Steps of constant length go back and forth across the valley that they follow. An average of the weights lies at its
    bottom: the full gradient there was ten times smaller (Fashion-MNIST), the validation loss lower by a tenth, and
    hypergradients, which are those of a minimiser, had the signs that retraining confirms; at the last weights they
    had not.

    Source: Polyak & Juditsky (1992); Shamir & Zhang (2013) for leaving the beginning behind; Izmailov et al. (2018)
    for networks.
    """

    optimizer: AbstractOptimizer
    schedule: AbstractSchedule
    averaging: int = 200
    """Steps that the average reaches back, exponentially, at most; 1 for the weights as they are."""

    def start(self, problem: NetworkProblem, *, seed: int) -> TrainingState:
        """Return the state before the first step."""
        w = problem.initial_weights(seed)
        return TrainingState(0, w, problem.initial_buffers(), self.optimizer.start(w), w)

    def start_together(self, problem: NetworkProblem, seeds: tuple[int, ...]) -> TrainingState:
        """Return the state of k networks before the first step."""
        w = torch.stack([problem.initial_weights(seed) for seed in seeds])
        buffers = problem.initial_buffers().expand(len(seeds), -1)
        return TrainingState(0, w, buffers, self.optimizer.start(w), w)

    def advance(
        self, problem: NetworkProblem, state: TrainingState, raw: Tensor, *, seed: int, steps: int
    ) -> tuple[TrainingState, Tensor]:
        """Return the state after `steps` more steps, and the mean over them of the batches' losses, a scalar.

        Args:
            problem: what to train.
            state: where training stands.
            raw: unconstrained strengths, [h].
            seed: of the batches.
            steps: how many, at least 1.
        """
        diagonal = problem.oracle().diagonal(raw, state.w)
        return self._advance(
            state,
            diagonal,
            steps,
            lambda at: problem.training_gradient(at.w, at.buffers, raw, seed=seed, step=at.step),
        )

    def advance_together(
        self, problem: NetworkProblem, state: TrainingState, raws: Tensor, *, seeds: tuple[int, ...], steps: int
    ) -> tuple[TrainingState, Tensor]:
        """Do for k networks, each with strengths [k, h] and a seed of its own, what `advance` does for one.

        The result is that of k calls but for rounding; the mean losses are [k].

        Raises:
            LearnError: the problem has noises.
        """
        if problem.noises:
            raise LearnError("networks with noises are trained one at a time")
        oracle = problem.oracle()
        diagonals = torch.stack([oracle.diagonal(raw, w) for raw, w in zip(raws, state.w, strict=True)])
        return self._advance(
            state,
            diagonals,
            steps,
            lambda at: problem.losses.training_gradients(at.w, at.buffers, problem.batches(seeds, at.step)),
        )

    def _advance(
        self, state: TrainingState, diagonal: Tensor, steps: int, data: Callable[[TrainingState], DataGradient]
    ) -> tuple[TrainingState, Tensor]:
        state = state.copied()
        losses = []
        for _ in range(steps):
            found = data(state)
            gradient = found.gradient.addcmul_(diagonal, state.w)
            state = self.move_(state, gradient, found.buffers)
            losses.append(found.value)
        return state, torch.stack(losses).mean(0)

    def move_(self, state: TrainingState, gradient: Tensor, buffers: Tensor) -> TrainingState:
        """Step along a gradient, in place: overwrite weights, moments and average, use up the gradient.

        Who calls owns them: see `TrainingState.copied`.

        Args:
            state: where training stands.
            gradient: of all that is minimised, [p].
            buffers: normalization statistics after the step, [b].
        """
        rate = self.optimizer.rate * self.schedule.factor(state.step)
        moments = self.optimizer.update_(state.moments, state.w, gradient, rate=rate)
        step = state.step + 1
        self.average_(state.average, state.w, step=step)
        return TrainingState(step, state.w, buffers, moments, state.average)

    def average_(self, average: Tensor, values: Tensor, *, step: int) -> None:
        """Take values after `step` steps into a running average of the same shape, in place."""
        if self.averaging <= _EVERY:
            average.copy_(values)
        elif step % _EVERY == 0:
            average.lerp_(values, min(1.0, _EVERY * max(1.0 / self.averaging, _PARTS / step)))
