"""Linear regression by the data-emphasized ELBo, in closed form: coordinate ascent from several starts."""

import math
from dataclasses import dataclass
from typing import ClassVar, Final, final

import torch
from torch import Tensor

from workers.learn.cost import Cost
from workers.learn.errors import LearnError
from workers.learn.gaussian_elbo import Factorised, Posterior, divergence, signal, sweep
from workers.learn.gaussian_evidence import Gaussians, noise_at
from workers.learn.gaussian_regression import fit
from workers.learn.kappa import Kappa, kappa_of
from workers.learn.method import AbstractMethod, Answer, Status, TrajectoryPoint
from workers.learn.methods.gaussian import Gaussian, gaussian
from workers.learn.problems.linear import LinearProblem

COLLAPSED: Final = 0.05
"""Below this ‖m‖² / Σ σ² the posterior is the prior and the fit is nothing."""

_FARTHEST: Final = 5.0
"""Largest change of a logarithm by extrapolation."""

_UNEXPLAINED: Final = (0.9, 0.5, 0.1, 0.001)
"""Fractions of the mean square of y that starts beyond the given strength call noise."""


@dataclass(frozen=True)
class Climber:
    """One start on its way."""

    v: Tensor
    """[g]."""
    noise: Tensor
    objective: float
    """J_κ of the last sweep; −∞ before the first."""
    ended: bool


@dataclass(frozen=True)
class GaussianElboState:
    """All that changes during a run."""

    step: int
    cost: Cost
    climbers: tuple[Climber, ...]


@final
@dataclass(frozen=True)
class GaussianELBo(AbstractMethod[LinearProblem, GaussianElboState]):
    """max over q, v and s² of κ E_q log p(y | w, s²) − KL(q ‖ p(w | v)), for q = N(m, σ² I) or N(m, diag σ²).

    Coordinate ascent has a flat ridge wherever the bound is about to collapse, and may have several optima. So there
    are several starts, side by side; a step takes each through two sweeps, a squared extrapolation of their logarithms
    and a third sweep, which is kept if it is better than the second. A start ends when that raises J/(κ n) by less than
    `tolerance`. Points tell of the best start; metric `collapsed` is 1 where the posterior is no more than the prior.

    Source: Harvey, Petrov & Hughes (2025), Learning hyperparameters via a data-emphasized variational objective;
    extrapolation: Varadhan & Roland (2008), scheme S3.
    """

    state_type: ClassVar[type] = GaussianElboState

    posterior: Posterior = Posterior.ISOTROPIC
    kappa: Kappa = "auto"
    starts: int = 5
    tolerance: float = 1e-10

    def __post_init__(self) -> None:
        if self.posterior is Posterior.EXACT or not 1 <= self.starts <= 1 + len(_UNEXPLAINED):
            raise LearnError(
                f"coordinate ascent takes an isotropic or a diagonal posterior and 1 to {1 + len(_UNEXPLAINED)} starts"
            )

    def init(self, problem: LinearProblem, *, seed: int) -> GaussianElboState:  # noqa: ARG002 (nothing is random)
        """See `AbstractMethod.init`: the given strengths, and the noise that goes best with them; then the others."""
        model = gaussian(problem)
        data, strengths = model.regression, model.of_strengths.initial
        noise = noise_at(data, model.priors, strengths)
        pairs = [(noise / (self._kappa(model) * data.rows * strengths), noise)]
        square, trace = data.y.square().mean(), data.trace
        pairs += [
            (torch.ones_like(strengths) * square * (1.0 - part) * data.rows / trace, square * part)
            for part in _UNEXPLAINED[: self.starts - 1]
        ]
        cost = Cost(hessian_vector_products=math.ceil(min(data.rows, data.features) / 2))
        return GaussianElboState(0, cost, tuple(Climber(v, s, -math.inf, ended=False) for v, s in pairs))

    def step(self, problem: LinearProblem, state: GaussianElboState) -> tuple[GaussianElboState, TrajectoryPoint]:
        """See `AbstractMethod.step`."""
        model = gaussian(problem)
        climbers = tuple(self._climb(model, climber) for climber in state.climbers)
        sweeps = 3 * sum(not climber.ended for climber in state.climbers)
        state = GaussianElboState(state.step + 1, state.cost + Cost(inner_iterations=sweeps), climbers)
        return state, self._point(model, state)

    def answer(self, problem: LinearProblem, state: GaussianElboState) -> Answer:
        """See `AbstractMethod.answer`: the strengths of the best start, and the mean of the posterior."""
        if state.step == 0:
            raise LearnError("no point was evaluated yet")
        model, best = gaussian(problem), _best(state)
        kappa, like = self._kappa(model), problem.initial_weights(0)
        m = fit(model.regression, model.priors, best.v, best.noise, kappa=kappa).mean()
        raw = model.of_strengths.raw(best.noise / (kappa * model.regression.rows * best.v))
        return Answer(raw.to(like), model.weights(m).to(like))

    def found(self, problem: LinearProblem, state: GaussianElboState) -> Factorised:
        """Return the posterior of the best start, after one more sweep."""
        model = gaussian(problem)
        best = _best(state)
        return self._sweep(model, Gaussians(best.v, best.noise))

    def _kappa(self, model: Gaussian) -> float:
        data = model.regression
        return kappa_of(self.kappa, weights=data.features * data.outputs, rows=data.rows)

    def _sweep(self, model: Gaussian, at: Gaussians) -> Factorised:
        return sweep(
            model.regression,
            model.priors,
            at,
            model.of_strengths.bounds,
            kappa=self._kappa(model),
            diagonal=self.posterior is Posterior.DIAGONAL,
        )

    def _climb(self, model: Gaussian, climber: Climber) -> Climber:
        if climber.ended:
            return climber
        start = Gaussians(climber.v, climber.noise)
        one = self._sweep(model, start)
        two = self._sweep(model, one.at)
        first = _difference(one.at, start)
        bend = _difference(two.at, one.at) - first
        ratio = float(torch.linalg.vector_norm(first)) / max(float(torch.linalg.vector_norm(bend)), 1e-12)
        best = two
        if ratio > 1.0:
            moved = _log(start) + 2.0 * ratio * first + ratio**2 * bend
            near = _log(two.at)
            far = self._sweep(model, _exp(near + (moved - near).clamp(-_FARTHEST, _FARTHEST)))
            if float(far.objective) > float(two.objective):
                best = far
        value = float(best.objective)
        scale = self._kappa(model) * model.regression.rows
        ended = value - climber.objective <= self.tolerance * scale
        return Climber(best.at.v, best.at.noise, value, ended=ended)

    def _point(self, model: Gaussian, state: GaussianElboState) -> TrajectoryPoint:
        data, best = model.regression, _best(state)
        kappa = self._kappa(model)
        seen = self._sweep(model, Gaussians(best.v, best.noise))
        at, scale = seen.at, seen.scale
        ended = all(climber.ended for climber in state.climbers)
        lost = signal(model.priors, data, seen)
        return TrajectoryPoint(
            step=state.step - 1,
            hyperparameters=model.of_strengths.named(best.noise / (kappa * data.rows * best.v)),
            train_loss=0.5 * float(seen.found.residual) / data.rows,
            valid_loss=None,
            hypergradient_norm=math.nan,
            inner_iterations=3 * len(state.climbers),
            inner_residual=math.nan,
            metrics={
                "objective": -float(seen.objective) / (kappa * data.rows),
                "nll": -float(seen.log_likelihood),
                "kl": float(divergence(data, model.priors, seen)),
                "noise": float(at.noise) ** 0.5,
                **model.of_strengths.variances(at.v),
                "posterior_scale": float(scale.mean()) ** 0.5,
                "signal": lost,
                "collapsed": float(lost < COLLAPSED),
                "kappa": kappa,
            },
            status=Status.CONVERGED if ended else Status.RUNNING,
        )


def _best(state: GaussianElboState) -> Climber:
    return max(state.climbers, key=lambda climber: climber.objective)


def _log(at: Gaussians) -> Tensor:
    return torch.cat([at.v, at.noise[None]]).log()


def _exp(logs: Tensor) -> Gaussians:
    values = logs.exp()
    return Gaussians(values[:-1], values[-1])


def _difference(after: Gaussians, before: Gaussians) -> Tensor:
    return _log(after) - _log(before)
