"""Steps with a factorised Hessian."""

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
class Cholesky(AbstractInnerSolver):
    """w ← w − M⁻¹ ∂_w inner, with the factorised curvature M that the oracle offers.

    For the squared loss M is the Hessian and one step the solution; further steps refine it against rounding.
    For other losses M bounds the Hessian and this is the monotone method of Böhning & Lindsay (1988), with one
    factorisation for all steps.

    Raises:
        LearnError: the oracle offers no such curvature.
    """

    max_iterations: int = 100

    def solve(self, oracle: AbstractOracle, raw: Tensor, w0: Tensor, *, tol: float) -> InnerSolution:
        """See `AbstractInnerSolver.solve`."""
        metric = oracle.metric(raw, None)
        if metric is None:
            raise LearnError("Cholesky steps need an oracle that offers a metric; L-BFGS does not")
        at, w, iterations = oracle.inner(w0, raw), w0, 0
        norm = float(torch.linalg.vector_norm(at.gradient))
        while norm > tol and iterations < self.max_iterations:
            trial = w - metric.forward(metric.transpose(at.gradient))
            new = oracle.inner(trial, raw)
            size = float(torch.linalg.vector_norm(new.gradient))
            iterations += 1
            if not size < norm:  # rounding: the last point is as good as it gets
                break
            w, at, norm = trial, new, size
        cost = Cost(iterations, 1 + iterations, 0, 0) + metric.cost
        return InnerSolution(w, float(at.value), at.gradient, norm, iterations, norm <= tol, cost)
