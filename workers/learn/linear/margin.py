"""Any solver, further than it is asked to go."""

from dataclasses import dataclass, replace

from torch import Tensor
from typing_extensions import override

from workers.learn.linear.base import AbstractLinearSolver, LinearSolution, MatVec, Outcome


@dataclass(frozen=True)
class Margin(AbstractLinearSolver):
    """Solves to `factor` times the tolerance, and is content with the tolerance.

    A residual r leaves an error H⁻¹ r in x. Methods that derive tolerances for systems near the identity ask for too
    little where there is no metric that brings H there.
    """

    solver: AbstractLinearSolver
    factor: float = 1e-6

    @override
    def solve(self, matvec: MatVec, b: Tensor, *, x0: Tensor | None, tol: float, seed: int = 0) -> LinearSolution:
        """See `AbstractLinearSolver.solve`."""
        found = self.solver.solve(matvec, b, x0=x0, tol=self.factor * tol, seed=seed)
        if found.outcome is Outcome.ITERATION_LIMIT and found.residual <= tol:
            return replace(found, outcome=Outcome.CONVERGED)
        return found
