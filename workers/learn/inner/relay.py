"""One solver after another."""

from dataclasses import dataclass, replace
from typing import final

from torch import Tensor

from workers.learn.errors import LearnError
from workers.learn.inner.base import AbstractInnerSolver, InnerSolution
from workers.learn.oracle import AbstractOracle


@final
@dataclass(frozen=True)
class Relay(AbstractInnerSolver):
    """Hand on to the next solver what the one before could not bring to the tolerance.

    L-BFGS before truncated Newton: L-BFGS is the cheaper one until differences of the loss are lost in rounding,
    where it can no longer tell a step; Newton's method goes on from there by the gradient alone.
    """

    solvers: tuple[AbstractInnerSolver, ...]

    def __post_init__(self) -> None:
        if not self.solvers:
            raise LearnError("a relay needs at least one solver")

    def solve(self, oracle: AbstractOracle, raw: Tensor, w0: Tensor, *, tol: float) -> InnerSolution:
        """See `AbstractInnerSolver.solve`."""
        best = self.solvers[0].solve(oracle, raw, w0, tol=tol)
        for solver in self.solvers[1:]:
            if best.converged:
                break
            found = solver.solve(oracle, raw, best.w, tol=tol)
            better = found if found.gradient_norm < best.gradient_norm else best
            best = replace(better, iterations=best.iterations + found.iterations, cost=best.cost + found.cost)
        return best
