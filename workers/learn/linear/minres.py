"""MINRES: for Hessians that may be indefinite, as those of networks are."""

from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import override

from workers.learn.linear.base import AbstractLinearSolver, LinearSolution, MatVec, Outcome
from workers.learn.linear.krylov import Cycle, solve_in_cycles
from workers.learn.linear.vectors import damped, sync_stride


@dataclass(frozen=True)
class MINRES(AbstractLinearSolver):
    """argmin ‖H x − b‖ over growing Krylov spaces; needs H symmetric only.

    The residual never grows, so that stopping early is safe. At a saddle x solves the system, but is no derivative
    of a minimizer: that the inner problem is at a minimum is the caller's to know.

    Attributes:
        max_steps: most products with H, without those that measure, at least 1; None for 10 p.
        damping: δ ≥ 0; solves (H + δI) x = b instead, and means that system's residual.

    Source: Paige & Saunders (1975), sections 2 and 5.
    """

    max_steps: int | None = None
    damping: float = 0.0

    @override
    def solve(self, matvec: MatVec, b: Tensor, *, x0: Tensor | None, tol: float, seed: int = 0) -> LinearSolution:
        """See `AbstractLinearSolver.solve`."""
        h, most = damped(matvec, self.damping), self.max_steps or 10 * len(b)
        return solve_in_cycles(_minimal_residuals, h, b, x0=x0, tol=tol, max_steps=most)


def _minimal_residuals(matvec: MatVec, r: Tensor, tol: float, most: int) -> Cycle:
    """MINRES from zero for H x = r: Lanczos, and a QR factorization of its tridiagonal matrix by rotations.

    Where H is singular and r outside its range, φ̄ stalls and ‖H r_k‖/‖r_k‖ falls to √ε, then x runs away along the
    null space: the iterate of least ‖H r_k‖ is the least-squares solution, and is what such a run returns.

    In the notation of the paper: α, β the tridiagonal matrix T; (c, s) the latest rotation; γ, δ, ε the column of
    R that it completes; φ̄ the norm of the residual. Scalars stay on the device, as in CG.
    """
    epsilon = torch.finfo(r.dtype).eps
    beta = torch.linalg.vector_norm(r)
    going = beta > 0
    stop = torch.clamp(epsilon * beta, min=tol)
    zero = torch.zeros_like(beta)
    x, v_old, v = torch.zeros_like(r), torch.zeros_like(r), r / beta
    m_old, m = torch.zeros_like(r), torch.zeros_like(r)
    c, s, delta_bar, epsilon_next, phi_bar, size = -torch.ones_like(beta), zero, zero, zero, beta, zero
    beta = zero
    broken, runaway = torch.zeros_like(going), torch.zeros_like(going)
    least_squares, slope, phi_there = x, torch.full_like(phi_bar, torch.inf), phi_bar
    stride, steps = sync_stride(r), 0
    while steps < most:
        u = matvec(v).detach() - beta * v_old
        alpha = torch.dot(v, u)
        u = u - alpha * v
        beta_new = torch.linalg.vector_norm(u)
        broken = broken | (going & ~torch.isfinite(beta_new + alpha))
        size = torch.maximum(size, torch.hypot(torch.hypot(alpha, beta), beta_new))

        # the new column of T, under the two rotations before it
        epsilon_k, delta = epsilon_next, c * delta_bar + s * alpha
        gamma_bar = s * delta_bar - c * alpha
        epsilon_next, delta_bar = s * beta_new, -c * beta_new
        gamma = torch.hypot(gamma_bar, beta_new)
        slope_k = torch.hypot(gamma_bar, delta_bar)  # ‖H r_{k-1}‖/‖r_{k-1}‖
        less = going & (slope_k < slope)
        least_squares, slope = torch.where(less, x, least_squares), torch.where(less, slope_k, slope)
        phi_there = torch.where(less, phi_bar, phi_there)
        stalled = (slope < 10 * epsilon**0.5 * size) & (phi_bar > 0.99 * phi_there)
        runaway = runaway | (going & stalled & (slope_k > 1e3 * slope))
        going = going & ~broken & ~runaway & (gamma > epsilon * size)
        c, s = gamma_bar / gamma, beta_new / gamma
        m_new = (v - epsilon_k * m_old - delta * m) / gamma
        x = torch.where(going, x + c * phi_bar * m_new, x)
        phi_bar = torch.where(going, s * phi_bar, phi_bar)
        m_old, m = m, m_new
        v_old, v = torch.where(going, v, v_old), torch.where(going, u / beta_new, v)
        beta = beta_new
        # β = 0 ends the Krylov space with the exact solution in it
        going = going & (phi_bar > stop) & (beta_new > epsilon * size)
        steps += 1
        if (steps % stride == 0 or steps == most) and not bool(going):
            break
    if bool(broken):
        return Cycle(x, steps, Outcome.DIVERGED)
    if bool(runaway):
        return Cycle(least_squares, steps, Outcome.CONVERGED)
    return Cycle(x, steps, Outcome.ITERATION_LIMIT if bool(going) else Outcome.CONVERGED)
