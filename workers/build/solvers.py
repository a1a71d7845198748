"""How H q = g is solved, from a specification."""

from typing import assert_never

from service.spec.linear import (
    CGSolver,
    DirectSolver,
    IdentitySolver,
    LinearSolverSpec,
    MINRESSolver,
    NeumannSolver,
    NystromSolver,
)
from workers.learn.linear.base import AbstractLinearSolver
from workers.learn.linear.cg import CG
from workers.learn.linear.direct import Direct
from workers.learn.linear.identity import Identity
from workers.learn.linear.minres import MINRES
from workers.learn.linear.neumann import Neumann
from workers.learn.linear.nystrom import Nystrom


def build_solver(solver: LinearSolverSpec, size: int) -> AbstractLinearSolver:
    """Return the strategy for H q = g with `size` unknowns."""
    match solver:
        case DirectSolver():
            # How large is too large was decided when the job was admitted.
            return Direct(max_size=size)
        case CGSolver():
            return CG(max_steps=solver.max_iterations)
        case MINRESSolver():
            return MINRES(max_steps=solver.max_iterations)
        case NeumannSolver():
            return Neumann(terms=solver.terms, alpha=solver.step)
        case NystromSolver():
            return Nystrom(rank=solver.rank, rho=solver.damping)
        case IdentitySolver():
            return Identity()
        case _:
            assert_never(solver)
