"""Hypergradients of a proven accuracy: algorithm 3.2 of MAID."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from workers.learn.cost import Cost
from workers.learn.linear.base import AbstractLinearSolver
from workers.learn.methods.maid_adjoint import solve_adjoint
from workers.learn.methods.maid_bounds import ErrorBound, Sandwich, error_bound, sandwich
from workers.learn.methods.maid_inner import Located, Locator
from workers.learn.oracle import AbstractMetric, AbstractOracle, OuterValue
from workers.learn.outer.box import blocked, projected_gradient

_LOOSEST_RESIDUAL = 0.1
"""Of the adjoint, relative to its right-hand side: with 1 or more the answer would be q = 0, and z = 0 with it."""
_BELIEVED_RESIDUAL = 1e-3
"""The same where no bound tells what it does to the hypergradient."""


@dataclass(frozen=True)
class Box:
    """The bounds of the hyperparameters, [h] each."""

    low: Tensor
    high: Tensor

    def clamp(self, raw: Tensor) -> Tensor:
        """Return the point of the box that is nearest to `raw`."""
        return torch.minimum(torch.maximum(raw, self.low), self.high)


@dataclass(frozen=True)
class InexactGradient:
    """A point with its value and hypergradient, and what is proven of both."""

    at: Located
    value: float
    """g, the outer loss at the weights."""
    bounds: Sandwich
    """Of the outer objective; to first order only, where the curvature of the outer loss is not known."""
    steepness: float
    """‖∂_w outer‖."""
    adjoint: Tensor
    """q, [p], with ‖H q − ∂_w outer‖ = `residual`, measured in the original coordinates."""
    residual: float
    gradient: Tensor
    """z = ∂_raw outer − Jᵀ q, [h]."""
    bound: ErrorBound | None
    """ω with ‖z − ∇f‖ ≤ ω; None where some constant is not proven."""
    slope: float
    """Largest coordinate of the projected z."""
    length: float
    """Norm of z where the box lets it point."""

    @property
    def gap(self) -> float:
        """How much less than g the objective may be: what a step must gain at least, to be seen."""
        return self.value - self.bounds.lower


@dataclass(frozen=True)
class Accuracies:
    """How accurately to solve: ε of the weights, a distance, and δ of the adjoint, a residual."""

    inner: float
    linear: float

    def times(self, factor: float) -> "Accuracies":
        """Return both, multiplied by a factor."""
        return Accuracies(self.inner * factor, self.linear * factor)


@dataclass(frozen=True)
class Differentiator:
    """Solves both equations until the hypergradient is good enough to go down along it."""

    oracle: AbstractOracle
    locator: Locator
    solver: AbstractLinearSolver
    box: Box
    shrink: float
    """ν, the factor by which accuracies are tightened."""
    share: float
    """η: the descent test is ω ≤ (1 − η) ‖z‖."""
    descent_test: bool
    tolerance: float
    most_refinements: int
    seed: int

    def differentiate(
        self,
        located: Located,
        accuracies: Accuracies,
        *,
        metric: AbstractMetric | None,
        adjoint0: Tensor | None,
        like: InexactGradient | None = None,
    ) -> tuple[InexactGradient, Accuracies, Cost]:
        """Return a hypergradient at the hyperparameters of `located`, the accuracies that it took, and the cost.

        Starting with the accuracies given, both solves are refined until −z is proven to be a direction of
        descent, ω ≤ (1 − η) ‖z‖ (C4), or the point to be stationary: its slope and ω within the tolerance. Without
        a proven ω only a claim to be stationary is refined. Each accuracy is multiplied by ν as often as its part
        of ω calls for, since that part is proportional to it; the algorithm of the paper arrives at the same place
        by single steps and a solve for each.

        Args:
            located: weights to begin with.
            accuracies: ε and δ to begin with.
            metric: coordinates for the solvers.
            adjoint0: a first guess of q, [p].
            like: what is known already at these very weights.
        """
        cost = Cost()
        wanted = accuracies
        here = like if like is not None and like.at is located else None
        adjoint = adjoint0 if here is None else here.adjoint
        for refinement in range(self.most_refinements):
            possible = self.locator.can_reach(located, wanted.inner) if refinement else located.reached or here is None
            if located.distance > wanted.inner and possible:
                located, spent = self.locator.locate(
                    located.raw, located.weights, accuracy=wanted.inner, metric=metric, like=located
                )
                cost += spent
            here, spent = self._at(located, here, adjoint, wanted.linear, metric)
            cost += spent
            adjoint = here.adjoint
            wanted = self.attainable(here, wanted)
            tightened = self._tightened(here, wanted)
            if tightened == wanted:
                break
            if not self.can_improve(here, tightened, insist=False):
                # Out of reach here: what was spent on it is kept, but not asked of the next point as well.
                wanted = self.attainable(here, accuracies)
                break
            wanted = tightened
        assert here is not None  # noqa: S101 (at least one refinement)
        return here, wanted, cost

    def attainable(self, here: InexactGradient, wanted: Accuracies) -> Accuracies:
        """Return the accuracies without what precision forbids, or what would leave the adjoint at zero."""
        inner, linear = wanted.inner, min(wanted.linear, _LOOSEST_RESIDUAL * here.steepness)
        if not here.at.reached and math.isfinite(here.at.distance):
            inner = max(inner, here.at.distance)
        return Accuracies(inner, max(linear, here.residual))

    def is_stationary(self, here: InexactGradient) -> bool:
        """Whether the slope is within the tolerance, and known well enough to say so.

        With a proven ω that must be within the tolerance too. Without one, the value must be known to the tolerance
        and the adjoint to a thousandth: so that no z vanishes for the looseness of the solves.
        """
        scale = self.tolerance * abs(here.value)
        if here.bound is not None:
            return max(here.slope, here.bound.total) <= scale
        return max(here.slope, here.gap) <= scale and here.residual <= _BELIEVED_RESIDUAL * here.steepness

    def can_improve(self, here: InexactGradient, wanted: Accuracies, *, insist: bool) -> bool:
        """Whether solving to the accuracies would change anything, as far as precision is known.

        Args:
            here: what is known.
            wanted: the accuracies.
            insist: try whatever did not fail at this very point, although precision ended solves at others.
        """
        possible = here.at.reached if insist else self.locator.can_reach(here.at, wanted.inner)
        inner = wanted.inner < here.at.distance and possible
        precision = torch.finfo(here.adjoint.dtype).eps
        linear = wanted.linear < here.residual and wanted.linear > precision * here.steepness
        return inner or linear

    def _tightened(self, here: InexactGradient, wanted: Accuracies) -> Accuracies:
        """Return accuracies that pass the tests, as far as can be foreseen; the same if they are passed."""
        if self.is_stationary(here):
            return wanted
        scale = self.tolerance * abs(here.value)
        still = here.slope <= scale
        if here.bound is None:
            return self._halved(here, wanted) if still else wanted
        allowed = (1.0 - self.share) * here.length if self.descent_test else math.inf
        if still:
            allowed = scale if not self.descent_test else max(allowed, scale)
        if here.bound.total <= allowed:
            return wanted
        if not allowed > 0.0:
            return self._halved(here, wanted)
        return Accuracies(
            self._foreseen(wanted.inner, here.at.distance, here.bound.inner, 0.5 * allowed),
            self._foreseen(wanted.linear, here.residual, here.bound.linear, 0.5 * allowed),
        )

    def _halved(self, here: InexactGradient, wanted: Accuracies) -> Accuracies:
        return Accuracies(min(wanted.inner, here.at.distance), min(wanted.linear, here.residual)).times(self.shrink)

    def _foreseen(self, wanted: float, reached: float, part: float, allowed: float) -> float:
        return wanted if part <= allowed else min(wanted, reached) * self.powers(part, allowed)

    def powers(self, found: float, allowed: float) -> float:
        """Return the power of ν, the first at least, that takes something proportional to an accuracy down enough."""
        if not (math.isfinite(found) and 0.0 < allowed < found):
            return self.shrink
        return float(self.shrink ** max(math.ceil(math.log(allowed / found) / math.log(self.shrink)), 1))

    def _at(
        self,
        located: Located,
        before: InexactGradient | None,
        adjoint0: Tensor | None,
        tol: float,
        metric: AbstractMetric | None,
    ) -> tuple[InexactGradient, Cost]:
        outer = self.oracle.outer(located.weights, located.raw)
        cost = Cost(gradients=1)
        steepness = float(torch.linalg.vector_norm(outer.gradient))
        tol = min(tol, _LOOSEST_RESIDUAL * steepness)
        if before is not None and before.at is located and before.residual <= tol:
            return before, Cost()
        q, residual, spent = solve_adjoint(
            self.oracle, self.solver, located, outer.gradient, tol=tol, metric=metric, q0=adjoint0, seed=self.seed
        )
        z = outer.raw_gradient - self.oracle.cross(located.weights, located.raw, q)
        value = float(outer.value)
        bounds, bound, more = self._proven(located, outer, value, steepness, q, residual)
        low, high = self.box.low, self.box.high
        free = torch.where(blocked(located.raw, z, low, high), torch.zeros_like(z), z)
        found = InexactGradient(
            at=located,
            value=value,
            bounds=bounds,
            steepness=steepness,
            adjoint=q,
            residual=residual,
            gradient=z,
            bound=bound,
            slope=float(projected_gradient(located.raw, z, low, high).abs().max()),
            length=float(torch.linalg.vector_norm(free)),
        )
        return found, cost + spent + more + Cost(cross_products=1)

    def _proven(
        self, located: Located, outer: OuterValue, value: float, steepness: float, q: Tensor, residual: float
    ) -> tuple[Sandwich, ErrorBound | None, Cost]:
        constants = self.oracle.constants(located.raw)
        if constants is None:
            return sandwich(value, steepness, located.distance, smoothness=0.0, convex=False), None, Cost()
        bounds = sandwich(
            value,
            steepness,
            located.distance,
            smoothness=constants.outer_smoothness,
            convex=constants.outer_is_convex,
        )
        # No constant says how ∂_raw outer depends on w; as a rule there is no such term. Learned filters have no L_J.
        if not located.proven or not math.isfinite(constants.cross_lipschitz) or bool(outer.raw_gradient.any()):
            return bounds, None, Cost()
        cross_norm = self.oracle.cross_norm(located.weights, located.raw)
        if cross_norm is None:
            return bounds, None, Cost()
        bound = error_bound(
            constants,
            located.convexity,
            distance=located.distance,
            residual=residual,
            cross_norm=cross_norm,
            outer_gradient_norm=steepness,
            adjoint_norm=float(torch.linalg.vector_norm(q)),
        )
        return bounds, bound, Cost(cross_products=2)
