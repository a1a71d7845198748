"""Self-tuning networks: weights that know how they would respond to other hyperparameters."""

import math
from dataclasses import dataclass, field, replace
from typing import ClassVar, Final, final

import torch
from torch import Tensor

from workers.learn.cost import Cost
from workers.learn.errors import AllDiverged, LearnError
from workers.learn.method import AbstractMethod, Answer, Status, TrajectoryPoint, natural_values
from workers.learn.methods.stn_objectives import SIGMA, SelfTuning
from workers.learn.methods.stn_polish import Polish
from workers.learn.methods.stn_report import ResponseCurve, along, at_bounds, expected_wholes
from workers.learn.methods.stn_schedule import Schedule
from workers.learn.methods.stn_state import BestPoint, STNState, Variant
from workers.learn.noises.draws import Draws, NoiseStream
from workers.learn.outer.adam import Adam, AdamState
from workers.learn.outer.box import projected_gradient
from workers.learn.problem import Part
from workers.learn.problems.batches import Batch, training_indices
from workers.learn.problems.network import NetworkProblem
from workers.learn.problems.network_loss import NetworkLoss
from workers.learn.training.optimizers import AbstractOptimizer
from workers.learn.training.training import Training

_LARGEST: Final = 10.0
"""Raw hyperparameters without bounds of their own are kept within ± this."""

_LONGEST: Final = 0.5
"""No coordinate moves further in one step."""

_SCALES: Final = (0.01, 4.0)
"""σ is kept between these."""

_STATISTICS_ROWS: Final = 2048
"""Training rows that normalization statistics are taken of, at the beginning and the end of a step."""

_CLASSIC_STEP: Final = 2
_RESPONSE_STEP: Final = 2
_STRENGTH_STEP: Final = 1


@final
@dataclass(frozen=True)
class STN(AbstractMethod[NetworkProblem, STNState]):
    """Train a network together with how it responds to its hyperparameters; descend the validation loss through that.

    One step is `cycles` times:

    1. `training_steps` training steps. *Classic*: all of W(h) on the training loss at h + σε, with ε drawn for each
       row. *Centered*: W at h, as in plain training; then, at every `response_every`-th of them, the response R, on
       the loss of f + ∂f · R σε at h + σε, W being fixed.
    2. `strength_steps` steps of h, and of σ if it is learned, on the validation loss of W(h + σε) − τ · entropy,
       without penalties and noise. None of these in the first `warm_up` training steps.

    Responses are fitted around the averaged weights, and looked at averaged themselves: so are validation losses. At
    the end of a step that of all rows is measured at h itself; the answer is the best of these points, weights and
    hyperparameters of one moment. What is learned is a schedule: the trajectory. To train anew at its last point is
    another thing, and usually worse.

    No derivative in a hyperparameter is taken through training, so that anything may be learned that makes a network
    train differently, whole numbers included.

    Source: MacKay, Vicol, Lorraine, Duvenaud & Grosse (2019), "Self-tuning networks"; Bae & Grosse (2020),
    "Delta-STN". Beyond them: penalties perturbed for each row, a box, and the end by implicit differentiation.
    """

    state_type: ClassVar[type] = STNState

    training: Training
    response: AbstractOptimizer
    """Steps of θ; its rate follows the training's schedule."""
    steps: int
    """Of this method, before it polishes or ends."""
    variant: Variant = Variant.CENTERED
    outer: Adam = field(default_factory=lambda: Adam(rate=0.03))
    """Steps of h and s; its rate follows the training's schedule too, since weights that stand still teach nothing."""
    training_steps: int = 5
    strength_steps: int = 1
    response_every: int = 3
    """Training steps for one of the response, which costs twice as much: three led to lower losses in the same time
    than one, two or four."""
    cycles: int | None = None
    """In one step; None for about a pass over the training rows."""
    warm_up: int | None = None
    """Training steps before the first of h; None for two passes over the training rows."""
    sigma: float = 0.5
    """Standard deviation of the perturbations of raw values, at the start or for ever."""
    learn_sigma: bool = True
    entropy: float = 1e-3
    """τ: without it a scale that is learned falls to its floor, and the response is fitted to nothing."""
    strength_rows: int = 128
    """Validation rows of one step of h; all of them where there are fewer."""
    shared: frozenset[str] = frozenset()
    """Hyperparameters with one perturbation for a batch instead of one for each row."""
    polish: Polish | None = None

    def init(self, problem: NetworkProblem, *, seed: int) -> STNState:
        """See `AbstractMethod.init`.

        Raises:
            LearnError: there is nothing to learn, or something that a self-tuning network cannot.
        """
        training = self.training.start(problem, seed=seed)
        w = training.w
        raw = problem.space.initial(w.dtype, w.device)
        if raw.numel() == 0:
            raise LearnError("there is nothing to learn: every strength is fixed")
        if not _SCALES[0] <= self.sigma <= _SCALES[1]:
            raise LearnError(f"sigma must be between {_SCALES[0]} and {_SCALES[1]}; found {self.sigma}")
        if self.polish is not None:
            self.polish.check(problem)
        tuning = self._tuning(problem)
        _ = tuning.penalty  # refuses what has no response
        response = tuning.response.initial(seed, is_zero=self.variant is Variant.CENTERED, like=w)
        return STNState(
            step=0,
            cost=Cost(),
            seed=seed,
            raw=raw,
            scale=SIGMA.inverse(torch.full_like(raw, self.sigma)),
            adam=AdamState.zeros(raw),
            scale_adam=AdamState.zeros(raw),
            training=training,
            response=response,
            response_moments=self.response.start(response),
            response_average=response,
            strength_steps=0,
            best=None,
            schedule=Schedule.empty(raw.numel()),
            learning_cost=Cost(),
            polishing=None,
        )

    def answer(self, problem: NetworkProblem, state: STNState) -> Answer:
        """See `AbstractMethod.answer`; the weights are those of the run, not of a training from scratch."""
        if state.best is None:
            if state.step == 0:
                raise LearnError("no point was evaluated yet")
            raise AllDiverged(f"the validation loss was not finite in any of {state.step} steps")
        found = self._learned(problem, state.best)
        if self.polish is None or state.polishing is None:
            return found
        polished = self.polish.answer(problem, state.polishing, found)
        if polished is None:
            return found
        before, after = (problem.evaluate(end.weights, Part.VALID)["loss"] for end in (found, polished))
        return polished if after < before else found

    def step(self, problem: NetworkProblem, state: STNState) -> tuple[STNState, TrajectoryPoint]:
        """See `AbstractMethod.step`."""
        after, point = self._step(problem, state)
        return replace(after, schedule=after.schedule.joined(point.hyperparameters)), point

    def _step(self, problem: NetworkProblem, state: STNState) -> tuple[STNState, TrajectoryPoint]:
        if state.step >= self.steps and self.polish is not None and self.polish.has_work(problem):
            return self._polish(self.polish, problem, state)
        tuning = self._tuning(problem)
        # Training and optimizers work in place, on copies that no one else has.
        state = replace(
            state,
            training=state.training.copied(),
            response=state.response.clone(),
            response_moments=state.response_moments.copied(),
            response_average=state.response_average.clone(),
        )
        buffers = self._statistics(tuning, state)
        warm_up = 2 * problem.steps_per_epoch if self.warm_up is None else self.warm_up
        losses: list[Tensor] = []
        slopes: list[Tensor] = []
        for _ in range(self.steps_of(problem)):
            state = self._trained(tuning, state, buffers, losses)
            if state.training.step > warm_up:
                state = self._tuned(tuning, state, buffers, slopes)
        return self._judged(tuning, state, losses, slopes)

    def steps_of(self, problem: NetworkProblem) -> int:
        """Return how many cycles a step has."""
        return max(problem.steps_per_epoch // self.training_steps, 1) if self.cycles is None else self.cycles

    def response_curve(
        self, problem: NetworkProblem, state: STNState, *, coordinate: int, points: int
    ) -> ResponseCurve:
        """Return the validation loss that the best response predicts along one hyperparameter around the best point.

        Over two standard deviations to each side, where the response was fitted: there is nothing to train.

        Args:
            problem: what was learned on.
            state: after at least one step.
            coordinate: which of the h.
            points: how many values; an odd number has the best point among them.

        Raises:
            LearnError: no point was evaluated yet.
        """
        best = state.best
        if best is None:
            raise LearnError("no point was evaluated yet")
        low, high = self._box(problem, best.raw)
        tuning = self._tuning(problem)
        reach = 2.0 * SIGMA(best.scale[coordinate])

        def loss(raw: Tensor) -> float:
            weights = tuning.weights(best.w, best.response, best.raw, raw)
            return _validation(problem, weights, best.buffers)["loss"]

        return along(problem.space, best.raw, coordinate, reach, low, high, points=points, loss=loss)

    def _trained(self, tuning: SelfTuning, state: STNState, buffers: Tensor, losses: list[Tensor]) -> STNState:
        problem, seed, raw, scale = tuning.problem, state.seed, state.raw, state.scale
        if self.variant is Variant.CENTERED:
            diagonal = problem.oracle().diagonal(raw, state.training.w)
        spent = 0
        for _ in range(self.training_steps):
            at, step = state.training, state.training.step
            gradient: Tensor | None = None
            match self.variant:
                case Variant.CLASSIC:
                    joint = tuning.joint_gradient(at.w, state.response, at.buffers, raw, scale, seed=seed, step=step)
                    losses.append(joint.value)
                    spent += _CLASSIC_STEP
                    training = self.training.move_(at, joint.w, joint.buffers)
                    gradient = joint.response
                case Variant.CENTERED:
                    found = problem.training_gradient(at.w, at.buffers, raw, seed=seed, step=step)
                    losses.append(found.value)
                    spent += 1
                    training = self.training.move_(at, found.gradient.addcmul_(diagonal, at.w), found.buffers)
                    if step % self.response_every == 0:
                        spent += _RESPONSE_STEP
                        gradient = tuning.response_gradient(
                            training.average, state.response, buffers, raw, scale, seed=seed, step=step
                        )
            state = replace(state, training=training)
            if gradient is not None:
                rate = self.response.rate * self.training.schedule.factor(step)
                moments = self.response.update_(state.response_moments, state.response, gradient, rate=rate)
                state = replace(state, response_moments=moments)
            self.training.average_(state.response_average, state.response, step=training.step)
        cost = Cost(inner_iterations=self.training_steps, gradients=spent)
        return replace(state, cost=state.cost + cost, learning_cost=state.learning_cost + cost)

    def _tuned(self, tuning: SelfTuning, state: STNState, buffers: Tensor, slopes: list[Tensor]) -> STNState:
        problem, device = tuning.problem, state.raw.device
        low, high = self._box(problem, state.raw)
        narrow, wide = (SIGMA.inverse(torch.full_like(state.scale, end)) for end in _SCALES)
        outer = replace(self.outer, rate=self.outer.rate * self.training.schedule.factor(state.training.step))
        for _ in range(self.strength_steps):
            number = state.strength_steps
            draws = Draws(NoiseStream.VALIDATION, seed=state.seed, step=number, device=device)
            found = tuning.strength_gradient(
                state.training.average,
                state.response_average,
                buffers,
                state.raw,
                state.scale,
                self._strength_batch(problem, state.seed, number),
                draws=draws if self.learn_sigma else None,
                entropy=self.entropy,
            )
            slopes.append(found.raw)
            adam, moved = outer.update(state.adam, state.raw, found.raw, low, high)
            moved = state.raw + (moved - state.raw).clamp(-_LONGEST, _LONGEST)
            scale_adam, scale = state.scale_adam, state.scale
            if self.learn_sigma:
                scale_adam, scale = outer.update(scale_adam, scale, found.scale, narrow, wide)
            state = replace(state, raw=moved, scale=scale, adam=adam, scale_adam=scale_adam, strength_steps=number + 1)
        cost = Cost(gradients=_STRENGTH_STEP * self.strength_steps)
        return replace(state, cost=state.cost + cost, learning_cost=state.learning_cost + cost)

    def _judged(
        self, tuning: SelfTuning, state: STNState, losses: list[Tensor], slopes: list[Tensor]
    ) -> tuple[STNState, TrajectoryPoint]:
        problem, training, raw = tuning.problem, state.training, state.raw
        w, theta = training.average, state.response_average
        weights, buffers = self._weights(tuning, w, theta, raw), self._statistics(tuning, state)
        valid = _validation(problem, weights, buffers)
        low, high = self._box(problem, raw)
        if math.isfinite(valid["loss"]) and (state.best is None or valid["loss"] < state.best.value):
            state = replace(state, best=BestPoint(raw, state.scale, w, theta, buffers, valid["loss"]))
        slope = projected_gradient(raw, torch.stack(slopes).mean(0), low, high) if slopes else None
        sigma = SIGMA(state.scale)
        moved = tuning.weights(w, theta, raw, raw + sigma) - weights
        is_last = state.step + 1 >= self.steps and not (self.polish is not None and self.polish.has_work(problem))
        return replace(state, step=state.step + 1), TrajectoryPoint(
            step=state.step,
            hyperparameters=natural_values(problem.space, raw),
            train_loss=float(torch.stack(losses).mean()),
            valid_loss=valid["loss"],
            hypergradient_norm=math.nan if slope is None else float(torch.linalg.vector_norm(slope)),
            inner_iterations=len(losses),
            inner_residual=math.nan,
            metrics={
                **{f"valid_{name}": value for name, value in valid.items() if name != "loss"},
                **expected_wholes(problem.space, raw, sigma),
                "epoch": training.step / problem.steps_per_epoch,
                "warm_up": float(not slopes),
                "sigma_min": float(sigma.min()),
                "sigma_max": float(sigma.max()),
                "response_size": float(torch.linalg.vector_norm(moved) / torch.linalg.vector_norm(weights)),
                "at_bound": at_bounds(raw, low, high),
                "best_valid_loss": math.nan if state.best is None else state.best.value,
                "gradient_equivalents": float(state.cost.gradient_equivalents),
            },
            status=Status.CONVERGED if is_last else Status.RUNNING,
        )

    def _polish(self, polish: Polish, problem: NetworkProblem, state: STNState) -> tuple[STNState, TrajectoryPoint]:
        if state.best is None:
            raise AllDiverged(f"the validation loss was not finite in any of {state.step} steps")
        at = self._learned(problem, state.best)
        polishing = polish.start(problem, state, at) if state.polishing is None else state.polishing
        polishing, point, values = polish.step(problem, polishing, at)
        cost = state.learning_cost + polishing.cost
        is_last = polishing.step >= polish.steps
        point = replace(
            point,
            step=state.step,
            hyperparameters=values,
            metrics={**point.metrics, "polishing": 1.0, "gradient_equivalents": float(cost.gradient_equivalents)},
            status=Status.CONVERGED if is_last else point.status,
        )
        return replace(state, step=state.step + 1, cost=cost, polishing=polishing), point

    def _learned(self, problem: NetworkProblem, best: BestPoint) -> Answer:
        return Answer(best.raw, self._weights(self._tuning(problem), best.w, best.response, best.raw))

    def _tuning(self, problem: NetworkProblem) -> SelfTuning:
        return SelfTuning(problem, self.variant, self.shared)

    def _weights(self, tuning: SelfTuning, w: Tensor, theta: Tensor, raw: Tensor) -> Tensor:
        return w if self.variant is Variant.CENTERED else tuning.weights(w, theta, raw, raw)

    def _statistics(self, tuning: SelfTuning, state: STNState) -> Tensor:
        """Return normalization statistics of the averaged weights, [b], on some training rows."""
        problem, at = tuning.problem, state.training.average
        if problem.network.buffer_size == 0:
            return state.training.buffers
        stride = -(-problem.train.rows // _STATISTICS_ROWS)
        weights = self._weights(tuning, at, state.response_average, state.raw)
        return problem.network.statistics(weights, problem.train.x[::stride])

    def _strength_batch(self, problem: NetworkProblem, seed: int, step: int) -> Batch:
        rows = problem.validation
        chosen = training_indices(rows.rows, self.strength_rows, seed=seed, step=step, device=rows.x.device)
        return rows if chosen is None else rows.take(chosen)

    def _box(self, problem: NetworkProblem, raw: Tensor) -> tuple[Tensor, Tensor]:
        low, high = problem.space.bounds(raw.dtype, raw.device)
        return torch.where(low.isinf(), -_LARGEST, low), torch.where(high.isinf(), _LARGEST, high)


def _validation(problem: NetworkProblem, w: Tensor, buffers: Tensor) -> dict[str, float]:
    """Return metrics of all validation rows, normalised by given statistics."""
    losses: NetworkLoss = replace(problem.losses, buffers=buffers)
    rows = problem.validation
    return losses.metrics(losses.outputs(w, rows.x), rows.y)
