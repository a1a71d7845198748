"""Networks trained from scratch: what search methods and evidence compare."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, final

import torch
from torch import Tensor

from workers.learn.cost import Cost
from workers.learn.problem import Part
from workers.learn.problems.network import NetworkProblem
from workers.learn.trainer import AbstractTrainer, Trained
from workers.learn.training.training import Training

_SMALL_STEP: Final = 1_000_000
"""Weights times rows of a step below which a processor spends its time on calls, which networks can share."""

_TOGETHER: Final = 32
"""Networks that are trained side by side at most."""


@final
@dataclass(frozen=True)
class NetworkTrainer(AbstractTrainer[NetworkProblem]):
    """Initialise, take `steps` training steps, measure the average of the weights.

    The seed decides the initial weights and all batches. No early stopping: that would be another regularizer, and
    hide what the strengths do.
    """

    training: Training
    steps: int

    def train(self, problem: NetworkProblem, raw: Tensor, *, w0: Tensor | None, seed: int) -> Trained:  # noqa: ARG002
        """See `AbstractTrainer.train`; `w0` is ignored."""
        state, _ = self.training.advance(
            problem, self.training.start(problem, seed=seed), raw, seed=seed, steps=self.steps
        )
        return self._measured(problem, raw, state.average)

    def train_all(self, problem: NetworkProblem, raws: Sequence[Tensor], *, seeds: Sequence[int]) -> list[Trained]:
        """Return a network for each pair of strengths [h] and seed: those of `train`, but for rounding.

        Side by side where that is faster: on an accelerator, and for networks so small that a step is mostly overhead.
        Noise draws numbers for one network at a time.
        """
        pairs = list(zip(raws, seeds, strict=True))
        is_small = problem.network.size * min(problem.batch_size, problem.train.rows) <= _SMALL_STEP
        if problem.noises or (problem.train.x.device.type == "cpu" and not (is_small and len(pairs) > 3)):
            return [self.train(problem, raw, w0=None, seed=seed) for raw, seed in pairs]
        return [trained for some in _parts(pairs) for trained in self._together(problem, some)]

    def _together(self, problem: NetworkProblem, pairs: Sequence[tuple[Tensor, int]]) -> list[Trained]:
        seeds = tuple(seed for _, seed in pairs)
        raws = torch.stack([raw for raw, _ in pairs])
        start = self.training.start_together(problem, seeds)
        state, _ = self.training.advance_together(problem, start, raws, seeds=seeds, steps=self.steps)
        return [self._measured(problem, raw, weights) for raw, weights in zip(raws, state.average, strict=True)]

    def _measured(self, problem: NetworkProblem, raw: Tensor, weights: Tensor) -> Trained:
        value = problem.evaluate(weights, Part.VALID)["loss"]
        # Of all training rows, where statistics are frozen: how far from a minimiser so many steps have led.
        frozen = replace(problem, buffers=problem.statistics(weights))
        residual = float(torch.linalg.vector_norm(frozen.oracle().inner(weights, raw).gradient))
        cost = Cost(inner_iterations=self.steps, gradients=self.steps + 2)
        return Trained(weights, value, self.steps, residual, cost)


def _parts(pairs: Sequence[tuple[Tensor, int]]) -> list[Sequence[tuple[Tensor, int]]]:
    return [pairs[start : start + _TOGETHER] for start in range(0, len(pairs), _TOGETHER)]
