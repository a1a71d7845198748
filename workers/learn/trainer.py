"""Training as one call: what a method needs that only compares trained models."""

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
    ‖r‖ ‖∂_w outer‖ / μ. In the oracle's metric H is near the identity and μ counts as one. Elsewhere μ is the proven
    constant; where it is not known, or hopelessly small, the residual falls to `accuracy` times its norm at the
    initial weights.
    """

    accuracy: float = 1e-6
    inner: AbstractInnerSolver = field(default_factory=lambda: LBFGS(first_step=1.0, max_iterations=2000))
    precondition: bool = True

    def train(self, problem: AbstractBilevelProblem, raw: Tensor, *, w0: Tensor | None, seed: int) -> Trained:
        """See `AbstractTrainer.train`."""
        oracle = problem.oracle()
        start = problem.initial_weights(seed) if w0 is None else w0
        # The bound on the curvature holds at every strength: its one Gram matrix serves all trials.
        metric = oracle.metric(raw, None) if self.precondition else None
        cost = metric.cost if metric is not None and w0 is None else Cost()
        if metric is None:
            seen, w = oracle, start
            convexity, least, spent = self._scale(oracle, raw, problem.initial_weights(seed))
            cost += spent
        else:
            seen, w = WhitenedOracle(oracle, metric), metric.inverse(start)
            convexity, least = 1.0, 0.0
        outer = seen.outer(w, raw)
        cost += Cost(gradients=1)
        size, iterations = abs(float(outer.value)), 0
        for _ in range(_MOST_REFINEMENTS):
            pull = float(torch.linalg.vector_norm(outer.gradient))
            solution = self.inner.solve(
                seen, raw, w, tol=max(self.accuracy * size * convexity / max(pull, 1e-300), least)
            )
            iterations += solution.iterations
            # Nothing was left to be done: the tolerance is the one that belongs to these weights.
            settled = solution.w is w
            if not settled:
                w, outer = solution.w, seen.outer(solution.w, raw)
            cost += solution.cost + Cost(gradients=0 if settled else 1)
            size = max(abs(float(outer.value)), _NOTHING * abs(solution.value))
            if settled or not solution.converged:
                break
        return Trained(
            weights=w if metric is None else metric.forward(w),
            value=float(outer.value),
            iterations=iterations,
            residual=solution.gradient_norm,
            cost=cost,
        )

    def _scale(self, oracle: AbstractOracle, raw: Tensor, initial: Tensor) -> tuple[float, float, Cost]:
        """Return μ, zero if unknown, the tolerance that is good enough whatever μ is, and what knowing it cost."""
        constants = oracle.constants(raw)
        norm = float(torch.linalg.vector_norm(oracle.inner(initial, raw).gradient))
        return (0.0 if constants is None else constants.strong_convexity), self.accuracy * norm, Cost(gradients=1)
