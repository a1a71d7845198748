"""The data-emphasized ELBo of any model by stochastic gradients."""

import math
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import ClassVar, Final, final

import torch
from torch import Tensor

from workers.learn.cost import Cost
from workers.learn.errors import AllDiverged, LearnError
from workers.learn.gaussian_elbo import Posterior
from workers.learn.gaussian_priors import GaussianPriors
from workers.learn.kappa import Kappa, kappa_of
from workers.learn.method import AbstractMethod, Answer, Status, TrajectoryPoint
from workers.learn.methods.gaussian_elbo import COLLAPSED
from workers.learn.training.optimizers import SGD, AbstractOptimizer, Moments
from workers.learn.training.schedule import Cosine
from workers.learn.variational.divergence import Prior, inverse_softplus, softplus
from workers.learn.variational.partition import Partition
from workers.learn.variational.rows import AbstractRows, VariationalProblem, rows_of
from workers.learn.variational.weight_noise import selection_noise, weight_noise

_RATES: Final = (0.1, 0.01, 0.001, 0.0001)
_HALF_LOG_2PI: Final = 0.5 * math.log(2.0 * math.pi)


def _default_candidates() -> tuple[AbstractOptimizer, ...]:
    return tuple(SGD(rate, momentum=0.9, nesterov=True) for rate in _RATES)


@dataclass(frozen=True)
class ElboState:
    """All that changes during a run of k candidates."""

    step: int
    cost: Cost
    seed: int
    trained: int
    """Training steps done."""
    variables: Tensor
    """[k, p + s + t]: means, raw σ (one or p), and log s where there is noise to be learned."""
    buffers: Tensor
    """Normalization statistics, averaged over the steps so far, [k, b]."""
    moments: tuple[Moments, ...]
    losses: Tensor
    """[k, 3], float64: objective, negative log-likelihood and loss; the latter two means over the last steps.

    Infinite before the first, and of a candidate that broke down.
    """
    scores: Tensor
    """[k], float64: the objective that candidates are compared by; infinite before the end."""


@dataclass(frozen=True)
class Found:
    """The posterior of a candidate."""

    mean: Tensor
    """[p]."""
    scale: Tensor
    """σ, [1] or [p]; weights without a prior have no spread."""
    noise: float | None
    """s, the standard deviation of the noise; None where there is none."""
    variance: Tensor
    """Prior variances, [g], float64."""
    strengths: Tensor
    """λ, [g], float64."""
    divergence: float
    """KL(q ‖ p), in nats."""
    kappa: float
    optimizer: AbstractOptimizer
    objective: float
    """−J_κ/(κ n), by which candidates are compared."""


@final
@dataclass(frozen=True)
class ELBo(AbstractMethod[VariationalProblem, ElboState]):
    """min over q = N(m, σ²), prior variances and noise of E_q[mean −log p(y | x, w)] + KL(q ‖ p)/(κ n).

    A step of training is one forward and one backward pass at one draw of the weights, as cheap as a plain one: the KL
    and its gradient are in closed form, its prior variances already at their optimum. Candidates, one for each
    optimizer, are trained side by side on the same rows with the same draws; none knows of the others. The one with the
    lowest objective at the end is the answer: no validation set is asked.

    A weight without a penalty has no prior: it is trained without noise, and does not count for κ. The targets of a
    squared loss have Gaussian noise whose variance s² is learned with the rest. Strengths come out in the service's
    convention, λ = 1/(κ n v), and s²/(κ n v) for the squared loss: with them the mean m is stationary for the mean loss
    plus ½ λ ‖w‖², but for the noise on the weights. They are results here, in closed form; where a bound would be
    crossed, or a strength is fixed, v goes with that.

    Where it goes beyond its source: κ is at least one, s² starts at the variance of the targets, and weight noise is a
    function of (seed, step).

    Source: Harvey, Petrov & Hughes (2025), Learning hyperparameters via a data-emphasized variational objective.
    """

    state_type: ClassVar[type] = ElboState

    posterior: Posterior = Posterior.ISOTROPIC
    kappa: Kappa = "auto"
    candidates: tuple[AbstractOptimizer, ...] = field(default_factory=_default_candidates)
    steps: int = 6000
    """Training steps; the learning rates fall to zero along a cosine."""
    steps_per_point: int = 100
    batch_size: int = 128
    """Of linear models; a network's problem has its own."""
    clip: float = 1.0
    """Largest norm of a gradient, over means, raw σ and log s together."""
    initial_scale: float = 1e-4
    samples: int = 10
    """Draws of the weights by which candidates are compared: the same for all."""

    def __post_init__(self) -> None:
        if self.posterior is Posterior.EXACT:
            raise LearnError("the exact posterior is for linear regression and has a method of its own")
        if not self.candidates or min(self.steps, self.steps_per_point, self.samples) < 1:
            raise LearnError("there must be a candidate, a step of training, a step for a point, and a sample")

    def init(self, problem: VariationalProblem, *, seed: int) -> ElboState:
        """See `AbstractMethod.init`."""
        objective = self._objective(problem)
        mean = objective.rows.initial_weights(seed)
        raw = inverse_softplus(torch.tensor(self.initial_scale, dtype=torch.float64)).to(mean)
        parts = [mean, raw.expand(objective.scales)]
        if objective.rows.targets is not None:
            targets = objective.rows.targets.double()
            spread = (targets - targets.mean(0)).square().mean().sqrt().clamp_min(1e-12)
            parts.append(spread.log().reshape(1).to(mean))
        one, k = torch.cat(parts), len(self.candidates)
        nothing = torch.full((k, 3), math.inf, dtype=torch.float64, device=mean.device)
        return ElboState(
            step=0,
            cost=Cost(),
            seed=seed,
            trained=0,
            variables=one.repeat(k, 1),
            buffers=objective.rows.initial_buffers().repeat(k, 1),
            moments=tuple(optimizer.start(one) for optimizer in self.candidates),
            losses=nothing,
            scores=nothing[:, 0],
        )

    def step(self, problem: VariationalProblem, state: ElboState) -> tuple[ElboState, TrajectoryPoint]:
        """See `AbstractMethod.step`: some training steps, and at the end the comparison of the candidates."""
        objective = self._objective(problem)
        state = self._advance(objective, state, min(self.steps_per_point, self.steps - state.trained))
        if state.trained == self.steps:
            state = self._compared(objective, state)
        return state, self._point(objective, state)

    def answer(self, problem: VariationalProblem, state: ElboState) -> Answer:
        """See `AbstractMethod.answer`: strengths and mean of the candidate with the lowest objective."""
        objective = self._objective(problem)
        found = self.found(problem, state)
        return Answer(objective.priors.raw(found.strengths).to(found.mean), found.mean)

    def found(self, problem: VariationalProblem, state: ElboState) -> Found:
        """Return the posterior of the best candidate up to `state`.

        Raises:
            LearnError: no step was made yet.
            AllDiverged: no candidate has a finite objective.
        """
        if state.step == 0:
            raise LearnError("no point was evaluated yet")
        best = _best(state)
        if best is None:
            raise AllDiverged("the objective was not finite for any learning rate")
        return self._found(self._objective(problem), state, best)

    def _objective(self, problem: VariationalProblem) -> "_Objective":
        priors = GaussianPriors.read(problem.regularizers)
        partition = Partition(priors.of, priors.size)
        rows = rows_of(problem, batch_size=self.batch_size)
        kappa = kappa_of(self.kappa, weights=partition.members, rows=rows.count)
        size = priors.of.numel()
        return _Objective(
            rows=rows,
            priors=priors,
            prior=Prior(partition, priors.bounds, kappa * rows.count),
            kappa=kappa,
            size=size,
            scales=size if self.posterior is Posterior.DIAGONAL else 1,
            outputs=0 if rows.targets is None else rows.targets.shape[1],
        )

    def _advance(self, objective: "_Objective", state: ElboState, steps: int) -> ElboState:
        # A candidate that broke down is left as it is; the others do not notice.
        alive = torch.nonzero(torch.isfinite(state.variables).all(1)).squeeze(1)
        variables, buffers = state.variables[alive], state.buffers[alive]
        optimizers = [self.candidates[k] for k in alive.tolist()]
        moments = [state.moments[k].copied() for k in alive.tolist()]
        schedule = Cosine(self.steps)
        losses = torch.zeros_like(state.losses[alive, 0])
        likelihoods = torch.zeros_like(losses)
        workspace = objective.workspace(variables)
        for step in range(state.trained, state.trained + (steps if optimizers else 0)):
            slope = objective.slope(variables, buffers, workspace, seed=state.seed, step=step)
            norms = torch.linalg.vector_norm(slope.gradient, dim=1, keepdim=True)
            gradient = slope.gradient.mul_((self.clip / norms).clamp_max(1.0))
            factor = schedule.factor(step)
            for k, optimizer in enumerate(optimizers):
                moments[k] = optimizer.update_(moments[k], variables[k], gradient[k], rate=optimizer.rate * factor)
            buffers = slope.buffers
            losses += slope.loss
            likelihoods += slope.nll
        memories = list(state.moments)
        for place, k in enumerate(alive.tolist()):
            memories[k] = moments[place]
        count = steps * len(optimizers)
        nll = likelihoods / steps
        means = torch.stack([nll + objective.penalty(variables), nll, losses / steps], dim=1)
        return replace(
            state,
            step=state.step + 1,
            cost=state.cost + Cost(inner_iterations=count, gradients=count),
            trained=state.trained + steps,
            variables=state.variables.index_copy(0, alive, variables),
            buffers=state.buffers.index_copy(0, alive, buffers),
            moments=tuple(memories),
            losses=torch.full_like(state.losses, math.inf).index_copy(0, alive, means.nan_to_num(math.inf)),
        )

    def _compared(self, objective: "_Objective", state: ElboState) -> ElboState:
        scores = torch.stack(
            [
                objective.value(row, buffers, seed=state.seed, samples=self.samples)
                for row, buffers in zip(state.variables, state.buffers, strict=True)
            ]
        )
        spent = self.samples * len(self.candidates)
        # A look at rows is half a gradient of as many.
        cost = state.cost + Cost(gradients=math.ceil(spent / 2))
        return replace(state, scores=scores.nan_to_num(math.inf), cost=cost)

    def _found(self, objective: "_Objective", state: ElboState, k: int) -> Found:
        unpacked = objective.unpack(state.variables[k : k + 1])
        divergence = objective.prior.divergence(unpacked.mean, unpacked.scale, unpacked.variance)
        return Found(
            mean=unpacked.mean[0].clone(),
            scale=unpacked.scale[0],
            noise=None if unpacked.log_noise is None else math.exp(float(unpacked.log_noise)),
            variance=divergence.variance[0],
            strengths=objective.prior.strengths(divergence.variance, unpacked.variance)[0],
            divergence=float(divergence.value),
            kappa=objective.kappa,
            optimizer=self.candidates[k],
            objective=float(_values(state)[k]),
        )

    def _point(self, objective: "_Objective", state: ElboState) -> TrajectoryPoint:
        best = _best(state)
        found = self._found(objective, state, 0 if best is None else best)
        value, nll, loss = (math.nan,) * 3 if best is None else state.losses[best].tolist()
        of_candidates = {
            f"objective.{index}": float(one) for index, one in enumerate(_values(state)) if len(self.candidates) > 1
        }
        inside = objective.priors.of < objective.priors.size
        scales = found.scale.double() if found.scale.numel() == 1 else found.scale.double()[inside]
        spread = float(scales.square().mean())
        signal = float(found.mean[inside].double().square().mean()) / spread
        is_over = state.trained == self.steps
        return TrajectoryPoint(
            step=state.step - 1,
            hyperparameters=objective.priors.named(found.strengths),
            train_loss=loss,
            valid_loss=None,
            hypergradient_norm=math.nan,
            inner_iterations=self.steps_per_point * len(self.candidates),
            inner_residual=math.nan,
            metrics={
                "objective": float(state.scores[best]) if is_over and best is not None else value,
                "nll": nll,
                "kl": found.divergence,
                **({} if found.noise is None else {"noise": found.noise}),
                **objective.priors.variances(found.variance),
                "posterior_scale": spread**0.5,
                "signal": signal,
                "collapsed": float(signal < COLLAPSED),
                "kappa": objective.kappa,
                "learning_rate": found.optimizer.rate,
                **of_candidates,
            },
            status=Status.CONVERGED if is_over and best is not None else Status.RUNNING,
        )


@dataclass(frozen=True, eq=False)
class _Unpacked:
    """The variables of k models."""

    mean: Tensor
    """[k, p]."""
    raw_scale: Tensor
    """[k, s]."""
    log_noise: Tensor | None
    """[k]."""

    @cached_property
    def scale(self) -> Tensor:
        """Return σ, [k, s]."""
        return softplus(self.raw_scale)

    @cached_property
    def variance(self) -> Tensor | None:
        """Return s², [k]."""
        return None if self.log_noise is None else (2.0 * self.log_noise).exp()


@dataclass(frozen=True, eq=False)
class _Workspace:
    """Memory that steps share."""

    draw: Tensor
    """[p]."""
    sample: Tensor
    """[k, p]."""
    gradient: Tensor
    """Of the variables' shape."""


@dataclass(frozen=True, eq=False)
class _Slope:
    """Of the objective at one draw of the weights."""

    gradient: Tensor
    """In the variables, [k, p + s + t]; the workspace's."""
    buffers: Tensor
    loss: Tensor
    """Mean loss of the rows, [k]."""
    nll: Tensor
    """Their mean negative log-likelihood, [k]."""


@dataclass(frozen=True, eq=False)
class _Objective:
    """The objective of k models as a function of their variables."""

    rows: AbstractRows
    priors: GaussianPriors
    prior: Prior
    kappa: float
    size: int
    """p."""
    scales: int
    """1 or p."""
    outputs: int
    """c where noise is learned, else 0."""

    def unpack(self, variables: Tensor) -> _Unpacked:
        """Return views of variables [k, p + s + t]."""
        mean, raw_scale, rest = torch.split(
            variables, [self.size, self.scales, variables.shape[1] - self.size - self.scales], 1
        )
        return _Unpacked(mean, raw_scale, rest[:, 0] if self.outputs else None)

    def workspace(self, variables: Tensor) -> _Workspace:
        """Return memory for the steps from variables [k, p + s + t] on."""
        return _Workspace(
            draw=torch.zeros_like(variables[0, : self.size]),
            sample=torch.zeros_like(variables[:, : self.size]),
            gradient=torch.zeros_like(variables),
        )

    def slope(self, variables: Tensor, buffers: Tensor, workspace: _Workspace, *, seed: int, step: int) -> _Slope:
        """Return the gradient at the rows and the draw of one step, in the memory of the workspace."""
        at = self.unpack(variables)
        draw = weight_noise(self.size, seed=seed, step=step, like=variables)
        if self.prior.partition.members < self.size:
            draw = self.prior.partition.silence_(workspace.draw.copy_(draw))
        sample = torch.addcmul(at.mean, at.scale, draw, out=workspace.sample)
        slope = self.unpack(workspace.gradient)
        by_mean = slope.mean
        data = self.rows.gradients_(by_mean, sample, buffers, seed=seed, step=step)
        kl = self.prior.slope(at.mean, at.scale, at.variance)
        if kl.by_log_noise is not None and at.variance is not None and slope.log_noise is not None:
            by_mean.div_(at.variance[:, None])
            slope.log_noise.copy_(kl.by_log_noise + self.outputs - 2.0 * data.value / at.variance)
        if self.scales > 1:
            torch.mul(by_mean, draw, out=slope.raw_scale)
        else:
            torch.mv(by_mean, draw, out=slope.raw_scale[:, 0])
        slope.raw_scale.add_(kl.by_scale).mul_(torch.sigmoid(at.raw_scale))
        self.prior.partition.add_scaled_(by_mean, at.mean, kl.by_mean)
        return _Slope(workspace.gradient, data.buffers, data.value, self.nll(data.value, at))

    def nll(self, loss: Tensor, at: _Unpacked) -> Tensor:
        """Return the mean negative log-likelihood, [k], of mean losses [k]."""
        if at.log_noise is None or at.variance is None:
            return loss
        return loss / at.variance + self.outputs * (at.log_noise + _HALF_LOG_2PI)

    def penalty(self, variables: Tensor) -> Tensor:
        """Return KL/(κ n), [k], float64."""
        at = self.unpack(variables)
        return self.prior.divergence(at.mean, at.scale, at.variance).value / self.prior.weight

    def value(self, variables: Tensor, buffers: Tensor, *, seed: int, samples: int) -> Tensor:
        """Return the objective of one model, a scalar, over draws and rows that are the same for all models."""
        at = self.unpack(variables[None])
        total = self.penalty(variables[None])[0]
        for sample in range(samples):
            draw = selection_noise(self.size, seed=seed, sample=sample, like=variables)
            drawn = torch.addcmul(at.mean[0], at.scale[0], self.prior.partition.silence_(draw))
            total += self.nll(self.rows.mean(drawn, buffers, seed=seed, sample=sample)[None], at)[0] / samples
        return total


def _values(state: ElboState) -> Tensor:
    """Return what candidates are compared by so far, [k]."""
    return state.losses[:, 0] if bool(torch.isinf(state.scores).all()) else state.scores


def _best(state: ElboState) -> int | None:
    """Return the candidate with the lowest objective, or None if none is finite."""
    values = _values(state)
    best = int(values.argmin())
    return best if math.isfinite(float(values[best])) else None
