"""Training: minimise the inner loss at given hyperparameters."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

from workers.learn.cost import Cost
from workers.learn.oracle import AbstractOracle


@dataclass(frozen=True)
class InnerSolution:
    """An approximate minimiser, and what is known about it."""

    w: Tensor
    """[p]."""
    value: float
    """The inner loss at `w`."""
    gradient: Tensor
    """∂_w inner at `w`, [p]."""
    gradient_norm: float
    """Its Euclidean norm, measured at the `w` that is returned."""
    iterations: int
    converged: bool
    """Whether the norm is within the tolerance. Not so: out of iterations, or out of precision."""
    cost: Cost


class AbstractInnerSolver(ABC):
    """A strategy for min_w inner(w, raw). Settings are fields; a solver keeps no state."""

    @abstractmethod
    def solve(self, oracle: AbstractOracle, raw: Tensor, w0: Tensor, *, tol: float) -> InnerSolution:
        """Return w with ‖∂_w inner‖ ≤ `tol` if the strategy can reach it, and say so if it cannot.

        Args:
            oracle: derivatives of the inner loss.
            raw: unconstrained hyperparameters, [h].
            w0: where to start, [p]; returned as it is if it is good enough.
            tol: absolute tolerance on the norm of the gradient.
        """
