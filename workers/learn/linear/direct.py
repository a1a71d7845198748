"""The dense solve: for few parameters, and for checking every other strategy."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import override

from workers.learn.errors import LearnError
from workers.learn.linear.base import AbstractLinearSolver, LinearSolution, MatVec, Outcome
from workers.learn.linear.vectors import check_vectors, columns, norm, without_iterating


@dataclass(frozen=True)
class Direct(AbstractLinearSolver):
    """H by p products with unit vectors, then Cholesky; eigenvalues where H is not positive definite.

    One step of iterative refinement follows if the first answer misses the tolerance. Eigenvalues of rounding
    size are dropped, which gives the solution of least norm where H is singular; if b is not in its range the
    tolerance is missed, and the outcome is `INDEFINITE`.

    Attributes:
        max_size: largest p; H has p² numbers (128 MiB at 4096 in float64).
        chunk: columns that are asked for at once.
    """

    max_size: int = 4096
    chunk: int = 64

    @override
    def solve(self, matvec: MatVec, b: Tensor, *, x0: Tensor | None, tol: float, seed: int = 0) -> LinearSolution:
        """See `AbstractLinearSolver.solve`; `x0` is ignored."""
        check_vectors(b, x0)
        if len(b) > self.max_size:
            raise LearnError(
                f"a dense solve of {len(b)} parameters was asked for; it takes at most {self.max_size}, "
                "and cg solves the same system with products alone"
            )
        b = b.detach()
        scale = norm(b)
        if (trivial := without_iterating(b, scale)) is not None:
            return trivial
        h = columns(matvec, torch.arange(len(b), device=b.device), b, chunk=self.chunk)
        steps = len(b)
        if not bool(torch.isfinite(h).all()):
            return LinearSolution(torch.zeros_like(b), scale, steps, Outcome.DIVERGED)
        inverse = _Inverse.of(0.5 * (h + h.T))

        unit, target = b / scale, tol / scale
        x, residual = torch.zeros_like(b), math.inf
        r = unit
        for _ in range(2):  # the solve, and one refinement
            candidate = x + inverse(r)
            r = unit - matvec(candidate).detach()
            steps += 1
            if not (measured := norm(r)) < residual:
                break
            x, residual = candidate, measured
            if residual <= target:
                return LinearSolution(scale * x, scale * residual, steps, Outcome.CONVERGED)
        if math.isinf(residual):
            return LinearSolution(torch.zeros_like(b), scale, steps, Outcome.DIVERGED)
        outcome = Outcome.ITERATION_LIMIT if inverse.is_definite else Outcome.INDEFINITE
        return LinearSolution(scale * x, scale * residual, steps, outcome)


@dataclass(frozen=True)
class _Inverse:
    """A factorization of H: a Cholesky factor, or eigenvalues and vectors."""

    factor: Tensor
    eigenvalues: Tensor | None

    @classmethod
    def of(cls, h: Tensor) -> "_Inverse":
        factor, info = torch.linalg.cholesky_ex(h)
        pivots = factor.diagonal() ** 2
        # a pivot of rounding size passes for positive, but is not known to be
        if int(info) == 0 and bool(pivots.min() > len(h) * torch.finfo(h.dtype).eps * pivots.max()):
            return cls(factor, None)
        values, vectors = torch.linalg.eigh(h)
        return cls(vectors, values)

    @property
    def is_definite(self) -> bool:
        return self.eigenvalues is None

    def __call__(self, b: Tensor) -> Tensor:
        if self.eigenvalues is None:
            return torch.cholesky_solve(b[:, None], self.factor)[:, 0]
        size = self.eigenvalues.abs()
        kept = size > len(b) * torch.finfo(b.dtype).eps * size.max()
        inverted = torch.where(kept, 1.0 / torch.where(kept, self.eigenvalues, 1.0), 0.0)
        return self.factor @ (inverted * (self.factor.T @ b))
