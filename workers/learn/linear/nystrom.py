"""A low-rank approximation of the Hessian, inverted in closed form."""

from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import override

from workers.learn.linear.base import AbstractLinearSolver, LinearSolution, MatVec, Outcome
from workers.learn.linear.vectors import check_vectors, columns, norm, without_iterating


@dataclass(frozen=True)
class Nystrom(AbstractLinearSolver):
    """q = (C W⁻¹ Cᵀ + ρI)⁻¹ b with C = H[:, I], W = H[I, I] and I of `rank` random coordinates.

    A damped direction for networks. ρ adds to what a ridge has already put inside H: with strong convexity CG is
    more accurate at any rank. Rank p gives (H + ρI)⁻¹ b. Unlike CG it has no iterates, so that its error does not
    compound, and no tolerance to reach.

    Instead of Woodbury's W + CᵀC/ρ, whose condition number is that of H squared, we take the singular values of
    B = C W^{-1/2} = U Σ Vᵀ: q = U (Σ² + ρ)⁻¹ Uᵀb + (b − U Uᵀb)/ρ, which stands float32 and a small ρ.

    Attributes:
        rank: r ≤ p; the products, and r p numbers of memory.
        rho: damping ρ > 0.
        jitter: added to W, in units of its mean eigenvalue, before it is inverted.
        chunk: columns that are asked for at once.

    Source: Hataya & Yamada (2023), eq. (6).
    """

    rank: int
    rho: float
    jitter: float = 1e-8
    chunk: int = 32

    @override
    def solve(self, matvec: MatVec, b: Tensor, *, x0: Tensor | None, tol: float, seed: int = 0) -> LinearSolution:
        """See `AbstractLinearSolver.solve`; `x0` is ignored, and the residual is that of H, not of H + ρI."""
        check_vectors(b, x0)
        b = b.detach()
        scale = norm(b)
        if (trivial := without_iterating(b, scale)) is not None:
            return trivial
        unit, rank = b / scale, min(self.rank, len(b))
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.randperm(len(b), generator=generator)[:rank].to(b.device)
        c = columns(matvec, chosen, b, chunk=self.chunk)
        if not bool(torch.isfinite(c).all()):
            return LinearSolution(torch.zeros_like(b), scale, rank, Outcome.DIVERGED)

        w = 0.5 * (c[chosen] + c[chosen].T)
        eye = torch.eye(rank, dtype=w.dtype, device=w.device)
        values, vectors = torch.linalg.eigh(w + self.jitter * (w.diagonal().abs().sum() / rank) * eye)
        kept = values > torch.finfo(w.dtype).eps * values.abs().max()
        root = torch.where(kept, torch.where(kept, values, 1.0).rsqrt(), 0.0)
        u, sigma, _ = torch.linalg.svd(c @ (vectors * root), full_matrices=False)
        ub = u.T @ unit
        q = u @ (ub / (sigma**2 + self.rho)) + (unit - u @ ub) / self.rho

        residual = norm(unit - matvec(q).detach())
        if bool(values.min() < -self.rho):  # what was dropped outweighs the damping
            outcome = Outcome.INDEFINITE
        else:
            outcome = Outcome.CONVERGED if scale * residual <= tol else Outcome.APPROXIMATE
        return LinearSolution(scale * q, scale * residual, rank + 1, outcome)
