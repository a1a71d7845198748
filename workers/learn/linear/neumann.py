"""A truncated Neumann series for the inverse."""

import math
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor
from typing_extensions import override

from workers.learn.linear.base import AbstractLinearSolver, LinearSolution, MatVec, Outcome
from workers.learn.linear.krylov import Cycle, solve_in_cycles
from workers.learn.linear.vectors import check_vectors, damped, norm, sync_stride, without_iterating


@dataclass(frozen=True)
class Neumann(AbstractLinearSolver):
    """q = α Σ_{j=0..K} (I − αH)ʲ b, which is what K + 1 unrolled steps of gradient descent would give.

    H ≻ 0 and 0 < α < 2/λ_max make it converge to H⁻¹ b, with q* − q = (I − αH)^{K+1} q*. Each term is the residual
    of the sum before it, so that the series also stops at the tolerance, and a warm start is a start of
    Richardson's iteration.

    ‖v_j‖² = Σ_i c_i² (1 − αλ_i)^{2j} is log-convex in j: a term that is larger than the one before it is followed
    by larger ones only, so the series ends there with the sum of least residual. It says `INDEFINITE` if a term had
    non-positive curvature, else `DIVERGED`: α is too large, or negative curvature is hidden among positive.

    Attributes:
        terms: K, the products with H; K = 0 is αb.
        alpha: α, or None for 0.9/λ with λ the largest |eigenvalue| by power iteration on the same operator. It is
            not the learning rate of the inner training, which momentum and Adam leave without relation to H.
        power_steps: products for that estimate.
        damping: δ ≥ 0; the series is that of H + δI, and so are α and the residual.

    Source: Lorraine, Vicol & Duvenaud (2020), Alg. 3, with the factor α that its pseudo-code leaves out.
    """

    terms: int
    alpha: float | None = None
    power_steps: int = 15
    damping: float = 0.0

    @override
    def solve(self, matvec: MatVec, b: Tensor, *, x0: Tensor | None, tol: float, seed: int = 0) -> LinearSolution:
        """See `AbstractLinearSolver.solve`."""
        check_vectors(b, x0)
        if (trivial := without_iterating(b, scale := norm(b))) is not None:
            return trivial
        alpha, estimating, matvec = self.alpha, 0, damped(matvec, self.damping)
        if alpha is None:
            largest, estimating = largest_eigenvalue(matvec, b, steps=self.power_steps, seed=seed), self.power_steps
            if not 0.0 < largest < math.inf:
                outcome = Outcome.INDEFINITE if largest == 0.0 else Outcome.DIVERGED
                return LinearSolution(torch.zeros_like(b), scale, estimating, outcome)
            alpha = 0.9 / largest
        solution = solve_in_cycles(partial(_series, alpha), matvec, b, x0=x0, tol=tol, max_steps=self.terms)
        outcome = solution.outcome
        if outcome is Outcome.ITERATION_LIMIT:  # to be truncated is what a truncated series is for
            outcome = Outcome.APPROXIMATE
        return replace(solution, steps=solution.steps + estimating, outcome=outcome)


def _series(alpha: float, matvec: MatVec, r: Tensor, tol: float, most: int) -> Cycle:
    """α Σ_j (I − αH)ʲ r, by `most` products or until a term is within `tol`; a cycle as Krylov methods have."""
    epsilon = torch.finfo(r.dtype).eps
    s, v, vv = r, r, torch.dot(r, r)
    stop = torch.clamp(epsilon**2 * vv, min=tol * tol)
    going = vv > 0
    grew, negative = torch.zeros_like(going), torch.zeros_like(going)
    stride, steps = sync_stride(r), 0
    while steps < most:
        hv = matvec(v).detach()
        v_new = v - alpha * hv
        vv_new = torch.dot(v_new, v_new)
        fell = vv_new <= vv  # false for NaN
        grew, negative = grew | (going & ~fell), negative | (going & (torch.dot(v, hv) <= 0))
        # v_new is the residual of s: where it is the larger, s is better without its last term v
        on = going & fell & (vv_new > stop)
        s = _either(going & ~fell, s - v, _either(on, s + v_new, s))
        v, vv, going = _either(on, v_new, v), _either(on, vv_new, vv), on
        steps += 1
        if (steps % stride == 0 or steps == most) and not bool(going):
            break
    if bool(grew):
        return Cycle(alpha * s, steps, Outcome.INDEFINITE if bool(negative) else Outcome.DIVERGED)
    return Cycle(alpha * s, steps, Outcome.ITERATION_LIMIT if bool(going) else Outcome.CONVERGED)


def _either(condition: Tensor, this: Tensor, other: Tensor) -> Tensor:
    """Return one vector or the other, for a condition that is one for the whole of it.

    To look at it stalls an accelerator; on a CPU it is free, and `torch.where` a tenth of the solve.
    """
    if condition.device.type == "cpu":
        return this if bool(condition) else other
    return torch.where(condition, this, other)


def largest_eigenvalue(matvec: MatVec, like: Tensor, *, steps: int, seed: int) -> float:
    """An estimate from below of the largest |eigenvalue| of a symmetric H, by `steps` products.

    Power iteration from a random start; ‖H v‖ for ‖v‖ = 1, which no negative eigenvalue can cancel.

    Args:
        matvec: v ↦ H v.
        like: a vector of the size, dtype and device of v, [p].
        steps: products to spend, at least 1.
        seed: of the start.
    """
    generator = torch.Generator().manual_seed(seed)
    v = torch.randn(like.shape, generator=generator, dtype=like.dtype).to(like.device)
    size = torch.linalg.vector_norm(v)
    for _ in range(steps):
        v = matvec(v / size.clamp(min=torch.finfo(v.dtype).tiny)).detach()
        size = torch.linalg.vector_norm(v)
    return float(size)
