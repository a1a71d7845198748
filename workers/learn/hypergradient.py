"""The derivative of the outer loss through the solution of the inner problem."""

from dataclasses import dataclass, field

from torch import Tensor

from workers.learn.cost import Cost
from workers.learn.linear.base import AbstractLinearSolver, LinearSolution
from workers.learn.oracle import AbstractOracle


@dataclass(frozen=True)
class Hypergradient:
    """A hypergradient, and what is known of the solve behind it."""

    value: Tensor
    """d outer / d raw, [h]."""
    outer: float
    """The outer loss at `w`."""
    outer_gradient: Tensor
    """∂_w outer, [p]: the right-hand side of the adjoint equation."""
    adjoint: LinearSolution
    """q with H q ≈ ∂_w outer."""
    cost: Cost = field(default_factory=Cost)


def hypergradient(
    oracle: AbstractOracle,
    w: Tensor,
    raw: Tensor,
    solver: AbstractLinearSolver,
    *,
    tol: float,
    adjoint0: Tensor | None = None,
    seed: int = 0,
) -> Hypergradient:
    """Return ∂_raw outer − (∂²_{w raw} inner)ᵀ q, where (∂²_{ww} inner) q = ∂_w outer, all at `w`.

    At a minimiser `w` of the inner loss it is the gradient of raw ↦ outer(w*(raw), raw), by the implicit function
    theorem; its error is proportional to the distance of `w` from it and to the residual of the linear solve.
    How `w` was found and how the linear equation is solved does not matter here.

    Args:
        oracle: derivatives of the two losses.
        w: an approximate minimiser of the inner loss, [p].
        raw: unconstrained hyperparameters, [h].
        solver: of H q = ∂_w outer.
        tol: absolute tolerance on the residual ‖H q − ∂_w outer‖.
        adjoint0: a first guess of q, [p]; None for zero.
        seed: of the solver's random choices, if it makes any.

    Source: Pedregosa (2016), equation (2); Lorraine, Vicol, Duvenaud (2020), theorem 1.
    """
    outer = oracle.outer(w, raw)
    adjoint = solver.solve(oracle.hvp(w, raw), outer.gradient, x0=adjoint0, tol=tol, seed=seed)
    value = outer.raw_gradient - oracle.cross(w, raw, adjoint.x)
    cost = Cost(gradients=1, hessian_vector_products=adjoint.steps, cross_products=1)
    return Hypergradient(value, float(outer.value), outer.gradient, adjoint, cost)
