"""HOAG: hyperparameter optimization with approximate gradient."""

import math
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import ClassVar, final

import torch
from torch import Tensor

from workers.learn.cost import Cost
from workers.learn.errors import LearnError
from workers.learn.hypergradient import Hypergradient, hypergradient
from workers.learn.inner.base import AbstractInnerSolver
from workers.learn.inner.lbfgs import LBFGS
from workers.learn.linear.base import AbstractLinearSolver
from workers.learn.linear.cg import CG
from workers.learn.method import AbstractMethod, Answer, Status, TrajectoryPoint, natural_values
from workers.learn.outer.box import projected_gradient
from workers.learn.problem import AbstractBilevelProblem, Part

_QUIET_STEPS = 3

_TRUSTED_ERROR = 10.0
"""First-order error of the outer loss, in units of the tolerance, with which a run may end."""


class Schedule(StrEnum):
    """How the tolerance of both solves falls with the step k: summable, as the theorem asks."""

    QUADRATIC = "quadratic"
    CUBIC = "cubic"
    EXPONENTIAL = "exponential"

    def at(self, k: int) -> float:
        """Return the factor of the first tolerance at step k = 0, 1, …."""
        match self:
            case Schedule.QUADRATIC:
                return 1.0 / (k + 1) ** 2
            case Schedule.CUBIC:
                return 1.0 / (k + 1) ** 3
            case Schedule.EXPONENTIAL:
                return 0.9**k


@dataclass(frozen=True)
class HOAGPoint:
    """A point that can be gone back to."""

    raw: Tensor
    weights: Tensor
    adjoint: Tensor | None
    value: float
    """Outer loss at `weights`; infinite where nothing is to be compared with."""
    corrected: float
    """Less the first-order effect ⟨q, ∂_w inner⟩ of the inner residual: comparable between tolerances."""


@dataclass(frozen=True)
class HOAGState:
    """All that changes during a run."""

    step: int
    cost: Cost
    seed: int
    here: HOAGPoint
    """Where the next step evaluates; its value is that of the point before it."""
    before: HOAGPoint
    """The last point that a step was taken from."""
    best: HOAGPoint | None
    scale: float
    """Norm of the inner gradient at the start: tolerances are relative to it."""
    least: float
    """Smallest raw hyperparameter at the start."""
    lipschitz: float
    """L, the inverse of the step length; NaN before the first hypergradient."""
    first_lipschitz: float
    shrink: float
    """Halved at every rejection, beyond the schedule."""
    quiet: int
    """Steps in a row in which neither value nor slope was worth going on for."""


@final
@dataclass(frozen=True)
class HOAG(AbstractMethod[AbstractBilevelProblem, HOAGState]):
    """L-BFGS under a schedule, conjugate gradients at the same tolerance, projected steps of adaptive length.

    Step k solves the inner problem to ε_k, relative to its first gradient and scaled with the smallest strength,
    and H q = ∂_w outer to ε_k, relative to the right-hand side; z = ∂_raw outer − Jᵀ q. Then

    - outer_k ≤ outer_{k−1} + ε_k/4 + 5/4 ε_{k−1} ‖z‖/L − ‖z‖²/L: step raw − z/L, and L falls by 5 %;
    - outer_k ≥ (1 + min(ε_k, 1/5)) outer_{k−1}: back to the point before, L doubles, tolerances are halved;
    - else: step with L as it is.

    Deviations from the paper's theorem: L is not the Lipschitz constant but adapts by the author's rule above.
    Deviations from the author's code (fabianp/hoag): one step on acceptance, where the code makes it twice;
    going back restores the last better point, where the code only cancels the step, and it goes back on every rise
    that ε_k does not explain, where the code waits for one of 20 %, which an objective with a large constant
    part (the error of a regression) never shows: steps then cycle, or run to the end of the box; projection on the
    user's box, where the code clips to [−6, 6]; the step length stays below ten times the first, since a rule that only
    lengthens steps diverges after it has converged; it stops when slope and progress are within the tolerance
    three times in a row, and halves ε while they are but the inner residual still matters; the best point seen is
    the answer, values being corrected to first order by the adjoint before points of different tolerance are compared.

    Source: Pedregosa (2016), algorithm 1 and section 5; constants of its code.
    """

    state_type: ClassVar[type] = HOAGState

    solver: AbstractLinearSolver = field(default_factory=CG)
    inner: AbstractInnerSolver = field(default_factory=LBFGS)
    schedule: Schedule = Schedule.EXPONENTIAL
    first_tolerance: float = 1e-3
    least_tolerance: float = 1e-12
    first_change: float = 1.0
    """Root mean square of the change of raw in the first step."""
    tolerance: float = 1e-5
    """Of slope and progress, relative to the outer loss."""

    def init(self, problem: AbstractBilevelProblem, *, seed: int) -> HOAGState:
        """See `AbstractMethod.init`."""
        w = problem.initial_weights(seed)
        raw = problem.space.initial(w.dtype, w.device)
        if raw.numel() == 0:
            raise LearnError("there is nothing to learn: every strength is fixed")
        scale = float(torch.linalg.vector_norm(problem.oracle().inner(w, raw).gradient))
        here = HOAGPoint(raw, w, None, math.inf, math.inf)
        return HOAGState(
            step=0,
            cost=Cost(gradients=1),
            seed=seed,
            here=here,
            before=here,
            best=None,
            scale=scale,
            least=float(raw.min()),
            lipschitz=math.nan,
            first_lipschitz=math.nan,
            shrink=1.0,
            quiet=0,
        )

    def answer(self, problem: AbstractBilevelProblem, state: HOAGState) -> Answer:  # noqa: ARG002
        """See `AbstractMethod.answer`."""
        if state.best is None:
            raise LearnError("no point was evaluated yet")
        return Answer(state.best.raw, state.best.weights)

    def step(self, problem: AbstractBilevelProblem, state: HOAGState) -> tuple[HOAGState, TrajectoryPoint]:
        """See `AbstractMethod.step`."""
        oracle = problem.oracle()
        raw, k = state.here.raw, state.step
        tol = self._tolerance(state, k)
        relative = tol * state.scale * math.exp(float(raw.min()) - state.least)
        inner = self.inner.solve(oracle, raw, state.here.weights, tol=relative)
        size = float(torch.linalg.vector_norm(oracle.outer(inner.w, raw).gradient))
        at = hypergradient(
            oracle,
            inner.w,
            raw,
            self.solver,
            tol=tol * size,
            adjoint0=state.here.adjoint,
            seed=state.seed + k,
        )
        corrected = at.outer - float(torch.dot(at.adjoint.x, inner.gradient))
        here = HOAGPoint(raw, inner.w, at.adjoint.x, at.outer, corrected)
        cost = state.cost + inner.cost + at.cost + Cost(gradients=1)
        low, high = problem.space.bounds(raw.dtype, raw.device)
        slope = float(torch.linalg.vector_norm(projected_gradient(raw, at.value, low, high)))
        small = self.tolerance * abs(at.outer)
        quiet = state.quiet + 1 if slope <= small and abs(at.outer - state.here.value) <= small else 0
        # A slope is only as true as the solves that it comes from: ask for better ones before believing it.
        shrink = state.shrink
        if quiet and abs(at.outer - corrected) > _TRUSTED_ERROR * small:
            shrink, quiet = 0.5 * shrink, 0
        # An early point is known to its own error only: where the run has come to rest, it is no rival within that.
        margin = abs(state.best.value - state.best.corrected) if state.best and quiet >= _QUIET_STEPS else 0.0
        best = here if state.best is None or corrected <= state.best.corrected + margin else state.best
        used = replace(state, cost=cost, best=best, quiet=quiet, shrink=shrink, step=k + 1)
        after, accepted = self._move(problem, used, here, at, tol, self._tolerance(state, k + 1))
        valid = problem.evaluate(inner.w, Part.VALID)
        point = TrajectoryPoint(
            step=k,
            hyperparameters=natural_values(problem.space, raw),
            train_loss=problem.evaluate(inner.w, Part.TRAIN)["loss"],
            valid_loss=at.outer,
            hypergradient_norm=slope,
            inner_iterations=inner.iterations,
            inner_residual=inner.gradient_norm,
            metrics={
                **{f"valid_{name}": value for name, value in valid.items() if name != "loss"},
                "tolerance": tol,
                "linear_residual": at.adjoint.residual,
                "lipschitz": after.lipschitz,
                "accepted": float(accepted),
                "best_valid_loss": best.value,
                "gradient_equivalents": float(cost.gradient_equivalents),
            },
            status=Status.CONVERGED if quiet >= _QUIET_STEPS else Status.RUNNING,
        )
        return after, point

    def _tolerance(self, state: HOAGState, k: int) -> float:
        return max(self.first_tolerance * self.schedule.at(k) * state.shrink, self.least_tolerance)

    def _move(
        self,
        problem: AbstractBilevelProblem,
        state: HOAGState,
        here: HOAGPoint,
        at: Hypergradient,
        tol: float,
        next_tol: float,
    ) -> tuple[HOAGState, bool]:
        """Return the state with the next point to evaluate, and whether a step was taken."""
        size = float(torch.linalg.vector_norm(at.value))
        lipschitz, first = state.lipschitz, state.first_lipschitz
        if math.isnan(lipschitz):
            lipschitz = first = size / (self.first_change * math.sqrt(here.raw.numel())) if size > 1e-3 else 1.0
        length, last = size / lipschitz, state.here.value
        if here.corrected >= state.here.corrected + min(tol, 0.2) * abs(state.here.corrected):
            return (
                replace(
                    state,
                    # Evaluated anew, and more accurately: there is nothing to compare it with.
                    here=replace(state.before, value=math.inf, corrected=math.inf),
                    lipschitz=2.0 * lipschitz,
                    first_lipschitz=first,
                    shrink=0.5 * state.shrink,
                ),
                False,
            )
        longer = (
            math.isfinite(last) and here.value <= last + 0.25 * next_tol + 1.25 * tol * length - lipschitz * length**2
        )
        raw = problem.space.clamp(here.raw - at.value / lipschitz)
        return (
            replace(
                state,
                here=replace(here, raw=raw),
                before=here,
                lipschitz=max(0.95 * lipschitz, 0.1 * first) if longer else lipschitz,
                first_lipschitz=first,
            ),
            True,
        )
