"""How H q = g is solved: the linear system inside a hypergradient."""

from typing import Annotated, Literal

from pydantic import Field

from service.spec.base import Spec

Iterations = Annotated[int, Field(ge=1, le=100_000)]

Damping = Annotated[
    float,
    Field(ge=0, le=1, description="Added to the Hessian's diagonal, as a fraction of its largest eigenvalue."),
]


class DirectSolver(Spec):
    """Form the Hessian and factorise it. Exact; for up to a few thousand weights."""

    kind: Literal["direct"] = "direct"


class CGSolver(Spec):
    """Conjugate gradients to a residual. Source: Hestenes & Stiefel (1952)."""

    kind: Literal["cg"] = "cg"
    max_iterations: Iterations = 1000
    damping: Damping = 0.0


class MINRESSolver(Spec):
    """Minimal residuals: like conjugate gradients, also for indefinite systems. Source: Paige & Saunders (1975)."""

    kind: Literal["minres"] = "minres"
    max_iterations: Iterations = 1000


class NeumannSolver(Spec):
    """A truncated Neumann series. Source: Lorraine, Vicol & Duvenaud (2019), Algorithm 3."""

    kind: Literal["neumann"] = "neumann"
    terms: Annotated[int, Field(ge=0, le=100_000)] = Field(default=100, description="Hessian products to spend.")
    step: Annotated[float, Field(gt=0, le=1e6)] | None = Field(
        default=None,
        description="The series' step; null measures the largest curvature and takes 0.9 of its inverse.",
    )
    damping: Damping = 0.0


class NystromSolver(Spec):
    """A low-rank approximation of the Hessian plus damping. Source: Hataya & Yamada (2023)."""

    kind: Literal["nystrom"] = "nystrom"
    rank: Annotated[int, Field(ge=1, le=10_000)] = 20
    damping: Annotated[float, Field(gt=0, le=1e6)] = Field(default=1e-2, description="Added to the diagonal.")


class IdentitySolver(Spec):
    """Take the identity for the Hessian: the direction only. Source: Luketina et al. (2016), T1–T2."""

    kind: Literal["identity"] = "identity"


LinearSolverSpec = Annotated[
    DirectSolver | CGSolver | MINRESSolver | NeumannSolver | NystromSolver | IdentitySolver,
    Field(discriminator="kind"),
]

EXACT_SOLVERS = (DirectSolver, CGSolver, MINRESSolver)
"""Solvers that reach a tolerance; the others give an approximate hypergradient, whatever is asked of them."""
