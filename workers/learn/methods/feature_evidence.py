"""Random-feature Gaussian processes for regression by their exact evidence."""

import math
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import ClassVar, Final, final

import torch
from torch import Tensor

from workers.learn.cost import Cost
from workers.learn.errors import LearnError
from workers.learn.feature_evidence import Conditioned, FeatureEvidence, Process
from workers.learn.gaussian_priors import GaussianPriors
from workers.learn.losses.squared import Squared
from workers.learn.method import AbstractMethod, Answer, Status, TrajectoryPoint
from workers.learn.models.random_features import inverse_softplus, random_features_of
from workers.learn.outer.box import projected_gradient
from workers.learn.outer.quasi_newton import QuasiNewton, QuasiNewtonState
from workers.learn.problems.network import NetworkProblem

_WIDEST: Final = 7.0
"""Largest |log ℓ|: beyond it a feature is constant, or noise."""

_QUIETEST: Final = 1e-8
"""Smallest variance of the noise, as a fraction of that of the targets."""

_FARTHEST: Final = 60.0
"""Largest |log λ| where there is no bound."""

_UNEXPLAINED: Final = (0.5, 0.1, 0.01)
"""Fractions of the targets' variance that are tried for noise at the start.

From a half, the evidence of nearly noiseless data climbs to an optimum where smooth features explain most and noise the
rest: on UCI's yacht to 0.99 a row, where there is one of 1.68 with a fifth of the test error.
"""

_MOST_REJECTED: Final = 10

_MOST_NEWTON: Final = 64
"""Logarithms up to which a Hessian is worth its backward passes."""


@dataclass(frozen=True)
class FeatureEvidenceState:
    """All that changes during a run."""

    step: int
    cost: Cost
    trial: Tensor
    """Logarithms of length scales, strength λ and noise s² to evaluate next, [h], float64."""
    outer: QuasiNewtonState | None
    """The best that was found; None before the first step."""


@final
@dataclass(frozen=True)
class FeatureEvidenceMethod(AbstractMethod[NetworkProblem, FeatureEvidenceState]):
    """Type-II maximum likelihood of length scales, prior variance and noise, by quasi-Newton steps.

    Every step is one evaluation of the evidence with its gradient, on all training rows, in float64. The output scale
    stays where it starts: it and the prior variance are one quantity. The constant mean is chosen where the evidence is
    greatest. It ends when no slope of the log evidence per row exceeds `tolerance`.

    Source: Rasmussen & Williams (2006), section 5.4.1.
    """

    state_type: ClassVar[type] = FeatureEvidenceState

    tolerance: float = 1e-6
    outer: QuasiNewton = field(default_factory=lambda: QuasiNewton(first_step=0.5, largest_step=2.0))

    def init(self, problem: NetworkProblem, *, seed: int) -> FeatureEvidenceState:  # noqa: ARG002 (nothing is random)
        """See `AbstractMethod.init`: given length scales, and as much noise as has the most evidence with them."""
        evidence, priors = _evidence(problem), _priors(problem)
        square = (evidence.y - evidence.y.mean(0)).square().mean().clamp_min(1e-300)
        scales = torch.nn.functional.softplus(_raw_lengthscale(problem)).double().log()
        low, high = _box(problem, evidence, priors)
        rows = evidence.x.shape[0]

        def start(part: float) -> Tensor:
            noise, variance = part * square, (1.0 - part) * square / evidence.outputscale**2
            logs = torch.cat([scales, (noise / (rows * variance)).log()[None], noise.log()[None]])
            return torch.minimum(torch.maximum(logs, low), high)

        starts = [start(part) for part in _UNEXPLAINED]
        best = max(starts, key=lambda logs: float(evidence.conditioned(_process(logs, rows)).log_evidence))
        cost = Cost(inner_iterations=len(starts), gradients=math.ceil(len(starts) / 2))
        return FeatureEvidenceState(0, cost, best, None)

    def step(
        self, problem: NetworkProblem, state: FeatureEvidenceState
    ) -> tuple[FeatureEvidenceState, TrajectoryPoint]:
        """See `AbstractMethod.step`."""
        evidence, priors = _evidence(problem), _priors(problem)
        low, high = _box(problem, evidence, priors)
        rows = evidence.x.shape[0]
        leaf = state.trial.clone().requires_grad_()
        found = evidence.conditioned(_process(leaf, rows))
        value = -found.log_evidence / rows
        (gradient,) = torch.autograd.grad(value, leaf)
        here = float(value.detach())
        rounding = 1e-12 * (1.0 + abs(here))
        outer = self.outer.start(state.trial, here, gradient)
        if state.outer is not None:
            outer, _ = self.outer.advance(
                state.outer, state.trial, here, gradient, noise=rounding, gradient_noise=rounding
            )
        trial, promised = self.outer.propose(outer, low, high)
        ended = (
            self.outer.is_stationary(outer, low, high, tol=self.tolerance)
            or outer.rejected >= _MOST_REJECTED
            or (outer.steps.shape[0] > 0 and promised <= rounding)
        )
        cost = state.cost + Cost(inner_iterations=1, gradients=1)
        after = FeatureEvidenceState(state.step + 1, cost, trial, outer)
        slope = float(torch.linalg.vector_norm(projected_gradient(state.trial, gradient, low, high)))
        point = self._point(problem, after, state.trial, found, slope)
        return after, replace(point, status=Status.CONVERGED) if ended else point

    def answer(self, problem: NetworkProblem, state: FeatureEvidenceState) -> Answer:
        """See `AbstractMethod.answer`: the highest evidence and the mean of the posterior there."""
        evidence, at = _evidence(problem), self.found(problem, state)
        found = evidence.conditioned(at)
        parts = [
            found.mean.T.reshape(-1),
            found.bias,
            torch.tensor([inverse_softplus(value) for value in at.log_lengthscale.exp().tolist()]).to(found.bias),
            torch.tensor([inverse_softplus(evidence.outputscale)]).to(found.bias),
        ]
        priors = _priors(problem)
        raw = priors.raw((at.log_noise - at.log_variance).exp()[None] / evidence.x.shape[0])
        return Answer(raw.to(problem.train.x), torch.cat(parts).to(problem.train.x))

    def found(self, problem: NetworkProblem, state: FeatureEvidenceState) -> Process:
        """Return the process of the highest evidence up to `state`.

        Raises:
            LearnError: no step was made yet.
        """
        if state.outer is None:
            raise LearnError("no point was evaluated yet")
        return _process(state.outer.raw, problem.train.rows)

    def predictive(self, problem: NetworkProblem, state: FeatureEvidenceState, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean [m, c] and standard deviation [m] of targets at x [m, d], noise included."""
        return _evidence(problem).predictive(x.double(), self.found(problem, state))

    def profile(
        self, problem: NetworkProblem, state: FeatureEvidenceState, *, newton_steps: int = 0
    ) -> tuple[float, float]:
        """Return −log evidence per row at the best up to `state`, and its derivative in log λ.

        Args:
            problem: the one that was solved.
            state: a state of its run.
            newton_steps: steps towards the optimum in all that has room in its box, beyond where quasi-Newton steps
                stall: for comparing values of neighbouring strengths.
        """
        if state.outer is None:
            raise LearnError("no point was evaluated yet")
        evidence, rows = _evidence(problem), problem.train.rows

        def objective(logs: Tensor) -> Tensor:
            return -evidence.conditioned(_process(logs, rows)).log_evidence / rows

        low, high = _box(problem, evidence, _priors(problem))
        logs = state.outer.raw
        free = torch.nonzero((logs > low) & (logs < high)).squeeze(1)
        for _ in range(newton_steps if free.numel() <= _MOST_NEWTON else 0):
            leaf = logs.clone().requires_grad_()
            (gradient,) = torch.autograd.grad(objective(leaf), leaf, create_graph=True)
            second = [torch.autograd.grad(gradient[place], leaf, retain_graph=True)[0][free] for place in free.tolist()]
            hessian, gradient = torch.stack(second), gradient.detach()[free]
            logs = logs.index_add(0, free, -torch.linalg.solve(hessian, gradient).clamp(-0.1, 0.1))
        leaf = logs.clone().requires_grad_()
        value = objective(leaf)
        (slope,) = torch.autograd.grad(value, leaf)
        return float(value.detach()), float(slope[-2])

    def _point(
        self, problem: NetworkProblem, state: FeatureEvidenceState, logs: Tensor, found: Conditioned, slope: float
    ) -> TrajectoryPoint:
        rows = problem.train.rows
        at, priors = _process(logs, rows), _priors(problem)
        variance, noise = at.log_variance.exp()[None], at.log_noise.exp()
        scales = dict(enumerate(at.log_lengthscale.exp().tolist()))
        named = (
            {"lengthscale": scales[0]}
            if len(scales) == 1
            else {f"lengthscale.{j}": scale for j, scale in scales.items()}
        )
        log_evidence = float(found.log_evidence.detach())
        return TrajectoryPoint(
            step=state.step - 1,
            hyperparameters=priors.named(noise / (rows * variance)),
            train_loss=0.5 * float(found.residual.detach()) / rows,
            valid_loss=None,
            hypergradient_norm=slope,
            inner_iterations=1,
            inner_residual=math.nan,
            metrics={
                "log_evidence": log_evidence,
                "objective": -log_evidence / rows,
                "noise": float(noise) ** 0.5,
                **priors.variances(variance),
                **named,
                "kappa": 1.0,
            },
        )


@lru_cache(maxsize=2)
def _evidence(problem: NetworkProblem) -> FeatureEvidence:
    features = random_features_of(problem.network)
    if not isinstance(problem.loss, Squared):
        raise LearnError(
            f"the evidence has a closed form for the squared loss; found {type(problem.loss).__name__}: take the "
            f"isotropic or the diagonal posterior"
        )
    problem.check_noises("the evidence")
    x = problem.train.x.double()
    outputscale = float(torch.nn.functional.softplus(problem.initial_weights(0)[-1].double()))
    return FeatureEvidence(features, x, problem.train.y.double().view(x.shape[0], -1), outputscale)


@lru_cache(maxsize=2)
def _priors(problem: NetworkProblem) -> GaussianPriors:
    priors, weights = GaussianPriors.read(problem.regularizers), problem.network.sizes[0]
    if priors.size != 1 or bool((priors.of[:weights] != 0).any()) or bool((priors.of[weights:] == 0).any()):
        raise LearnError(
            "a random-feature Gaussian process has one prior on its weights: take one L2 strength per model"
        )
    return priors


def _raw_lengthscale(problem: NetworkProblem) -> Tensor:
    start = problem.initial_weights(0)
    return problem.network.split(start)[2]


def _process(logs: Tensor, rows: int) -> Process:
    """Return the process of logarithms [h]: v = s²/(n λ)."""
    noise = logs[-1]
    return Process(logs[:-2], noise - logs[-2] - math.log(rows), noise)


def _box(problem: NetworkProblem, evidence: FeatureEvidence, priors: GaussianPriors) -> tuple[Tensor, Tensor]:
    """Return the box of the logarithms: that of the strength, and a wide one else."""
    scales = _raw_lengthscale(problem).numel()
    square = float((evidence.y - evidence.y.mean(0)).square().mean().clamp_min(1e-300))
    like, level = evidence.x, math.log(square)
    least, most = (float(bound.log().clamp(-_FARTHEST, _FARTHEST)) for bound in (priors.bounds.low, priors.bounds.high))
    low = [-_WIDEST] * scales + [least, level + math.log(_QUIETEST)]
    high = [_WIDEST] * scales + [most, level + 5.0]
    return like.new_tensor(low), like.new_tensor(high)
