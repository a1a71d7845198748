"""The inverse Hessian taken for a multiple of the identity."""

import math
from dataclasses import dataclass

from torch import Tensor
from typing_extensions import override

from workers.learn.linear.base import AbstractLinearSolver, LinearSolution, MatVec, Outcome
from workers.learn.linear.vectors import check_vectors, norm, without_iterating


@dataclass(frozen=True)
class Identity(AbstractLinearSolver):
    """q = α b: a direction for no product at all, whose size is off by H⁻¹.

    For optimizers that are blind to scale (Adam, RMSprop) and operators that allow no product. None is spent on
    measuring either, hence a residual of NaN.

    Attributes:
        scale: α. One step of unrolled gradient descent has its learning rate here.

    Source: T1–T2 of Luketina et al. (2016); DARTS of Liu, Simonyan & Yang (2019), second-order form.
    """

    scale: float = 1.0

    @override
    def solve(self, matvec: MatVec, b: Tensor, *, x0: Tensor | None, tol: float, seed: int = 0) -> LinearSolution:
        """See `AbstractLinearSolver.solve`."""
        check_vectors(b, x0)
        if (trivial := without_iterating(b, norm(b))) is not None:
            return trivial
        return LinearSolution(self.scale * b.detach(), math.nan, 0, Outcome.APPROXIMATE)
