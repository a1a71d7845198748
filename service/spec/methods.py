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
    inner_steps: Annotated[int, Field(ge=1, le=1_000_000)] | None = Field(
        default=None,
        description="Networks: training steps between two steps of the strengths; 50 if left out. Other models are "
        "trained to a tolerance.",
    )
    burn_in: Annotated[int, Field(ge=0, le=100_000_000)] | None = Field(
        default=None,
        description="Networks: training steps before the first step of the strengths; null: one pass over the rows.",
    )

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


class MAID(Spec):
    """The method of adaptive inexact descent: every accepted step provably decreases the outer objective.

    Trains only as accurately as a decrease can be certified, tightens when it cannot and relaxes again; it finds its
    own step lengths. Each point of the trajectory carries its certificate.
    """

    source: ClassVar[str] = (
        "M. S. Salehi, S. Mukherjee, L. Roberts & M. J. Ehrhardt (2025), An adaptively inexact first-order method for "
        "bilevel optimization with application to hyperparameter learning, SIAM J. Math. Data Sci. 7(3)."
    )

    kind: Literal["maid"] = "maid"
    initial_accuracy: Annotated[float, Field(gt=0, le=1e6)] | None = Field(
        default=None,
        description="ε₀, the first certified distance to the trained weights; null derives it from the first gradient. "
        "The answer does not depend on it.",
    )


class STNVariant(StrEnum):
    """Which self-tuning network: `classic` as first published, `centered` as improved since (Δ-STN)."""

    CLASSIC = "classic"
    CENTERED = "centered"


class STN(Spec):
    """A self-tuning network: trained together with how its weights would respond to other strengths.

    One training gives strengths and weights; the strengths form a schedule, which the trajectory holds. No derivative
    in a strength is taken through training, so that dropout, augmentation and whole numbers can be learned.
    """

    source: ClassVar[str] = (
        "M. MacKay, P. Vicol, J. Lorraine, D. Duvenaud & R. Grosse (2019), Self-tuning networks, ICLR; "
        "J. Bae & R. Grosse (2020), Delta-STN, NeurIPS."
    )

    kind: Literal["stn"] = "stn"
    variant: STNVariant = Field(default=STNVariant.CENTERED, strict=False)
    training_steps: Annotated[int, Field(ge=1, le=10_000)] = Field(
        default=5, description="Training steps between steps of the strengths."
    )
    strength_steps: Annotated[int, Field(ge=1, le=10_000)] = Field(
        default=1, description="Steps of the strengths between training steps."
    )
    warm_up: Annotated[int, Field(ge=0, le=100_000_000)] | None = Field(
        default=None, description="Training steps before the first step of the strengths; null: two passes."
    )
    learning_rate: Annotated[float, Field(gt=0, le=1)] = Field(default=0.03, description="Of the strengths.")
    perturbation: Annotated[float, Field(ge=0.01, le=4)] = Field(
        default=0.5, description="Standard deviation by which strengths are varied, on their unconstrained scale."
    )
    learn_perturbation: bool = Field(default=True, description="Learn that standard deviation too.")
    entropy: Annotated[float, Field(ge=0, le=1)] = Field(
        default=1e-3, description="What keeps a learned perturbation from vanishing."
    )
    polish: bool = Field(
        default=True,
        description="End with implicit differentiation of the strengths that have a derivative, which removes the "
        "bias of the perturbation.",
    )


class Posterior(StrEnum):
    """What the weights are taken to be after the data were seen.

    `isotropic`: Gaussian, one standard deviation for all weights; `diagonal`: one for each weight; `exact`: the
    posterior itself, which linear regression and `rff_gp` with `squared_error` have in closed form.
    """

    ISOTROPIC = "isotropic"
    DIAGONAL = "diagonal"
    EXACT = "exact"


LearningRate = Annotated[float, Field(gt=0, le=10)]


class ELBo(Spec):
    """The data-emphasized evidence lower bound: strengths as Gaussian priors, learned without validation rows.

    Trains on the training and validation rows together, once for each learning rate, side by side. The prior variances
    are always at their optimum, in closed form; the learning rate with the best bound at the end is the answer. Linear
    regression needs neither learning rates nor steps: its bound, and its evidence, climb in closed form.
    """

    source: ClassVar[str] = (
        "E. Harvey, M. Petrov & M. C. Hughes (2025), Learning hyperparameters via a data-emphasized variational "
        "objective; for `exact`: D. J. C. MacKay (1992), Bayesian interpolation."
    )

    kind: Literal["elbo"] = "elbo"
    posterior: Posterior = Field(default=Posterior.ISOTROPIC, strict=False)
    kappa: Annotated[float, Field(gt=0, le=1e12)] | Literal["auto"] = Field(
        default="auto",
        description="How often the data count beside the prior. `auto`: weights with a prior / training rows, and at "
        "least 1; 1: the evidence lower bound itself.",
    )
    learning_rates: Annotated[list[LearningRate], Field(min_length=1, max_length=16)] | None = Field(
        default=None,
        description="Candidates, of SGD with momentum, or of Adam for `rff_gp`. Null: 0.1, 0.01, 0.001 and 0.0001; "
        "none in closed form.",
    )
    training_steps: Annotated[int, Field(ge=1, le=10_000_000)] | None = Field(
        default=None,
        description="Of each candidate, spread over `budget.outer_steps` points. Null: 6000; none in closed form.",
    )

    @model_validator(mode="after")
    def _exact_counts_the_data_once(self) -> Self:
        if self.posterior is Posterior.EXACT and self.kappa not in ("auto", 1.0):
            raise wrong_at("kappa", "the exact posterior is of data that count once: leave out kappa")
        return self


class Grid(Spec):
    """Training at every point of a logarithmic grid over the box: the search that learning replaces.

    Convex models go along it from strong to weak with warm starts. Learns nothing; for comparison.
    """

    source: ClassVar[str] = (
        "C.-W. Hsu, C.-C. Chang & C.-J. Lin (2003), A practical guide to support vector classification, for grids that "
        "grow exponentially; J. Friedman, T. Hastie & R. Tibshirani (2010), JSS 33(1), for warm-started paths."
    )

    kind: Literal["grid"] = "grid"
    points: Annotated[int, Field(ge=2, le=100_000)] = Field(default=20, description="Of each strength.")


class RandomSearch(Spec):
    """Training at strengths drawn log-uniformly from the box; `budget.outer_steps` of them. For comparison."""

    source: ClassVar[str] = (
        "J. Bergstra & Y. Bengio (2012), Random search for hyper-parameter optimization, JMLR 13, 281–305."
    )

    kind: Literal["random"] = "random"


class TPE(Spec):
    """Bayesian optimization by tree-structured Parzen estimators; `budget.outer_steps` trials. For comparison."""

    source: ClassVar[str] = (
        "J. Bergstra, R. Bardenet, Y. Bengio & B. Kégl (2011), Algorithms for hyper-parameter optimization, NeurIPS; "
        "as in Optuna (Akiba et al. 2019)."
    )

    kind: Literal["tpe"] = "tpe"
    startup_trials: Annotated[int, Field(ge=1, le=100_000)] = Field(
        default=10, description="Random trials before the first that is modelled."
    )


MethodSpec = Annotated[HOAG | Implicit | MAID | STN | ELBo | Grid | RandomSearch | TPE, Field(discriminator="kind")]


def solver_of(method: MethodSpec) -> LinearSolverSpec | None:
    """Return how a method solves H q = g; None for one that solves no such system. MAID always takes CG."""
    match method:
        case HOAG() | Implicit():
            return method.solver
        case MAID():
            return CGSolver()
        case STN() | ELBo() | Grid() | RandomSearch() | TPE():
            return None
