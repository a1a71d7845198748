"""Implicit differentiation of one hyperparameter: forward, along the path of its weights."""

import math
from dataclasses import dataclass, field, replace
from typing import final

import torch
from torch import Tensor

from workers.learn.cost import Cost
from workers.learn.inner.base import AbstractInnerSolver, InnerSolution
from workers.learn.inner.lbfgs import LBFGS
from workers.learn.linear.base import AbstractLinearSolver
from workers.learn.methods.evaluation import Evaluation
from workers.learn.oracle import AbstractMetric, AbstractOracle
from workers.learn.outer.path import Path, PathPoint, PathState
from workers.learn.whitened_oracle import WhitenedOracle

_FIRST_TRAINING = 1e-2
"""Gradient that the first training leaves, relative to that at the initial weights: the first step is long anyway."""
_FIRST_TANGENT = 0.15
"""Residual that the first tangent leaves."""
_FIRST_SLOPE = 0.015
"""Error of the slope at the second point, relative to that at the first."""
_PATIENCE = 80
"""Iterations that a training from initial weights may take before a stronger penalty is tried instead."""
MOST_RETREATS = 5
_RETREAT = 4.0
_SHARE = 0.6
"""Of the error that a slope may have, what is asked of the solves."""
_CLOSE = 0.7
"""Of the resolution, how near the foreseen minimum has to be."""
_FALL = 0.1
"""Least part of the present slope that the next one is expected to be, and so need not be more accurate than."""
_TRAINING_SLACK = 2.0
"""Likewise, of a training's effect on the slope: ‖residual‖ ‖q‖ is nearly attained."""
_SLACK = 10.0
"""The bound ‖residual‖ ‖q‖ of a tangent's effect is never attained; measured on digits, a9a, breast_cancer."""
_TEST = 2.0
"""By how much the residuals of a forecast are lowered in any case, to see what becomes of the slope."""
_VALUES = 1e-3
"""Slopes lead; values of loose trainings, good to this fraction, only refute a slope that misled."""
_MOST_REJECTIONS = 8


@dataclass(frozen=True)
class Trained:
    """An evaluation, and what became of its training."""

    found: Evaluation
    inner: InnerSolution
    metric: AbstractMetric | None
    spent: int
    """Gradient-equivalents of the solves: what better coordinates would shorten."""
    cost: Cost


@dataclass(frozen=True)
class Heading:
    """Where to go from the points that are known."""

    trial: float
    path: PathState
    done: bool
    cost: Cost


@final
@dataclass(frozen=True)
class PathFollower:
    """Trains at a point of the path and decides on the next.

    With one hyperparameter the tangent s = dw/draw costs what the adjoint costs, and ⟨∂_w outer, s⟩ is the
    hypergradient just as well. But s also foretells the weights, and itself, at the next point: both solves start
    there, and the next point is where the outer loss is least on the path foretold.
    """

    solver: AbstractLinearSolver
    inner: AbstractInnerSolver
    tolerance: float
    resolution: float
    precondition: bool
    path: Path = field(default_factory=Path)

    def begin(
        self,
        oracle: AbstractOracle,
        trial: Tensor,
        w0: Tensor,
        curvature_at: Tensor | None,
        *,
        patient: bool,
        seed: int,
    ) -> Trained:
        """Return the evaluation at `trial` [1], loosely trained from `w0` [p] for as long as patience lasts."""
        metric = oracle.metric(trial, curvature_at) if self.precondition else None
        seen = WhitenedOracle(oracle, metric) if metric is not None else oracle
        u = metric.inverse(w0) if metric is not None else w0
        tol = _FIRST_TRAINING * float(torch.linalg.vector_norm(seen.inner(u, trial).gradient))
        solver = self.inner
        if isinstance(solver, LBFGS) and not patient:
            solver = replace(solver, max_iterations=min(solver.max_iterations, _PATIENCE))
        inner = solver.solve(seen, trial, u, tol=tol)
        tangent = _Tangent(self.solver, seen, trial, inner.w, None)
        tangent = tangent.solved(tol=(_FIRST_TANGENT if inner.converged else 0.5) * tangent.push, seed=seed)
        found = tangent.evaluation(trial, inner, metric, uncertainty=math.inf)
        return _trained(found, inner, metric, tangent, Cost(gradients=1))

    def go_on(
        self,
        oracle: AbstractOracle,
        trial: Tensor,
        best: Evaluation,
        previous: Evaluation | None,
        path: PathState,
        curvature_at: Tensor | None,
        *,
        seed: int,
    ) -> Trained:
        """Return the evaluation at `trial` [1], as accurate as `path` asks for."""
        metric = oracle.metric(trial, curvature_at) if self.precondition else None
        seen = WhitenedOracle(oracle, metric) if metric is not None else oracle
        other = None if previous is None else path_point(previous)
        u, s = self.path.at(path_point(best), other, float(trial))
        if metric is not None:
            u, s = metric.inverse(u), metric.inverse(s)
        tol, cost = _TRAINING_SLACK * path.target / max(best.adjoint_norm, 1e-300), Cost()
        if path.verifying:
            tol = max(tol, float(torch.linalg.vector_norm(seen.inner(u, trial).gradient)) / _TEST)
            cost = Cost(gradients=1)
        inner = self.inner.solve(seen, trial, u, tol=tol)
        tangent = _Tangent(self.solver, seen, trial, inner.w, s)
        # A slope that was foreseen is near zero by construction: only a residual that fell tells of the true one.
        tested = tangent.residual / _TEST
        bound = path.target / max(tangent.pull, 1e-300)
        linear_tol = max(tested, _SLACK * bound) if path.verifying else max(min(tested, _SLACK * bound), 0.3 * bound)
        tangent = tangent.solved(tol=linear_tol, seed=seed)
        uncertainty = path.target
        if path.verifying:
            surprise = abs(tangent.slope - path.foreseen)
            uncertainty = max(path.doubt, surprise) / _TEST
        return _trained(tangent.evaluation(trial, inner, metric, uncertainty=uncertainty), inner, metric, tangent, cost)

    def retreat(self, trained: Trained, high: float) -> float | None:
        """Return a stronger penalty to begin with, or None if the point that was found will do."""
        raw = float(trained.found.raw)
        if trained.inner.converged or raw >= high or not isinstance(self.inner, LBFGS):
            return None
        return min(raw + _RETREAT, high)

    def take(
        self, path: PathState | None, best: Evaluation, found: Evaluation, low: float, high: float
    ) -> tuple[PathState, bool]:
        """Take in an evaluation; return the state after it, and whether it is the new best."""
        if path is None:
            return PathState.start(low, high, self.path.first_reach), True
        apart = abs(float(found.raw) - float(best.raw))
        if math.isinf(best.uncertainty):  # hardly trained, and so perhaps better than training would leave it
            best = replace(best, corrected=math.inf)
        unsure = found.uncertainty if math.isinf(best.uncertainty) else found.uncertainty + best.uncertainty
        noise = _VALUES * abs(found.value) + found.error + (2.0 + apart) * unsure
        return self.path.take(path, path_point(best), path_point(found), noise=noise, uncertainty=found.uncertainty)

    def head(
        self,
        oracle: AbstractOracle,
        best: Evaluation,
        previous: Evaluation | None,
        path: PathState,
        box: tuple[float, float],
    ) -> Heading:
        """Return where to go next, and how accurate to be there."""
        point, other = path_point(best), None if previous is None else path_point(previous)
        weights = best.weights

        def slope_at(raw: float) -> float:
            w, s = self.path.at(point, other, raw)
            at = oracle.outer(w, weights.new_tensor([raw]))
            return float(torch.dot(at.gradient, s) + at.raw_gradient[0])

        # The box's ends may be minima; a wall inside is none, and one that is ahead and near was a mistaken slope.
        down = point.slope > 0.0
        if down and point.raw - path.below < self.resolution:
            path = replace(path, below=box[0])
        elif not down and path.above - point.raw < self.resolution:
            path = replace(path, above=box[1])
        low = box[0] if path.below <= box[0] else point.raw - 0.9 * (point.raw - path.below)
        high = box[1] if path.above >= box[1] else point.raw + 0.9 * (path.above - point.raw)
        sight = self.path.look(slope_at, point, other, ends=(low, high), reach=path.reach, resolution=self.resolution)
        cost = Cost(gradients=sight.looks)
        walled = path.below > box[0] if down else path.above < box[1]
        if walled and sight.curvature <= 0.0:  # there is a minimum on the way, but the path does not tell where
            sight = replace(sight, raw=0.5 * (point.raw + (path.below if down else path.above)))
        if sight.looks == 0:
            return Heading(point.raw, path, done=True, cost=cost)
        step, curvature, resolution = abs(sight.raw - point.raw), max(sight.curvature, 0.0), self.resolution
        bearable = max(0.05 * abs(point.slope), 1e-3 * abs(point.value))  # no minimum in sight: hardly matters
        if curvature > 0.0:
            # A minimum at distance d is lower by c d²/2: no closer than the tolerance can tell, nor much further off.
            per_tolerance = math.sqrt(2.0 * self.tolerance * abs(point.value) / curvature)
            resolution = min(max(resolution, 0.1 * per_tolerance), per_tolerance)
            bearable = curvature * resolution
        near = curvature > 0.0 and step <= _CLOSE * resolution
        first = path.surprise is None
        done = path.rejected >= _MOST_REJECTIONS or (not first and near and best.uncertainty <= bearable)
        # What the last forecast was off by, for a step as long as the coming one.
        if path.surprise is None:
            doubt, share = math.inf, _FIRST_SLOPE * abs(point.slope)
        else:
            doubt = path.surprise * (step / path.length) ** 1.5
            share = _SHARE * doubt
        coming = replace(
            path,
            foreseen=sight.slope,
            doubt=doubt,
            verifying=curvature > 0.0 and doubt <= 0.5 * bearable and best.uncertainty <= 4.0 * bearable,
            target=max(min(share, _FALL * abs(point.slope)), _SHARE * _CLOSE * bearable),
        )
        return Heading(sight.raw, coming, done, cost)


def path_point(found: Evaluation) -> PathPoint:
    """Return an evaluation as a point of the path."""
    assert found.tangent is not None  # noqa: S101 (this method made it)
    return PathPoint(float(found.raw), found.weights, found.tangent, found.corrected, float(found.gradient))


class _Tangent:
    """s with H s = −∂²_{w raw} inner at one point, the hypergradient that follows, and what both cost."""

    def __init__(
        self, solver: AbstractLinearSolver, seen: AbstractOracle, raw: Tensor, u: Tensor, guess: Tensor | None
    ) -> None:
        self._solver = solver
        self._outer = seen.outer(u, raw)
        right = -seen.cross_forward(u, raw, torch.ones_like(raw))
        self._product = seen.hvp(u, raw)
        self._left = right if guess is None else right - self._product(guess)
        self.s = torch.zeros_like(u) if guess is None else guess
        self.push = float(torch.linalg.vector_norm(right))
        self.pull = float(torch.linalg.vector_norm(self._outer.gradient))
        self.residual = float(torch.linalg.vector_norm(self._left))
        self.cost = Cost(gradients=1, hessian_vector_products=0 if guess is None else 1, cross_products=1)

    def solved(self, *, tol: float, seed: int) -> "_Tangent":
        """Lower the residual to `tol`; a guess that is good enough stays as it is."""
        if self.residual > tol:
            change = self._solver.solve(self._product, self._left, x0=None, tol=tol, seed=seed)
            self.s = self.s + change.x
            self.cost += Cost(hessian_vector_products=change.steps)
        return self

    @property
    def slope(self) -> float:
        """The hypergradient, a number."""
        return float(torch.dot(self._outer.gradient, self.s) + self._outer.raw_gradient[0])

    def evaluation(
        self, raw: Tensor, inner: InnerSolution, metric: AbstractMetric | None, *, uncertainty: float
    ) -> Evaluation:
        """Return all of it in the original coordinates.

        There is no adjoint; that H⁻¹ stretches ∂_w outer as it stretches the right-hand side estimates its size.
        """
        stretch = float(torch.linalg.vector_norm(self.s)) / max(self.push, 1e-300)
        value = float(self._outer.value)
        error = stretch * float(torch.dot(self._outer.gradient, inner.gradient))
        return Evaluation(
            raw,
            metric.forward(inner.w) if metric is not None else inner.w,
            None,
            metric.forward(self.s) if metric is not None else self.s,
            value,
            value - error,
            raw.new_tensor([self.slope]),
            abs(error),
            stretch * self.pull,
            uncertainty,
        )


def _trained(
    found: Evaluation, inner: InnerSolution, metric: AbstractMetric | None, tangent: _Tangent, more: Cost
) -> Trained:
    spent = inner.cost.gradients + 2 * tangent.cost.hessian_vector_products
    return Trained(found, inner, metric, spent, more + inner.cost + tangent.cost)
