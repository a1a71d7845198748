"""How strengths are learned."""

from enum import StrEnum
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from service.spec.base import Spec, wrong_at
from service.spec.linear import EXACT_SOLVERS, CGSolver, LinearSolverSpec

Tolerance = Annotated[float, Field(ge=1e-14, lt=1)]


class Schedule(StrEnum):
    """How HOAG's tolerance falls over its steps k: ε₁/k², ε₁/k³, or ε₁ · 0.9^k."""

    QUADRATIC = "quadratic"
    CUBIC = "cubic"
    EXPONENTIAL = "exponential"


class HOAG(Spec):
    """Hyperparameter optimization with approximate gradient.

    Training and the linear system are solved only as accurately as a falling schedule of tolerances asks, and the
    step adapts itself to what it finds.
    """

    source: ClassVar[str] = "F. Pedregosa (2016), Hyperparameter optimization with approximate gradient, ICML."

    kind: Literal["hoag"] = "hoag"
    schedule: Schedule = Field(default=Schedule.EXPONENTIAL, strict=False)
    initial_tolerance: Tolerance = Field(default=1e-3, description="ε₁, relative to the first gradient's norm.")
    solver: LinearSolverSpec = CGSolver()


class QuasiNewtonStep(Spec):
    """L-BFGS on the outer objective, projected on the box; with one strength, a bracketed secant."""

    kind: Literal["lbfgs"] = "lbfgs"
    memory: Annotated[int, Field(ge=1, le=100)] = 10


class AdamStep(Spec):
    """Adam on the logarithms of the strengths. Source: Kingma & Ba (2015)."""

    kind: Literal["adam"] = "adam"
    learning_rate: Annotated[float, Field(gt=0, le=10)] = 0.1


OuterStepSpec = Annotated[QuasiNewtonStep | AdamStep, Field(discriminator="kind")]


class Implicit(Spec):
    """Implicit differentiation: train to a tolerance, solve one linear system, step.

    The hypergradient costs one linear system however many strengths there are.
    """

    source: ClassVar[str] = (
        "J. Lorraine, P. Vicol & D. Duvenaud (2019), Optimizing millions of hyperparameters by implicit "
        "differentiation, AISTATS 2020."
    )

    kind: Literal["implicit"] = "implicit"
    solver: LinearSolverSpec = CGSolver()
    step: OuterStepSpec = QuasiNewtonStep()

    @model_validator(mode="before")
    @classmethod
    def _step_that_suits_the_solver(cls, given: object) -> object:
        # An approximate solver is off by an unknown factor: only Adam, which normalises, can use it.
        if isinstance(given, dict) and "step" not in given and isinstance(given.get("solver"), dict):
            kinds = {solver.model_fields["kind"].default for solver in EXACT_SOLVERS}
            if given["solver"].get("kind") not in kinds:
                return {**given, "step": {"kind": "adam"}}
        return given

    @model_validator(mode="after")
    def _quasi_newton_needs_an_exact_solver(self) -> Self:
        if isinstance(self.step, QuasiNewtonStep) and not isinstance(self.solver, EXACT_SOLVERS):
            raise wrong_at(
                "step",
                f"step 'lbfgs' compares hypergradients and needs solver 'cg', 'minres' or 'direct'; "
                f"with {self.solver.kind!r} take step 'adam'",
            )
        return self


MethodSpec = Annotated[HOAG | Implicit, Field(discriminator="kind")]
