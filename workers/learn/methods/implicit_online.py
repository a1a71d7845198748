"""Implicit differentiation of networks while they train."""

import math
from dataclasses import dataclass, field, replace
from typing import ClassVar, final

import torch
from torch import Tensor

from workers.learn.cost import Cost
from workers.learn.double_backward import check_double_backward
from workers.learn.errors import LearnError
from workers.learn.hypergradient import hypergradient
from workers.learn.linear.base import AbstractLinearSolver, Outcome
from workers.learn.linear.cg import CG
from workers.learn.linear.identity import Identity
from workers.learn.linear.minres import MINRES
from workers.learn.linear.neumann import Neumann, largest_eigenvalue
from workers.learn.linear.nystrom import Nystrom
from workers.learn.method import AbstractMethod, Answer, TrajectoryPoint, natural_values
from workers.learn.outer.adam import Adam, AdamState
from workers.learn.outer.box import projected_gradient
from workers.learn.problems.network import NetworkProblem
from workers.learn.problems.network_oracle import NetworkOracle
from workers.learn.training.training import Training, TrainingState

_POWER_STEPS = 15
_FAILED = frozenset({Outcome.INDEFINITE, Outcome.DIVERGED})


@dataclass(frozen=True, eq=False)
class Best:
    """The strengths and weights with the lowest validation loss so far."""

    raw: Tensor
    weights: Tensor
    value: float
    """Of all validation rows."""


@dataclass(frozen=True, eq=False)
class OnlineState:
    """All that changes during a run."""

    step: int
    cost: Cost
    seed: int
    raw: Tensor
    """Strengths that the next training steps use, [h]."""
    adam: AdamState
    training: TrainingState
    curvature: float | None
    """Largest |eigenvalue| of the Hessian, as last measured; None to have it measured anew."""
    curvature_age: int
    """Hypergradients since."""
    judged: int
    """The last step at which all validation rows were looked at; meaningless before the first."""
    best: Best | None


@final
@dataclass(frozen=True)
class ImplicitOnline(AbstractMethod[NetworkProblem, OnlineState]):
    """Train for some steps, take a hypergradient where training stands, step the strengths; never start over.

    One step:

    1. `inner_steps` training steps at the current strengths.
    2. At the average of the weights: g = ∂_w outer on `outer_rows` validation rows; (H + ρ λ_max) q = g with H on one
       batch of `inner_rows` training rows for the whole solve, so that it is one operator, and with one draw of
       whatever noise there is; z = −Jᵀ q. Normalization statistics are measured once for all of it; those that
       training carries along are not touched.
    3. Adam on z, clipped to a norm of `clip`, inside the box. None in the first `burn_in` training steps, when there
       is no minimiser anywhere near.

    Linear solves fail here more than elsewhere, since H may have negative curvature. A failure shows in the point's
    metrics (`solver_failed`, with `solver_residual` and `solver_steps`) and has λ_max measured again; its best
    iterate is used, as it still is a direction, unless it is zero: then the strengths stay.

    The validation loss depends on the path, since weights are never trained anew: it is that of a network that has
    seen all strengths up to now. The answer is the point with the lowest loss of all validation rows, which are looked
    at every few steps, with the averaged weights of that moment; what the strengths are worth by themselves, training
    from scratch tells (`retraining`).

    Where costs count gradients and products, each is one on a batch.

    Source: Lorraine, Vicol & Duvenaud (2020), algorithms 1–3. Beyond them: a Neumann step from measured curvature
    instead of the learning rate, averaged weights, damping, clipping, the box.
    """

    state_type: ClassVar[type] = OnlineState

    training: Training
    solver: AbstractLinearSolver
    damping: float = 1e-3
    """ρ, as a fraction of the largest |eigenvalue| of H; no part of `identity`."""
    outer: Adam = field(default_factory=lambda: Adam(rate=0.1, settling=10.0))
    inner_steps: int = 50
    burn_in: int | None = None
    """Training steps before the first hypergradient; None for one pass over the training rows."""
    inner_rows: int | None = None
    """Training rows of H; None for a training batch."""
    outer_rows: int = 512
    """Validation rows of a hypergradient; all of them where there are fewer."""
    clip: float = 10.0
    refresh: int = 50
    """Hypergradients between measurements of the largest eigenvalue."""
    tolerance: float = 1e-3
    """Of the linear solve, relative to ‖g‖: float32 and a batch of rows allow no better."""

    def init(self, problem: NetworkProblem, *, seed: int) -> OnlineState:
        """See `AbstractMethod.init`; asks whether the network can be differentiated twice.

        Raises:
            LearnError: it cannot, or there is nothing to learn.
        """
        problem.check_noises("implicit differentiation")
        training = self.training.start(problem, seed=seed)
        raw = problem.space.initial(training.w.dtype, training.w.device)
        if raw.numel() == 0:
            raise LearnError("there is nothing to learn: every strength is fixed")
        if not isinstance(self.solver, Identity):
            check_double_backward(problem, seed=seed)
        return OnlineState(0, Cost(), seed, raw, AdamState.zeros(raw), training, None, 0, 0, None)

    def answer(self, problem: NetworkProblem, state: OnlineState) -> Answer:  # noqa: ARG002
        """See `AbstractMethod.answer`; the weights are those of the run, not of a training from scratch."""
        if state.best is None:
            raise LearnError("no point was evaluated yet")
        return Answer(state.best.raw, state.best.weights)

    def step(self, problem: NetworkProblem, state: OnlineState) -> tuple[OnlineState, TrajectoryPoint]:
        """See `AbstractMethod.step`."""
        raw = state.raw
        training, loss = self.training.advance(problem, state.training, raw, seed=state.seed, steps=self.inner_steps)
        cost = state.cost + Cost(inner_iterations=self.inner_steps, gradients=self.inner_steps)
        state = replace(state, training=training, cost=cost)
        inner_rows = problem.batch_size if self.inner_rows is None else self.inner_rows
        w = training.average
        here = problem.narrowed(w, inner_rows=inner_rows, outer_rows=self.outer_rows, seed=state.seed, step=state.step)
        oracle = here.oracle()
        burn_in = problem.steps_per_epoch if self.burn_in is None else self.burn_in
        slope, residual, told = math.nan, math.nan, {"burn_in": 1.0}
        if training.step > burn_in:
            state, slope, told = self._learn(here, oracle, state)
            residual = float(torch.linalg.vector_norm(oracle.inner(w, raw).gradient))
        valid = oracle.outer_metrics(w)
        state, valid = _judged(problem, here, state, raw, valid)
        assert state.best is not None  # noqa: S101 (by `_judged`)
        return replace(state, step=state.step + 1), TrajectoryPoint(
            step=state.step,
            hyperparameters=natural_values(problem.space, raw),
            train_loss=float(loss),
            valid_loss=valid["loss"],
            hypergradient_norm=slope,
            inner_iterations=self.inner_steps,
            inner_residual=residual,
            metrics={
                **{f"valid_{name}": value for name, value in valid.items() if name != "loss"},
                **told,
                "epoch": training.step / problem.steps_per_epoch,
                "best_valid_loss": state.best.value,
                "gradient_equivalents": float(state.cost.gradient_equivalents),
            },
        )

    def _learn(
        self, problem: NetworkProblem, oracle: NetworkOracle, state: OnlineState
    ) -> tuple[OnlineState, float, dict[str, float]]:
        """Return the state with new strengths, the norm of the hypergradient, and what there is to tell of it."""
        w, raw = state.training.average, state.raw
        if state.curvature is None and self._wants_curvature:
            largest = largest_eigenvalue(oracle.hvp(w, raw), w, steps=_POWER_STEPS, seed=state.seed + state.step)
            spent = Cost(hessian_vector_products=_POWER_STEPS)
            state = replace(state, curvature=largest, curvature_age=0, cost=state.cost + spent)
        pull = float(torch.linalg.vector_norm(oracle.outer(w, raw).gradient))
        found = hypergradient(
            oracle, w, raw, self._fitted(state.curvature), tol=self.tolerance * pull, seed=state.seed + state.step
        )
        failed = found.adjoint.outcome in _FAILED
        low, high = problem.space.bounds(raw.dtype, raw.device)
        slope = projected_gradient(raw, found.value, low, high)
        size = float(torch.linalg.vector_norm(found.value))
        usable = math.isfinite(size) and bool((found.adjoint.x != 0).any())
        if usable:
            clipped = found.value * min(1.0, self.clip / max(size, 1e-300))
            adam, raw = self.outer.update(state.adam, raw, clipped, low, high)
            state = replace(state, adam=adam, raw=raw)
        state = replace(
            state,
            cost=state.cost + found.cost,
            curvature=None if failed or state.curvature_age + 1 >= self.refresh else state.curvature,
            curvature_age=state.curvature_age + 1,
        )
        told = {
            "solver_failed": float(failed),
            "solver_steps": float(found.adjoint.steps),
            "solver_residual": found.adjoint.residual / max(pull, 1e-300),
            "clipped": float(size > self.clip),
        }
        return state, float(torch.linalg.vector_norm(slope)), told

    @property
    def _wants_curvature(self) -> bool:
        needs_step = isinstance(self.solver, Neumann) and self.solver.alpha is None
        return needs_step or (self.damping > 0 and isinstance(self.solver, CG | MINRES | Neumann | Nystrom))

    def _fitted(self, curvature: float | None) -> AbstractLinearSolver:
        """Return the solver with damping and step for a Hessian whose largest |eigenvalue| is `curvature`."""
        if curvature is None or not 0.0 < curvature < math.inf:
            return self.solver
        damping = self.damping * curvature
        match self.solver:
            case CG() | MINRES():
                return replace(self.solver, damping=damping)
            case Neumann():
                step = self.solver.alpha or 0.9 / (curvature + damping)
                return replace(self.solver, damping=damping, alpha=step)
            case Nystrom():
                return replace(self.solver, rho=self.solver.rho + damping)
            case _:
                return self.solver


def _judged(
    problem: NetworkProblem, here: NetworkProblem, state: OnlineState, raw: Tensor, valid: dict[str, float]
) -> tuple[OnlineState, dict[str, float]]:
    """Return the state with the best point so far, and the best that is known of this one.

    All validation rows are looked at so often that it costs no more than the rows of the hypergradients; oftener at
    first.

    Args:
        problem: with all rows.
        here: with those of this step.
        state: after training.
        raw: the strengths that it was trained with, [h].
        valid: metrics of the rows of this step.
    """
    rows, some = problem.validation.rows, here.validation.rows
    every = min(-(-rows // some), 1 + state.step // 4)
    if state.best is not None and state.step - state.judged < every:
        return state, valid
    w = state.training.average
    if some < rows:
        valid = replace(here, valid=problem.validation).oracle().outer_metrics(w)
    if state.best is None or valid["loss"] < state.best.value:
        state = replace(state, best=Best(raw, w, valid["loss"]))
    return replace(state, judged=state.step), valid
