"""Truncated Newton."""

import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from workers.learn.cost import Cost
from workers.learn.inner.base import AbstractInnerSolver, InnerSolution
from workers.learn.inner.line_search import Trial, wolfe
from workers.learn.oracle import AbstractOracle, MatVec


@final
@dataclass(frozen=True)
class NewtonCG(AbstractInnerSolver):
    """Newton directions by conjugate gradients, each only as accurate as the step needs.

    CG on H d = −g stops at ‖H d + g‖ ≤ min(½, √(‖g‖/‖g₀‖)) ‖g‖ for superlinear convergence, or at a direction of
    negative curvature, with what it has: every such d is a direction of descent, also of losses that are not
    convex.

    Source: Nocedal & Wright (2006), algorithm 7.1.
    """

    max_iterations: int = 200
    max_products: int = 200
    """Hessian products for one direction."""

    def solve(self, oracle: AbstractOracle, raw: Tensor, w0: Tensor, *, tol: float) -> InnerSolution:
        """See `AbstractInnerSolver.solve`."""
        at = oracle.inner(w0, raw)
        w, value, norm = w0, float(at.value), float(torch.linalg.vector_norm(at.gradient))
        first_norm, gradients, products, iterations = norm, 1, 0, 0
        precision = torch.finfo(w0.dtype).eps
        while norm > tol and iterations < self.max_iterations and math.isfinite(value):
            forcing = min(0.5, math.sqrt(norm / first_norm))
            # The last step need not go further below the tolerance than to be sure of it.
            enough = max(forcing * norm, 0.5 * tol)
            direction, spent = _direction(oracle.hvp(w, raw), at.gradient, enough, self.max_products)
            products += spent
            slope = float(torch.dot(direction, at.gradient))
            here = w

            def evaluate(t: float, here: Tensor = here, along: Tensor = direction) -> Trial:
                there = here + t * along
                found = oracle.inner(there, raw)
                both = torch.stack([found.value, torch.dot(found.gradient, along)]).tolist()
                return Trial(t, both[0], both[1], found, there)

            resolution = 4 * precision * abs(value)
            found, evaluations = wolfe(
                evaluate,
                Trial(0.0, value, slope, at, w),
                first=1.0,
                armijo=1e-4,
                curvature=0.9,
                resolution=resolution,
            )
            gradients += evaluations
            iterations += 1
            if found is None:
                break
            before, last = norm, value
            w, at, value = found.w, found.at, found.value
            norm = float(torch.linalg.vector_norm(at.gradient))
            if norm > 0.9 * before and last - value <= resolution:
                break
        cost = Cost(iterations, gradients, products, 0)
        return InnerSolution(w, value, at.gradient, norm, iterations, norm <= tol, cost)


def _direction(product: MatVec, gradient: Tensor, enough: float, most: int) -> tuple[Tensor, int]:
    """Return d with H d ≈ −g, or along negative curvature, and the products spent."""
    d, r = torch.zeros_like(gradient), -gradient
    p, rr = r, torch.dot(r, r)
    for count in range(1, most + 1):
        hp = product(p)
        curvature, size = torch.stack([torch.dot(p, hp), torch.dot(p, p)]).tolist()
        if curvature <= 1e-14 * size:
            return (-gradient if count == 1 else d), count
        alpha = rr / curvature
        d = d + alpha * p
        r = r - alpha * hp
        new = torch.dot(r, r)
        if math.sqrt(float(new)) <= enough:
            return d, count
        p, rr = r + (new / rr) * p, new
    return d, most
