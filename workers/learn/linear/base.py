"""H x = b, known only through products with H."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from torch import Tensor

MatVec = Callable[[Tensor], Tensor]
"""v ↦ H v on flat vectors, [p] to [p]; H symmetric and the same in every call.

Called in the autograd mode that the caller is in. Direct and Nyström hand it to `torch.func.vmap` and loop over
columns only if that fails, so one call may be many products: count with `LinearSolution.steps`.
"""


class Outcome(StrEnum):
    """How a solve ended."""

    CONVERGED = "converged"
    """The residual is within the tolerance."""
    APPROXIMATE = "approximate"
    """The strategy ran to its end as it should; it approximates H⁻¹ b and need not reach the tolerance."""
    ITERATION_LIMIT = "iteration_limit"
    """The budget was spent, or rounding stopped all progress, before the tolerance was reached."""
    INDEFINITE = "indefinite"
    """The strategy needs H ≻ 0 and met a direction of non-positive curvature."""
    DIVERGED = "diverged"
    """The iteration grew, or a product was not finite."""


@dataclass(frozen=True)
class LinearSolution:
    """An approximate solution of H x = b, and what is known about it."""

    x: Tensor
    """The best iterate, [p]; finite whatever happened."""
    residual: float
    """‖H x − b‖, measured with a product or known to 1 % of itself or the tolerance; NaN if unknown (T1–T2)."""
    steps: int
    """Products with H spent, with those for measuring."""
    outcome: Outcome

    @property
    def converged(self) -> bool:
        """Whether the residual is within the tolerance that was asked for."""
        return self.outcome is Outcome.CONVERGED


class AbstractLinearSolver(ABC):
    """A strategy for H x = b with H symmetric. Settings are fields; a solver keeps no state."""

    @abstractmethod
    def solve(self, matvec: MatVec, b: Tensor, *, x0: Tensor | None, tol: float, seed: int = 0) -> LinearSolution:
        """Return x with ‖H x − b‖ ≤ `tol` if the strategy can reach it, and say so if it cannot.

        A solve that fails does not raise and is never silent: the solution carries its measured residual and its
        outcome, and the caller decides. For b = 0 the answer is 0, at no cost. A `tol` of ‖b‖ or more still
        costs an iteration: x = 0 would be a zero hypergradient, that is, a stall without a sign.

        Args:
            matvec: v ↦ H v, [p] to [p].
            b: right-hand side, [p].
            x0: warm start, [p], or None for zero; a strategy without iterates ignores it.
            tol: absolute tolerance on ‖H x − b‖.
            seed: of the random choices, for strategies that make any; the same seed, the same answer.

        Raises:
            LearnError: `b` or `x0` is not a flat vector of one size, or the system is larger than a dense
                strategy takes.
        """
