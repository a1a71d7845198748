"""Newton steps on the weights that are not zero: training with absolute values in the loss."""

import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from workers.learn.cost import Cost
from workers.learn.errors import LearnError
from workers.learn.inner.base import AbstractInnerSolver, InnerSolution
from workers.learn.oracle import AbstractOracle
from workers.learn.sparse_oracle import SparseOracle, least_subgradient

_ARMIJO = 1e-4
_MOST_HALVINGS = 40


@final
@dataclass(frozen=True)
class ReducedNewton(AbstractInnerSolver):
    """Minimise smooth(w) + Σ τ_j |w_j|, w_j ∈ ℝ, to any accuracy.

    Two kinds of iteration, by where the subgradient of least norm is larger:

    - among the zeros: accelerated proximal gradient steps, which let weights become active, and others vanish;
    - on the support: a truncated Newton step within the orthant that the signs of the weights span, where the loss
      is smooth. A weight that would change its sign stops at zero.

    The step length of the proximal gradient adapts; the Newton system is solved by conjugate gradients only as
    accurately as the step needs, so the end is superlinear.

    Source: Chen, Curtis & Robinson (2017), "A reduced-space algorithm for minimizing l1-regularized convex
    functions"; Beck & Teboulle (2009) for the proximal steps, restarted as in O'Donoghue & Candès (2015).
    """

    max_iterations: int = 2000
    burst: int = 10
    """Proximal gradient steps in a row."""
    max_products: int = 200
    """Hessian products for one Newton direction."""
    margin: float = 1e-4
    """How far below the tolerance it goes. First-order estimates of what a residual does to the outer loss see only
    the support that was found, not the weights that would still join or leave it; and the end is cheap."""

    def solve(self, oracle: AbstractOracle, raw: Tensor, w0: Tensor, *, tol: float) -> InnerSolution:
        """See `AbstractInnerSolver.solve`; the gradient is the subgradient of least norm.

        Raises:
            LearnError: the problem has no absolute values; it wants another solver.
        """
        if not isinstance(oracle, SparseOracle):
            raise LearnError("a reduced Newton method is for losses with absolute values: take L-BFGS")
        run, goal = _Run(oracle, raw, w0), self.margin * tol
        while run.norm > goal and run.iterations < self.max_iterations and math.isfinite(run.value):
            before, last = run.norm, run.value
            zeros, active = run.parts()
            if zeros > active:
                run.proximal(min(self.burst, self.max_iterations - run.iterations), enough=goal)
            elif not run.newton(enough=0.5 * goal, most=self.max_products):
                # No Newton step lowers the loss any more: what is left is for first-order steps, or rounding.
                run.proximal(min(self.burst, self.max_iterations - run.iterations), enough=goal)
                if run.norm > 0.9 * before and last - run.value <= run.resolution:
                    break
        cost = Cost(run.iterations, run.gradients, run.products, 0)
        return InnerSolution(run.w, run.value, run.subgradient, run.norm, run.iterations, run.norm <= tol, cost)


class _Run:
    """Where a solve stands."""

    def __init__(self, oracle: SparseOracle, raw: Tensor, w0: Tensor) -> None:
        self._oracle = oracle
        self._raw = raw
        self._thresholds = oracle.thresholds(raw, w0)
        self._smoothness = 1.0
        self.gradients, self.products, self.iterations = 0, 0, 0
        self._move(w0, *self._evaluate(w0))
        self._first_norm = max(self.norm, 1e-300)

    @property
    def resolution(self) -> float:
        """Differences of the loss below this are rounding."""
        return 4.0 * torch.finfo(self.w.dtype).eps * abs(self.value)

    def parts(self) -> tuple[float, float]:
        """Return the norms of the subgradient among the zeros and on the support."""
        zeros = self.w == 0.0
        squares = self.subgradient.square()
        total, of_zeros = torch.stack([squares.sum(), squares[zeros].sum()]).tolist()
        return math.sqrt(of_zeros), math.sqrt(max(total - of_zeros, 0.0))

    def proximal(self, steps: int, *, enough: float) -> None:
        """Take up to `steps` accelerated proximal gradient steps, with backtracking and restarts."""
        ahead, gradient, smooth = self.w, self._gradient, self._smooth
        momentum = 1.0
        for _ in range(steps):
            self._smoothness *= 0.9
            while True:
                moved = ahead - gradient / self._smoothness
                trial = moved.sign() * (moved.abs() - self._thresholds / self._smoothness).clamp_min(0.0)
                found, slope = self._evaluate(trial)
                change = trial - ahead
                bound = smooth + torch.dot(gradient, change) + 0.5 * self._smoothness * change.square().sum()
                if float(found - bound) <= self.resolution or not self._smoothness < 1e30:
                    break
                self._smoothness *= 2.0
            self.iterations += 1
            last, value = self.w, self.value
            self._move(trial, found, slope)
            if self.norm <= enough:
                return
            new = 0.5 * (1.0 + math.sqrt(1.0 + 4.0 * momentum * momentum))
            if self.value > value:
                new, momentum = 1.0, 1.0  # the momentum points uphill
            inertia, momentum = (momentum - 1.0) / new, new
            ahead = self.w + inertia * (self.w - last)
            smooth, gradient = (found, slope) if inertia == 0.0 else self._evaluate(ahead)

    def newton(self, *, enough: float, most: int) -> bool:
        """Take a Newton step on the support; False if none lowers the loss."""
        support = (self.w != 0.0) | (self._thresholds == 0.0)
        gradient = torch.where(support, self.subgradient, 0.0)
        norm = float(torch.linalg.vector_norm(gradient))
        forcing = min(0.5, math.sqrt(norm / self._first_norm)) * norm
        direction = self._direction(gradient, max(forcing, enough), most)
        if not float(torch.dot(direction, gradient)) < 0.0:
            return False
        signs, kinked, length = self.w.sign(), self._thresholds > 0.0, 1.0
        for _ in range(_MOST_HALVINGS):
            trial = self.w + length * direction
            trial = torch.where(kinked & (trial * signs < 0.0), 0.0, trial)
            found, slope = self._evaluate(trial)
            value = float(found + torch.dot(self._thresholds, trial.abs()))
            promised = float(torch.dot(gradient, trial - self.w))
            if value <= self.value + _ARMIJO * min(promised, 0.0):
                break
            after = least_subgradient(trial, slope, self._thresholds)
            if value <= self.value + self.resolution and float(torch.linalg.vector_norm(after)) < 0.9 * self.norm:
                break  # values are equal to working precision: gradients decide
            length *= 0.5
        else:
            return False
        self.iterations += 1
        self._move(trial, found, slope)
        return True

    def _direction(self, gradient: Tensor, enough: float, most: int) -> Tensor:
        """Return d with H_SS d ≈ −g by conjugate gradients, zero outside the support."""
        product = self._oracle.hvp(self.w, self._raw)
        d: Tensor = torch.zeros_like(gradient)
        r = -gradient
        p, rr = r, torch.dot(r, r)
        for count in range(most):
            hp = product(p)
            self.products += 1
            curvature, size = torch.stack([torch.dot(p, hp), torch.dot(p, p)]).tolist()
            if curvature <= 1e-14 * size:
                return d if count else -gradient
            alpha = rr / curvature
            d, r = d + alpha * p, r - alpha * hp
            new = torch.dot(r, r)
            if math.sqrt(float(new)) <= enough:
                return d
            p, rr = r + (new / rr) * p, new
        return d

    def _evaluate(self, w: Tensor) -> tuple[Tensor, Tensor]:
        self.gradients += 1
        at = self._oracle.smooth_part(w, self._raw)
        return at.value, at.gradient

    def _move(self, w: Tensor, smooth: Tensor, gradient: Tensor) -> None:
        self.w, self._smooth, self._gradient = w, smooth, gradient
        self.value = float(smooth + torch.dot(self._thresholds, w.abs()))
        self.subgradient = least_subgradient(w, gradient, self._thresholds)
        self.norm = float(torch.linalg.vector_norm(self.subgradient))
