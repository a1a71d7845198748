"""MAID: the method of adaptive inexact descent."""

import math
from dataclasses import dataclass, field, replace
from typing import ClassVar, final

import torch

from workers.learn.cost import Cost
from workers.learn.errors import LearnError
from workers.learn.inner.base import AbstractInnerSolver
from workers.learn.inner.lbfgs import LBFGS
from workers.learn.inner.newton_cg import NewtonCG
from workers.learn.inner.relay import Relay
from workers.learn.linear.base import AbstractLinearSolver
from workers.learn.linear.cg import CG
from workers.learn.method import AbstractMethod, Answer, Status, TrajectoryPoint, natural_values
from workers.learn.methods.maid_gradient import Accuracies, Box, Differentiator, InexactGradient
from workers.learn.methods.maid_inner import Locator
from workers.learn.methods.maid_search import Backtracking, Coordinates, Search
from workers.learn.oracle import AbstractOracle
from workers.learn.outer.box import projected_gradient
from workers.learn.problem import AbstractBilevelProblem, Part

_EARLY_STEPS = 10
_LOOSEST_DISTANCE = 0.1
"""Of the first solve, relative to what is known of the start: weights that stay there know nothing of θ."""
_SPECTRAL_RANGE = 10.0
"""Factor within which a spectral step keeps to the one that ρ̄ gives."""
_FIRST_DISTANCE = 0.02
_FIRST_RESIDUAL = 0.1


@dataclass(frozen=True)
class MAIDState:
    """All that changes during a run."""

    step: int
    cost: Cost
    seed: int
    here: InexactGradient | None
    """The last accepted point."""
    accuracies: Accuracies
    alpha: float
    """Step to try next."""
    curvature_at: torch.Tensor
    """Weights at which the metric takes its curvature."""
    least_norm: float
    """Norm of the inner gradient at which precision ended a solve, halved with each step since; or zero."""


@final
@dataclass(frozen=True)
class MAID(AbstractMethod[AbstractBilevelProblem, MAIDState]):
    """Inner solves to a proven distance ε, conjugate gradients to a residual δ, and steps that are proven to go down.

    Each step backtracks along −z until the exact objective, of which only bounds are known, is sure to have fallen;
    if that cannot be seen, ε and δ are tightened, and after each success relaxed. Neither a step size nor an accuracy
    has to be chosen.

    Where all constants of the problem are proven, so is a bound ω of the error of every hypergradient, and −z is
    followed only when ω ≤ (1 − η) ‖z‖ makes it a direction of descent. Where μ of the inner problem is not even
    estimated by a proof, the method runs on its smallest Ritz value, and its points say `certified: false`.

    Where it goes beyond the algorithms of the paper, none of which touches a guarantee:

    - bounds use the distance and the residual that were measured, not those asked for;
    - ω uses the adjoint and self-concordance, see `error_bound`;
    - accuracies are tightened by as many powers of ν as ω calls for, and at once, before the trials are used up,
      where the uncertainty of the value hides whatever a step could gain;
    - with a box, steps are projected first and judged by their displacement, and the descent test is made with the
      coordinates of z that the box leaves free;
    - the first trial of a step is the spectral one of Barzilai & Borwein (1988), ⟨s, y⟩/⟨y, y⟩ of the last changes of
      θ and z: it saves steps where the objective is ill-conditioned, and is judged like any other;
    - solvers work in the coordinates of a metric where the problem offers one, while all that is proven is measured
      in the original ones.

    It ends when slope and ω are within the tolerance, or when the precision of the numbers, or of the inner solver,
    shows no further decrease: the last point is then repeated, as accurately as could be, and says `at_floor`.

    Source: Salehi, Mukherjee, Roberts, Ehrhardt (2023), An adaptively inexact first-order method for bilevel
    optimization with application to hyperparameter learning, algorithms 3.1 and 3.2.
    """

    state_type: ClassVar[type] = MAIDState

    solver: AbstractLinearSolver = field(default_factory=CG)
    inner: AbstractInnerSolver = field(default_factory=lambda: Relay((LBFGS(first_step=1.0), NewtonCG())))
    tolerance: float = 1e-5
    """Stop when no coordinate's slope, per unit of raw, exceeds this fraction of the outer loss, nor ω does."""
    initial_accuracy: float | None = None
    """ε and δ of the first solves; None: a fiftieth of the distance that is known of the start, and a tenth of ‖∂g‖."""
    first_change: float = 0.5
    """Root mean square of the change of raw that the first step tries."""
    precondition: bool = True
    descent_test: bool = True
    """Whether z is refined until it is proven to go down, where that can be proven."""
    shorten: float = 0.5
    """ρ."""
    early_growth: float = 1.5
    """ρ̄, the factor of the step after a success, in the first ten steps."""
    growth: float = 1.2
    """ρ̄ after them."""
    spectral: bool = True
    """Whether the first trial of a step takes its length from the last change of z, and not from ρ̄ alone."""
    tighten: float = 0.5
    """ν, the factor of the accuracies after a failure."""
    relax: float = 1.1
    """ν̄, after a success."""
    share: float = 0.5
    """η of the descent test."""
    decrease: float = 0.1
    """λ, the fraction of the promised decrease that is asked for."""
    most_backtracks: int = 10
    most_failures: int = 40

    def init(self, problem: AbstractBilevelProblem, *, seed: int) -> MAIDState:
        """See `AbstractMethod.init`."""
        w = problem.initial_weights(seed)
        if problem.space.size == 0:
            raise LearnError("there is nothing to learn: every strength is fixed")
        return MAIDState(0, Cost(), seed, None, Accuracies(math.nan, math.nan), math.nan, w, 0.0)

    def answer(self, problem: AbstractBilevelProblem, state: MAIDState) -> Answer:  # noqa: ARG002
        """See `AbstractMethod.answer`: the last point, for the objective falls from each to the next."""
        if state.here is None:
            raise LearnError("no point was evaluated yet")
        return Answer(state.here.at.raw, state.here.at.weights)

    def step(self, problem: AbstractBilevelProblem, state: MAIDState) -> tuple[MAIDState, TrajectoryPoint]:
        """See `AbstractMethod.step`."""
        oracle = problem.oracle()
        differ = self._differentiator(problem, oracle, state)
        if state.here is None:
            search, after = None, self._begin(problem, differ, state)
        else:
            coordinates = Coordinates(oracle, state.curvature_at, self.precondition)
            search = Backtracking(
                differ, coordinates, self.decrease, self.shorten, self.most_backtracks, self.most_failures
            ).search(state.here, state.accuracies, state.alpha)
            after = self._advance(differ, coordinates, state, search)
        iterations = after.cost.inner_iterations - state.cost.inner_iterations
        return after, self._report(problem, differ, after, search, iterations)

    def _differentiator(
        self, problem: AbstractBilevelProblem, oracle: AbstractOracle, state: MAIDState
    ) -> Differentiator:
        return Differentiator(
            oracle=oracle,
            locator=Locator(oracle, self.inner, state.least_norm),
            solver=self.solver,
            box=Box(*problem.space.bounds(state.curvature_at.dtype, state.curvature_at.device)),
            shrink=self.tighten,
            share=self.share,
            descent_test=self.descent_test,
            tolerance=self.tolerance,
            most_refinements=self.most_failures,
            seed=state.seed + state.step,
        )

    def _begin(self, problem: AbstractBilevelProblem, differ: Differentiator, state: MAIDState) -> MAIDState:
        """Evaluate the initial hyperparameters."""
        w = problem.initial_weights(state.seed)
        raw = problem.space.initial(w.dtype, w.device)
        start, cost = differ.locator.start(raw, w)
        steepness = float(torch.linalg.vector_norm(differ.oracle.outer(w, raw).gradient))
        known = start.gradient_norm / start.convexity.strong_convexity
        inner = _FIRST_DISTANCE * known if self.initial_accuracy is None else self.initial_accuracy
        inner = min(inner, _LOOSEST_DISTANCE * min(known, start.distance))
        if not start.convexity.holds_everywhere:
            # Farther than 1/R from w its Hessian says nothing, and no looser ε would ask for less.
            inner = min(inner, 1.0 / max(start.convexity.self_concordance, 1e-300))
        linear = _FIRST_RESIDUAL * steepness if self.initial_accuracy is None else self.initial_accuracy
        metric = differ.oracle.metric(raw, state.curvature_at) if self.precondition else None
        accuracies = Accuracies(max(inner, torch.finfo(w.dtype).tiny), linear)
        located, spent = differ.locator.locate(raw, w, accuracy=accuracies.inner, metric=metric, like=start)
        here, accuracies, more = differ.differentiate(located, accuracies, metric=metric, adjoint0=None)
        cost = state.cost + cost + spent + more + Cost(gradients=1)
        if metric is not None:
            cost += metric.cost
        alpha = self.first_change * math.sqrt(raw.numel()) / here.length if here.length > 0.0 else 1.0
        return replace(
            state,
            step=1,
            cost=cost,
            here=here,
            accuracies=accuracies,
            alpha=alpha,
            least_norm=0.0 if here.at.reached else here.at.gradient_norm,
        )

    def _advance(self, differ: Differentiator, coordinates: Coordinates, state: MAIDState, search: Search) -> MAIDState:
        """Return the state at the point that was found, or at the last one if none was."""
        step, cost = state.step + 1, state.cost + search.cost
        if search.accepted is None:
            return replace(state, step=step, cost=cost, here=search.here, accuracies=search.accuracies)
        located, spent = differ.locator.renew(search.accepted)
        cost += spent
        metric = coordinates.metric(located.raw)
        here, accuracies, spent = differ.differentiate(
            located, search.accuracies.times(self.relax), metric=metric, adjoint0=search.here.adjoint
        )
        cost += spent
        curvature_at = state.curvature_at
        # New curvature where that costs less than the iterations that it may save.
        if metric is not None and search.last.gradient_equivalents > metric.cost.gradient_equivalents:
            curvature_at, cost = here.at.weights, cost + metric.cost
        grown = search.step * (self.early_growth if state.step <= _EARLY_STEPS else self.growth)
        if self.spectral:
            moved, turned = located.raw - search.here.at.raw, here.gradient - search.here.gradient
            curvature, square = float(torch.dot(moved, turned)), float(torch.dot(turned, turned))
            if curvature > 0.0:
                grown = min(max(curvature / square, grown / _SPECTRAL_RANGE), grown * _SPECTRAL_RANGE)
        least_norm = max(0.5 * state.least_norm, search.least_norm, 0.0 if here.at.reached else here.at.gradient_norm)
        return replace(
            state,
            step=step,
            cost=cost,
            here=here,
            accuracies=accuracies,
            alpha=grown,
            curvature_at=curvature_at,
            least_norm=least_norm,
        )

    def _report(
        self,
        problem: AbstractBilevelProblem,
        differ: Differentiator,
        state: MAIDState,
        search: Search | None,
        iterations: int,
    ) -> TrajectoryPoint:
        here = state.here
        assert here is not None  # noqa: S101 (by the callers)
        raw, w = here.at.raw, here.at.weights
        projected = projected_gradient(raw, here.gradient, differ.box.low, differ.box.high)
        valid = problem.evaluate(w, Part.VALID)
        stationary, stuck = differ.is_stationary(here), search is not None and search.accepted is None
        return TrajectoryPoint(
            step=state.step - 1,
            hyperparameters=natural_values(problem.space, raw),
            train_loss=problem.evaluate(w, Part.TRAIN)["loss"],
            valid_loss=here.value,
            hypergradient_norm=float(torch.linalg.vector_norm(projected)),
            inner_iterations=iterations,
            inner_residual=here.at.gradient_norm,
            metrics={
                **{f"valid_{name}": value for name, value in valid.items() if name != "loss"},
                "distance": here.at.distance,
                "linear_residual": here.residual,
                "lowest_value": here.bounds.lower,
                "highest_value": here.bounds.upper,
                "claimed_decrease": 0.0 if search is None else search.claim,
                "trials": 0.0 if search is None else float(search.trials),
                "gradient_equivalents": float(state.cost.gradient_equivalents),
            },
            certificate={
                "inner_accuracy": state.accuracies.inner,
                "linear_accuracy": state.accuracies.linear,
                "error_bound": None if here.bound is None else here.bound.total,
                "step": 0.0 if search is None or stuck else search.step,
                "failures": 0.0 if search is None else float(search.failures),
                "certified": here.at.proven,
                "at_floor": stuck and not stationary,
            },
            status=Status.CONVERGED if stationary or stuck else Status.RUNNING,
        )
