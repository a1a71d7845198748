"""Conjugate gradients: the default where the inner problem is convex."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import override

from workers.learn.linear.base import AbstractLinearSolver, LinearSolution, MatVec, Outcome
from workers.learn.linear.krylov import Cycle, solve_in_cycles
from workers.learn.linear.vectors import damped, sync_stride


@dataclass(frozen=True)
class CG(AbstractLinearSolver):
    """Conjugate gradients for H ≻ 0: ‖q_k − q‖_H ≤ 2 ((√κ − 1)/(√κ + 1))^k ‖q_0 − q‖_H.

    Stops at the first direction p with pᵀHp ≤ 0, to working precision, and answers `INDEFINITE` with the iterate
    before it.

    Attributes:
        max_steps: most products with H, without those that measure, at least 1; None for 10 p. In float64 and at the
            tolerances of hypergradients none measures: the recurrence is known to be right.
        damping: δ ≥ 0; solves (H + δI) x = b instead, and means that system's residual.

    Source: Hestenes & Stiefel (1952); in hyperparameter learning Pedregosa (2016), Alg. 1.
    """

    max_steps: int | None = None
    damping: float = 0.0

    @override
    def solve(self, matvec: MatVec, b: Tensor, *, x0: Tensor | None, tol: float, seed: int = 0) -> LinearSolution:
        """See `AbstractLinearSolver.solve`."""
        h, most = damped(matvec, self.damping), self.max_steps or 10 * len(b)
        return solve_in_cycles(_conjugate_gradients, h, b, x0=x0, tol=tol, max_steps=most)


def _conjugate_gradients(matvec: MatVec, r: Tensor, tol: float, most: int) -> Cycle:
    """CG from zero for H x = r.

    All scalars stay on the device, and a recurrence that has ended is frozen rather than left, so that an
    accelerator is asked only every few products whether to go on.
    """
    epsilon = torch.finfo(r.dtype).eps
    x, p = torch.zeros_like(r), r
    rr = torch.dot(r, r)
    start = rr.sqrt()
    # Below ε‖r‖ the recurrence goes on falling while the true residual does not: a new cycle takes over there.
    stop = torch.clamp(epsilon**2 * rr, min=tol * tol)
    top = torch.zeros_like(rr)
    going = rr > 0
    negative, broken = torch.zeros_like(going), torch.zeros_like(going)
    stride, steps = sync_stride(r), 0
    while steps < most:
        hp = matvec(p).detach()
        curvature, pp = torch.dot(p, hp), torch.dot(p, p)
        top = torch.maximum(top, curvature / pp)
        finite = torch.isfinite(curvature)
        # a curvature of rounding size says nothing of the sign of the true one
        positive = curvature > epsilon * top * pp
        broken = broken | (going & ~finite)
        negative = negative | (going & finite & ~positive)
        going = going & finite & positive
        a = rr / curvature
        x = torch.where(going, x + a * p, x)
        r = torch.where(going, r - a * hp, r)
        rr_new = torch.where(going, torch.dot(r, r), rr)
        # the NEW residual starts the next direction
        p = torch.where(going, r + (rr_new / rr) * p, p)
        rr = rr_new
        going = going & (rr > stop)
        steps += 1
        if (steps % stride == 0 or steps == most) and not bool(going):
            break
    if bool(broken):
        return Cycle(x, steps, Outcome.DIVERGED)
    if bool(negative):
        return Cycle(x, steps, Outcome.INDEFINITE)
    # Rounding moves each update of r by ε‖H‖‖x_k‖ or less, and ‖x_k‖ grows with k (Greenbaum 1997, section 7.3);
    # `top` is ‖H‖ nearly, and the factor has room for that and for the rounding of long sums.
    residual, reached = rr.sqrt(), top * torch.linalg.vector_norm(x)
    drift = 100 * epsilon * steps * (reached + residual + start)
    # a floor above the tolerance is where a new cycle takes over
    outcome = Outcome.ITERATION_LIMIT if bool(going) else Outcome.CONVERGED
    trusted = bool(residual <= tol) or bool(going)
    return Cycle(x, steps, outcome, float(residual), float(drift) if trusted else math.inf)
