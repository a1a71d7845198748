"""Implicit differentiation, with every solve as accurate as the step that it serves."""

import math
from dataclasses import dataclass, field, replace
from typing import ClassVar, final

import torch
from torch import Tensor

from workers.learn.cost import Cost
from workers.learn.errors import LearnError
from workers.learn.hypergradient import Hypergradient, hypergradient
from workers.learn.inner.base import AbstractInnerSolver, InnerSolution
from workers.learn.inner.lbfgs import LBFGS
from workers.learn.linear.base import AbstractLinearSolver
from workers.learn.linear.cg import CG
from workers.learn.method import AbstractMethod, Answer, Status, TrajectoryPoint, natural_values
from workers.learn.methods.evaluation import Evaluation
from workers.learn.methods.implicit_path import MOST_RETREATS, PathFollower
from workers.learn.oracle import AbstractMetric, AbstractOracle
from workers.learn.outer.adam import Adam, AdamState
from workers.learn.outer.box import projected_gradient
from workers.learn.outer.path import PathState
from workers.learn.outer.quasi_newton import QuasiNewton, QuasiNewtonState
from workers.learn.problem import AbstractBilevelProblem, Part
from workers.learn.whitened_oracle import WhitenedOracle

_MOST_REFINEMENTS = 4
_MOST_REJECTIONS = 8
_LOOSEST = 0.3
"""Accuracy to begin with."""
# The bound ‖residual‖ · ‖dw/draw‖ of an adjoint's effect is never attained; measured on digits, a9a, breast_cancer.
_LINEAR_SLACK = 6.0


@dataclass(frozen=True)
class ImplicitState:
    """All that changes during a run."""

    step: int
    cost: Cost
    seed: int
    trial: Tensor
    """Raw hyperparameters to evaluate next, [h]."""
    best: Evaluation | None
    previous: Evaluation | None
    """The evaluation before: with `best` it tells how the weights move."""
    quasi_newton: QuasiNewtonState | None
    adam: AdamState | None
    path: PathState | None
    """Of one hyperparameter; None before the first training has ended well."""
    curvature_at: Tensor | None
    """Weights at which the metric takes its curvature; None for the bound that holds everywhere."""
    accuracy: float
    """Error of the hypergradient that is asked for, as a fraction of its expected norm."""
    confirming: bool
    """Whether the trial is the best point once more, to the accuracy of an answer."""


@final
@dataclass(frozen=True)
class Implicit(AbstractMethod[AbstractBilevelProblem, ImplicitState]):
    """Solve the inner problem, solve H q = ∂_w outer, step on ∂_raw outer − Jᵀ q; three parts, freely combined.

    What makes it cheap:

    - Accuracy follows need. The inner problem is solved until ⟨q, ∂_w inner⟩, the first-order effect of its
      residual on the outer loss, is a fraction of the slope that remains, and so is the adjoint equation.
    - The outer loss is corrected by that same product, so that loose solves can be compared.
    - Warm starts: `w` from a secant through the last two solutions, `q` from the last one.
    - Both solves run in coordinates in which the inner Hessian is near the identity, where the oracle offers
      such a metric, with curvature refreshed where that is cheaper than the iterations it saves.
    - `lbfgs` steps: quasi-Newton on the outer objective; of one strength, along the path of its weights
      (`PathFollower`). `adam` for objectives that are too noisy for values to be compared.

    Source: the implicit function theorem as in Pedregosa (2016) and Lorraine et al. (2020); the correction is
    the dual-weighted residual of Becker & Rannacher (2001).
    """

    state_type: ClassVar[type] = ImplicitState

    solver: AbstractLinearSolver = field(default_factory=CG)
    inner: AbstractInnerSolver = field(default_factory=lambda: LBFGS(first_step=1.0))
    outer: QuasiNewton | Adam = field(default_factory=QuasiNewton)
    tolerance: float = 1e-5
    """Stop when no coordinate's slope, per unit of raw, exceeds this fraction of the outer loss.

    One strength: when what is left to gain is at most this fraction, and `resolution` or a hundredth of it is reached.
    """
    resolution: float = 0.045
    """How precisely one strength has to be known, as a fraction of it."""
    precondition: bool = True
    smooth_path: bool = True
    """Whether the weights of one strength are foretold along their path; not where the inner loss has kinks."""
    relaxation: float = 1.0
    """What accuracy is loosened by after each accepted step, up to where it began: 1 for not at all.

    It is tightened after a rejection, whose fault it may have been. With hundreds of filter taps a rejection is the
    quasi-Newton model's fault, as a rule; loosened again by 1.7, learning a field of experts takes less than half of
    the gradients. With strengths of linear models it pays sometimes and costs as often.
    """

    def init(self, problem: AbstractBilevelProblem, *, seed: int) -> ImplicitState:
        """See `AbstractMethod.init`."""
        w = problem.initial_weights(seed)
        raw = problem.space.initial(w.dtype, w.device)
        if raw.numel() == 0:
            raise LearnError("there is nothing to learn: every strength is fixed")
        adam = AdamState.zeros(raw) if isinstance(self.outer, Adam) else None
        return ImplicitState(0, Cost(), seed, raw, None, None, None, adam, None, w, _LOOSEST, confirming=False)

    def answer(self, problem: AbstractBilevelProblem, state: ImplicitState) -> Answer:  # noqa: ARG002
        """See `AbstractMethod.answer`."""
        if state.best is None:
            raise LearnError("no point was evaluated yet")
        return Answer(state.best.raw, state.best.weights)

    def step(self, problem: AbstractBilevelProblem, state: ImplicitState) -> tuple[ImplicitState, TrajectoryPoint]:
        """See `AbstractMethod.step`."""
        oracle = problem.oracle()
        low, high = problem.space.bounds(state.trial.dtype, state.trial.device)
        match self.outer:
            case QuasiNewton() if state.trial.numel() == 1 and self.smooth_path:
                state, found, inner, status = self._along_the_path(problem, oracle, state, float(low), float(high))
            case QuasiNewton():
                found, inner, cost, refreshed = self._evaluate(problem, oracle, state)
                state = replace(state, step=state.step + 1, cost=state.cost + cost, curvature_at=refreshed)
                state, status = self._quasi_newton(self.outer, state, found, low, high)
            case Adam():
                found, inner, cost, refreshed = self._evaluate(problem, oracle, state)
                state = replace(state, step=state.step + 1, cost=state.cost + cost, curvature_at=refreshed)
                state, status = self._adam(self.outer, state, found, low, high)
        return state, self._point(problem, state, found, inner, status)

    def _point(
        self,
        problem: AbstractBilevelProblem,
        state: ImplicitState,
        found: Evaluation,
        inner: InnerSolution,
        status: Status,
    ) -> TrajectoryPoint:
        low, high = problem.space.bounds(found.raw.dtype, found.raw.device)
        gradient = projected_gradient(found.raw, found.gradient, low, high)
        train = problem.evaluate(found.weights, Part.TRAIN)["loss"]
        valid = problem.evaluate(found.weights, Part.VALID)
        assert state.best is not None  # noqa: S101 (every step sets it)
        metrics = {f"valid_{name}": value for name, value in valid.items() if name != "loss"}
        return TrajectoryPoint(
            step=state.step - 1,
            hyperparameters=natural_values(problem.space, found.raw),
            train_loss=train,
            valid_loss=found.value,
            hypergradient_norm=float(torch.linalg.vector_norm(gradient)),
            inner_iterations=inner.iterations,
            inner_residual=inner.gradient_norm,
            metrics={
                **metrics,
                "inner_error": found.error,
                "accepted": float(state.best.raw is found.raw),
                "best_valid_loss": state.best.value,
                "gradient_equivalents": float(state.cost.gradient_equivalents),
            },
            status=status,
        )

    def _along_the_path(
        self, problem: AbstractBilevelProblem, oracle: AbstractOracle, state: ImplicitState, low: float, high: float
    ) -> tuple[ImplicitState, Evaluation, InnerSolution, Status]:
        """Evaluate the trial and look for the next one along the path of the weights."""
        follower = PathFollower(self.solver, self.inner, self.tolerance, self.resolution, self.precondition)
        raw, seed, best, path = state.trial, state.seed + state.step, state.best, state.path
        if best is None or path is None:
            patient = state.step >= MOST_RETREATS
            w0 = problem.initial_weights(state.seed)
            trained = follower.begin(oracle, raw, w0, state.curvature_at, patient=patient, seed=seed)
        else:
            trained = follower.go_on(oracle, raw, best, state.previous, path, state.curvature_at, seed=seed)
        found, cost = trained.found, trained.cost
        if trained.metric is not None and state.step == 0:
            cost += trained.metric.cost
        state = replace(state, step=state.step + 1)
        stronger = follower.retreat(trained, high) if path is None and state.step <= MOST_RETREATS else None
        if stronger is not None:
            state = replace(state, cost=state.cost + cost, best=found, trial=raw.new_tensor([stronger]))
            return state, found, trained.inner, Status.RUNNING
        path, accepted = follower.take(path, found if best is None else best, found, low, high)
        if accepted or best is None:
            best, previous = found, None if state.path is None else best
        else:
            previous = found
        heading = follower.head(oracle, best, previous, path, (low, high))
        cost += heading.cost
        refreshed = state.curvature_at
        if trained.metric is not None and not heading.done and trained.spent > trained.metric.cost.gradient_equivalents:
            cost, refreshed = cost + trained.metric.cost, found.weights
        state = replace(
            state,
            cost=state.cost + cost,
            trial=raw.new_tensor([heading.trial]),
            best=best,
            previous=previous,
            path=heading.path,
            curvature_at=refreshed,
        )
        return state, found, trained.inner, Status.CONVERGED if heading.done else Status.RUNNING

    def _evaluate(
        self, problem: AbstractBilevelProblem, oracle: AbstractOracle, state: ImplicitState
    ) -> tuple[Evaluation, InnerSolution, Cost, Tensor | None]:
        """Return the evaluation of the trial, its inner solution, the cost, and where to take the curvature next."""
        raw, best = state.trial, state.best
        w0 = problem.initial_weights(state.seed) if best is None else _predicted(state, raw)
        metric = oracle.metric(raw, state.curvature_at) if self.precondition else None
        cost = metric.cost if metric is not None and best is None else Cost()
        seen = WhitenedOracle(oracle, metric) if metric is not None else oracle
        u = metric.inverse(w0) if metric is not None else w0
        q = None if best is None else best.adjoint
        if q is not None and metric is not None:
            q = metric.inverse(q)
        if best is None:
            start = seen.inner(u, raw)
            cost += Cost(gradients=1)
            tol = 1e-2 * float(torch.linalg.vector_norm(start.gradient))
            target, reach, bend = math.nan, math.nan, 1.0
        else:
            target = self._target(state, best, problem)
            reach, bend = best.adjoint_norm, _bend(state, metric)
            tol = target / max(reach, 1e-300)
        for _ in range(_MOST_REFINEMENTS):
            inner = self.inner.solve(seen, raw, u, tol=tol)
            u = inner.w
            if math.isnan(target):
                outer_size = float(torch.linalg.vector_norm(seen.outer(u, raw).gradient))
                linear_tol = 0.15 * outer_size
                cost += Cost(gradients=1)
            else:
                linear_tol = _LINEAR_SLACK * target / bend
            at = hypergradient(seen, u, raw, self.solver, tol=linear_tol, adjoint0=q, seed=state.seed + state.step)
            q = at.adjoint.x
            cost += inner.cost + at.cost
            correction = float(torch.dot(at.adjoint.x, inner.gradient))
            if math.isnan(target):
                target = state.accuracy * max(
                    float(at.value.abs().max()), self.tolerance * abs(at.outer), 1e-3 * abs(at.outer)
                )
            if abs(correction) <= target or not inner.converged:
                break
            tol = 0.5 * inner.gradient_norm * target / abs(correction)
        weights = metric.forward(u) if metric is not None else u
        adjoint = metric.forward(at.adjoint.x) if metric is not None else at.adjoint.x
        found = Evaluation(
            raw,
            weights,
            adjoint,
            None,
            at.outer,
            at.outer - correction,
            at.value,
            abs(correction),
            float(torch.linalg.vector_norm(at.adjoint.x)),
            # what was found, not what was asked for: it decides which differences of gradients are curvature
            max(abs(correction), at.adjoint.residual * bend / _LINEAR_SLACK),
        )
        return found, inner, *self._refresh(state, metric, found, inner, at, cost)

    def _refresh(
        self,
        state: ImplicitState,
        metric: AbstractMetric | None,
        found: Evaluation,
        inner: InnerSolution,
        at: Hypergradient,
        cost: Cost,
    ) -> tuple[Cost, Tensor | None]:
        """Take the curvature at the new weights if the iterations of this step cost more than that."""
        if metric is None:
            return cost, None
        spent = inner.cost.gradients + 2 * at.adjoint.steps
        if spent <= metric.cost.gradient_equivalents:
            return cost, state.curvature_at
        return cost + metric.cost, found.weights

    def _target(self, state: ImplicitState, best: Evaluation, problem: AbstractBilevelProblem) -> float:
        """Return the error of the hypergradient that the coming step can bear."""
        low, high = problem.space.bounds(best.raw.dtype, best.raw.device)
        if state.confirming:
            return 0.1 * self.tolerance * abs(best.value)
        slope = float(projected_gradient(best.raw, best.gradient, low, high).abs().max())
        return state.accuracy * max(0.3 * slope, self.tolerance * abs(best.value))

    def _quasi_newton(
        self, outer: QuasiNewton, state: ImplicitState, found: Evaluation, low: Tensor, high: Tensor
    ) -> tuple[ImplicitState, Status]:
        noise = 2.0 * self.tolerance * 1e-2 * abs(found.value)
        model = state.quasi_newton
        if model is None:
            model, accepted = outer.start(found.raw, found.corrected, found.gradient), True
        elif state.confirming:
            model, accepted = replace(model, value=found.corrected, gradient=found.gradient), True
        else:
            model, accepted = outer.advance(
                model,
                found.raw,
                found.corrected,
                found.gradient,
                noise=noise,
                gradient_noise=found.uncertainty + (0.0 if state.best is None else state.best.uncertainty),
            )
        trial, decrement = outer.propose(model, low, high)
        best = found if accepted or state.best is None else state.best
        other = state.previous if state.confirming else state.best if accepted else found
        tol = self.tolerance * abs(model.value)
        done = (
            outer.is_stationary(model, low, high, tol=tol)
            or (model.steps.shape[0] > 0 and decrement <= 0.01 * tol)
            or model.rejected >= _MOST_REJECTIONS
            or model.small >= 3
        )
        # What was found with loose solves is believed, and handed over, only after one that is not.
        confirm = done and not state.confirming and best.error > 0.1 * tol
        state = replace(
            state,
            trial=best.raw if confirm else trial,
            best=best,
            previous=other,
            quasi_newton=outer.restart(model) if confirm else model,
            confirming=confirm,
            # A rejection may be the fault of loose solves.
            accuracy=min(self.relaxation * state.accuracy, _LOOSEST) if accepted else max(0.3 * state.accuracy, 1e-4),
        )
        return state, Status.CONVERGED if done and not confirm else Status.RUNNING

    def _adam(
        self, outer: Adam, state: ImplicitState, found: Evaluation, low: Tensor, high: Tensor
    ) -> tuple[ImplicitState, Status]:
        assert state.adam is not None  # noqa: S101 (by init)
        adam, trial = outer.update(state.adam, found.raw, found.gradient, low, high)
        slope = float(projected_gradient(found.raw, found.gradient, low, high).abs().max())
        better = state.best is None or found.corrected < state.best.corrected
        state = replace(
            state,
            trial=trial,
            best=found if better else state.best,
            previous=state.best if better else found,
            adam=adam,
        )
        return state, Status.CONVERGED if slope <= self.tolerance * abs(found.value) else Status.RUNNING


def _predicted(state: ImplicitState, raw: Tensor) -> Tensor:
    """Return the weights that a secant through the last two solutions gives for `raw`, [p]."""
    best, previous = state.best, state.previous
    assert best is not None  # noqa: S101 (by the caller)
    if previous is None:
        return best.weights
    last, coming = best.raw - previous.raw, raw - best.raw
    lengths = float(torch.linalg.vector_norm(last)), float(torch.linalg.vector_norm(coming))
    if min(lengths) == 0.0:
        return best.weights
    along = float(torch.dot(last, coming)) / lengths[0] ** 2
    # Only where the new step goes the way of the last one, and not much further.
    if abs(along) * lengths[0] < 0.8 * lengths[1] or abs(along) > 1.5:
        return best.weights
    return best.weights + along * (best.weights - previous.weights)


def _bend(state: ImplicitState, metric: AbstractMetric | None) -> float:
    """Return how far the weights move for a unit of raw, in the coordinates of the solves; 1 if unknown."""
    best, previous = state.best, state.previous
    if best is None or previous is None:
        return 1.0
    apart = float((best.raw - previous.raw).abs().max())
    moved = best.weights - previous.weights
    if metric is not None:
        moved = metric.inverse(moved)
    return max(float(torch.linalg.vector_norm(moved)) / max(apart, 1e-12), 1e-12)
