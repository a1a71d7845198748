"""Accelerated gradient steps for strongly convex problems with known constants."""

import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from workers.learn.cost import Cost
from workers.learn.errors import LearnError
from workers.learn.inner.base import AbstractInnerSolver, InnerSolution
from workers.learn.oracle import AbstractOracle


@final
@dataclass(frozen=True)
class FISTA(AbstractInnerSolver):
    """With q = μ/L, t₀ = 0 and steps of 1/L from extrapolated points:

    t⁺ = (1 − q t² + √((1 − q t²)² + 4 t²)) / 2,   z = x + (t − 1)(1 − q t⁺) / (t⁺ (1 − q)) · (x − x₋),
    x⁺ = z − ∂_w inner(z) / L.

    What is returned is the point z at which the gradient was last evaluated, so the norm that is reported is the
    norm there. Where the constants are proven, the number of steps is bounded before the first: `iteration_bound`.
    When no further digit comes out of many more steps than theory needs for one, it stops and says so.

    Source: Chambolle & Pock (2016), algorithm 5 and theorem 4.10. The code that accompanies Salehi et al. (2023)
    sets x₋ = x before it extrapolates, which is gradient descent.
    """  # noqa: D415 (a formula ends the first paragraph)

    max_iterations: int = 100_000

    def solve(self, oracle: AbstractOracle, raw: Tensor, w0: Tensor, *, tol: float) -> InnerSolution:
        """See `AbstractInnerSolver.solve`.

        Raises:
            LearnError: the oracle does not know its constants.
        """
        mu, smoothness = _constants(oracle, raw)
        ratio = min(mu / smoothness, 1.0)
        # Steps within which the gradient must shrink to a quarter, from anywhere, unless rounding forbids it.
        patience = iteration_bound(mu, smoothness, distance=1.0, target=0.25 * ratio)
        x = previous = w0
        t, steps, best, since = 0.0, 0, math.inf, 0
        while True:
            damping = 1.0 - ratio * t * t
            following = 0.5 * (damping + math.sqrt(damping * damping + 4.0 * t * t))
            # q = 1 is a multiple of the identity: one step solves it.
            beta = (t - 1.0) * (1.0 - ratio * following) / (following * (1.0 - ratio)) if ratio < 1.0 else 0.0
            z = x + beta * (x - previous) if steps else w0
            at = oracle.inner(z, raw)
            norm = float(torch.linalg.vector_norm(at.gradient))
            best, since = (norm, 0) if norm < 0.5 * best else (best, since + 1)
            if norm <= tol or steps >= self.max_iterations or since > patience or not math.isfinite(norm):
                cost = Cost(inner_iterations=steps, gradients=steps + 1)
                return InnerSolution(z, float(at.value), at.gradient, norm, steps, norm <= tol, cost)
            previous, x = x, z - at.gradient / smoothness
            t, steps = following, steps + 1


def iteration_bound(strong_convexity: float, smoothness: float, *, distance: float, target: float) -> int:
    """Return a number k of steps after which ‖x_k − x*‖ ≤ `target`, if ‖x_0 − x*‖ ≤ `distance`.

    From ‖x_k − x*‖² ≤ (L/μ) (1 + √q) (1 − √q)^k ‖x_0 − x*‖² with q = μ/L.

    Source: Chambolle & Pock (2016), theorem 4.10.
    """
    if target >= distance:
        return 0
    ratio = min(strong_convexity / smoothness, 1.0)
    if ratio == 1.0:
        return 1
    root = math.sqrt(ratio)
    log_gain = 2.0 * math.log(target / distance) - math.log((1.0 + root) / ratio)
    return math.ceil(log_gain / math.log1p(-root))


def _constants(oracle: AbstractOracle, raw: Tensor) -> tuple[float, float]:
    constants = oracle.constants(raw)
    if constants is None:
        raise LearnError("FISTA needs the constants of strong convexity and smoothness; this problem knows none")
    mu, smoothness = constants.strong_convexity, constants.smoothness
    if not (mu > 0.0 and math.isfinite(smoothness) and smoothness > 0.0):
        raise LearnError(f"FISTA needs 0 < μ ≤ L < ∞; found μ = {mu} and L = {smoothness}")
    return mu, smoothness
