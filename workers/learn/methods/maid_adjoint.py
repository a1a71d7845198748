"""Adjoints to a residual that is measured where it counts."""

import math

import torch
from torch import Tensor

from workers.learn.cost import Cost
from workers.learn.linear.base import AbstractLinearSolver
from workers.learn.methods.maid_inner import Located
from workers.learn.oracle import AbstractMetric, AbstractOracle
from workers.learn.whitened_oracle import WhitenedOracle

_MOST_ROUNDS = 4


def solve_adjoint(
    oracle: AbstractOracle,
    solver: AbstractLinearSolver,
    located: Located,
    b: Tensor,
    *,
    tol: float,
    metric: AbstractMetric | None,
    q0: Tensor | None,
    seed: int,
) -> tuple[Tensor, float, Cost]:
    """Return q with ‖H q − b‖ ≤ δ, if precision allows, its residual, and the cost.

    The solver may work in the coordinates of a metric, and carry its residual along; the one that is returned is
    measured with a product in the original coordinates, as the certificate needs it (C2). Where that turns out to
    be too large the solver goes on.

    Args:
        oracle: whose Hessian H is, at the weights of `located`.
        solver: of the linear system.
        located: the weights.
        b: ∂_w outer, [p].
        tol: δ.
        metric: coordinates for the solver; None for the original ones.
        q0: a first guess, [p]; None for zero.
        seed: of the solver's random choices.
    """
    product = oracle.hvp(located.weights, located.raw)
    seen = None if metric is None else WhitenedOracle(oracle, metric)
    q, steps, margin, best = q0, 0, 1.0, (torch.zeros_like(b), float(torch.linalg.vector_norm(b)))
    if best[1] == 0.0:
        return *best, Cost()
    stretch = 1.0 if metric is None else float(torch.linalg.vector_norm(metric.transpose(b))) / best[1]
    for _ in range(_MOST_ROUNDS):
        if seen is None or metric is None:
            found = solver.solve(product, b, x0=q, tol=margin * tol, seed=seed)
            q = found.x
        else:
            u = metric.inverse(located.weights)
            found = solver.solve(
                seen.hvp(u, located.raw),
                metric.transpose(b),
                x0=None if q is None else metric.inverse(q),
                tol=margin * tol * stretch,
                seed=seed,
            )
            q = metric.forward(found.x)
        r = b - product(q)
        steps += found.steps + 1
        residual = float(torch.linalg.vector_norm(r))
        if metric is not None and residual > 0.0:
            stretch = float(torch.linalg.vector_norm(metric.transpose(r))) / residual
        stalled = not residual < 0.5 * best[1]
        if residual < best[1] or not math.isfinite(best[1]):
            best = (q, residual)
        if residual <= tol or (stalled and not found.converged):
            break
        margin *= 0.5
    return *best, Cost(hessian_vector_products=steps)
