"""Training as one call: what a method needs that only compares trained models."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar, final

import torch
from torch import Tensor

from workers.learn.cost import Cost
from workers.learn.inner.base import AbstractInnerSolver
from workers.learn.inner.lbfgs import LBFGS
from workers.learn.oracle import AbstractOracle
from workers.learn.problem import AbstractBilevelProblem
from workers.learn.whitened_oracle import WhitenedOracle

_MOST_REFINEMENTS: Final = 4

_NOTHING: Final = 1e-6
"""An outer loss below this fraction of the inner one is nothing: errors are not measured in parts of it."""

P_contra = TypeVar("P_contra", bound=AbstractBilevelProblem, contravariant=True)


@dataclass(frozen=True)
class Trained:
    """A trained model, and how well it does."""

    weights: Tensor
    """[p]."""
    value: float
    """Outer loss at the weights; not finite where training broke down."""
    iterations: int
    residual: float
    """Norm of the inner gradient at the weights, in the coordinates that it was solved in; NaN if not measured."""
    cost: Cost


class AbstractTrainer(ABC, Generic[P_contra]):
    """A strategy to train at given hyperparameters, for methods that do not differentiate through training.

    Settings are fields; a trainer keeps no state, and what it returns is a function of its arguments.
    """

    @abstractmethod
    def train(self, problem: P_contra, raw: Tensor, *, w0: Tensor | None, seed: int) -> Trained:
        """Return a model trained at `raw`.

        Args:
            problem: what to train.
            raw: unconstrained hyperparameters, [h].
            w0: weights of a model that was trained near `raw`, [p], if there is one; a trainer that starts from
                scratch ignores it.
            seed: of whatever is random in training.
        """


@final
@dataclass(frozen=True)
class ConvexTrainer(AbstractTrainer[AbstractBilevelProblem]):
    """Solve the inner problem until its residual changes the outer loss by no more than `accuracy` of it.

    A residual r changes the outer loss by ⟨H⁻¹ ∂_w outer, r⟩ to first order, hence by at most
    ‖r‖ ‖∂_w outer‖ / μ. In the oracle's metric H is near the identity and μ counts as one; where training took more
    than a metric costs, the curvature is taken anew before that is believed. Elsewhere μ is the proven constant; where
    that is not known, the residual falls to `accuracy` times its norm at the initial weights. Single precision may end
    training earlier.
    """

    accuracy: float = 1e-6
    inner: AbstractInnerSolver = field(default_factory=lambda: LBFGS(first_step=1.0))
    precondition: bool = True

    def train(self, problem: AbstractBilevelProblem, raw: Tensor, *, w0: Tensor | None, seed: int) -> Trained:
        """See `AbstractTrainer.train`."""
        oracle, initial = problem.oracle(), problem.initial_weights(seed)
        w = initial if w0 is None else w0
        metric = oracle.metric(raw, w) if self.precondition else None
        constants = oracle.constants(raw) if metric is None else None
        convexity, least, cost = 1.0, 0.0, Cost()
        if metric is not None:
            cost = metric.cost
        elif constants is not None:
            convexity = constants.strong_convexity
        else:
            convexity, least, cost = 0.0, self.accuracy * _norm(oracle.inner(initial, raw).gradient), Cost(gradients=1)
        iterations, nothing = 0, 0.0
        for _ in range(_MOST_REFINEMENTS):
            seen: AbstractOracle = oracle if metric is None else WhitenedOracle(oracle, metric)
            u = w if metric is None else metric.inverse(w)
            outer = seen.outer(u, raw)
            size = max(abs(float(outer.value)), nothing)
            tol = max(self.accuracy * size * convexity / max(_norm(outer.gradient), 1e-300), least)
            # ‖gradient‖² / 2μ is what the loss can still fall by: below this, rounding.
            tol = max(tol, math.sqrt(torch.finfo(w.dtype).eps * size * convexity))
            solution = self.inner.solve(seen, raw, u, tol=tol)
            iterations += solution.iterations
            cost += solution.cost + Cost(gradients=1)
            if solution.iterations == 0:
                break  # the tolerance was that of these very weights
            w = solution.w if metric is None else metric.forward(solution.w)
            nothing = _NOTHING * abs(solution.value)
            if not solution.converged:
                break
            if metric is not None and solution.cost.gradient_equivalents > metric.cost.gradient_equivalents:
                metric = oracle.metric(raw, w)
                cost += Cost() if metric is None else metric.cost
        value = float(oracle.outer(w, raw).value)
        return Trained(w, value, iterations, solution.gradient_norm, cost + Cost(gradients=1))


def _norm(vector: Tensor) -> float:
    return float(torch.linalg.vector_norm(vector))
