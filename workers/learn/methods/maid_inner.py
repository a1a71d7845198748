"""Inner solves that end at a proven distance to the minimiser."""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from workers.learn.cost import Cost
from workers.learn.inner.base import AbstractInnerSolver
from workers.learn.linear.lanczos import ritz_values
from workers.learn.oracle import AbstractMetric, AbstractOracle, Convexity
from workers.learn.whitened_oracle import WhitenedOracle

_MOST_ROUNDS = 12
_RITZ_STEPS = 20
_ROUNDING = 2.0
"""Error of a gradient that is computed, in units of the precision times L ‖w‖."""
_METRIC_MARGIN = 0.5
"""Norms in the coordinates of a metric tell those in the original ones to such a factor, as a rule."""


@dataclass(frozen=True)
class Located:
    """Weights at some hyperparameters, and how far from the minimiser they are at most."""

    raw: Tensor
    weights: Tensor
    gradient_norm: float
    """‖∂_w inner‖, measured at `weights` in their own coordinates."""
    distance: float
    """r ≥ ‖w − w*(raw)‖, with room for the rounding of the gradient."""
    convexity: Convexity
    """What r was computed with."""
    proven: bool
    """Whether μ is a proven bound, and not an estimate."""
    stretch: float
    """‖∂_w inner‖ in the coordinates of the solve over that in the original ones; 1 without a metric."""
    reached: bool
    """Whether r is within what was asked for; if not, precision or iterations were used up."""


@dataclass(frozen=True)
class Locator:
    """Solves inner problems to a distance ε: until ‖∂_w inner‖ ≤ ε μ (C1).

    The solver may work in the coordinates of a metric, where it needs a fraction of the iterations. It ends on the
    norm of the gradient in those; whether that was enough is measured in the original ones, for μ is a bound of
    the Hessian there, and if it was not the solver goes on from where it was.
    """

    oracle: AbstractOracle
    solver: AbstractInnerSolver
    least_norm: float
    """Norm of the gradient at which precision has ended a solve before, or zero."""

    def start(self, raw: Tensor, w: Tensor) -> tuple[Located, Cost]:
        """Return what is known of some weights without solving anything."""
        gradient = self.oracle.inner(w, raw).gradient
        norm = float(torch.linalg.vector_norm(gradient))
        convexity, proven, cost = self._convexity(w, raw, gradient, None)
        distance = convexity.distance(norm + self._rounding(w, raw))
        found = Located(raw, w, norm, distance, replace(convexity, cost=Cost()), proven, 1.0, reached=True)
        return found, cost + Cost(gradients=1)

    def locate(
        self, raw: Tensor, w0: Tensor, *, accuracy: float, metric: AbstractMetric | None, like: Located | None
    ) -> tuple[Located, Cost]:
        """Return weights within `accuracy` of w*(raw), if precision allows, and what it took.

        Args:
            raw: hyperparameters, [h].
            w0: where to start, [p].
            accuracy: ε, the distance that is asked for.
            metric: coordinates for the solver; None for the original ones.
            like: of nearby hyperparameters, for first guesses; None in the beginning.
        """
        w = w0
        at = self.oracle.inner(w, raw)
        norm, cost = float(torch.linalg.vector_norm(at.gradient)), Cost(gradients=1)
        stretch = 1.0 if metric is None else _ratio(metric, at.gradient, norm)
        if like is not None and not like.convexity.holds_everywhere:
            # A bound that costs products is computed where the solver ends, not where it starts.
            convexity, proven, distance = like.convexity, like.proven, math.inf
        else:
            convexity, proven, spent = self._convexity(w, raw, at.gradient, like)
            cost, distance = cost + spent, convexity.distance(norm + self._rounding(w, raw))
        seen = self.oracle if metric is None else WhitenedOracle(self.oracle, metric)
        margin = 1.0 if metric is None else _METRIC_MARGIN
        reached = distance <= accuracy
        for _ in range(_MOST_ROUNDS):
            if reached or not math.isfinite(norm):
                break
            tol = convexity.sufficient(accuracy) * stretch * margin
            solution = self.solver.solve(seen, raw, w if metric is None else metric.inverse(w), tol=tol)
            cost += solution.cost
            before = distance
            if metric is None:
                w, norm = solution.w, solution.gradient_norm
                gradient = solution.gradient
            else:
                w = metric.forward(solution.w)
                gradient = self.oracle.inner(w, raw).gradient
                norm = float(torch.linalg.vector_norm(gradient))
                stretch = solution.gradient_norm / norm if norm > 0.0 else stretch
                cost += Cost(gradients=1)
            convexity, proven, spent = self._convexity(w, raw, gradient, like)
            cost, distance = cost + spent, convexity.distance(norm + self._rounding(w, raw))
            reached = distance <= accuracy
            if not distance < (0.9 if solution.converged else 0.5) * before:
                break
            margin *= 0.5
        found = Located(raw, w, norm, distance, replace(convexity, cost=Cost()), proven, stretch, reached)
        return found, cost

    def can_reach(self, located: Located, accuracy: float) -> bool:
        """Return whether precision allows to come closer to the minimiser, as far as `accuracy`."""
        spacing = torch.finfo(located.weights.dtype).eps * float(torch.linalg.vector_norm(located.weights))
        enough = located.convexity.sufficient(accuracy) > self.least_norm
        return located.reached and enough and accuracy > spacing

    def renew(self, located: Located) -> tuple[Located, Cost]:
        """Return the same weights with an estimate of μ taken there, where nothing is proven."""
        if located.proven:
            return located, Cost()
        gradient = self.oracle.inner(located.weights, located.raw).gradient
        convexity, _, cost = self._convexity(located.weights, located.raw, gradient, None)
        distance = convexity.distance(located.gradient_norm + self._rounding(located.weights, located.raw))
        return replace(located, convexity=convexity, distance=distance), cost + Cost(gradients=1)

    def _rounding(self, w: Tensor, raw: Tensor) -> float:
        constants = self.oracle.constants(raw)
        if constants is None:
            return 0.0
        return _ROUNDING * torch.finfo(w.dtype).eps * constants.smoothness * float(torch.linalg.vector_norm(w))

    def _convexity(
        self, w: Tensor, raw: Tensor, gradient: Tensor, like: Located | None
    ) -> tuple[Convexity, bool, Cost]:
        """Return the best bound there is, whether it is proven, and its cost.

        Where nothing is proven: the smallest Ritz value of a Lanczos process, which is at least λ_min; taken once
        for each accepted point and carried along between.
        """
        known = self.oracle.convexity(w, raw)
        if known is not None:
            return known, True, known.cost
        constants = self.oracle.constants(raw)
        if constants is not None and constants.strong_convexity > 0.0:
            return Convexity(constants.strong_convexity, math.inf, holds_everywhere=True), True, Cost()
        if like is not None and not like.proven:
            return like.convexity, False, Cost()
        values = ritz_values(self.oracle.hvp(w, raw), gradient, steps=_RITZ_STEPS)
        least = max(float(values[0]), torch.finfo(w.dtype).eps * float(values[-1].abs()), torch.finfo(w.dtype).tiny)
        estimate = Convexity(least, math.inf, holds_everywhere=True)
        return estimate, False, Cost(hessian_vector_products=values.numel())


def _ratio(metric: AbstractMetric, gradient: Tensor, norm: float) -> float:
    return float(torch.linalg.vector_norm(metric.transpose(gradient))) / norm if norm > 0.0 else 1.0
