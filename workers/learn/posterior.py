"""What a method without validation rows has found, beside strengths and mean weights."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional

from workers.learn.errors import LearnError
from workers.learn.evidence_profile import EvidenceMethod
from workers.learn.gaussian_elbo import signal
from workers.learn.gaussian_evidence import Gaussians
from workers.learn.gaussian_priors import GaussianPriors
from workers.learn.kappa import kappa_of
from workers.learn.method import State
from workers.learn.methods.elbo import ELBo, ElboState
from workers.learn.methods.exact_evidence import ExactEvidence, ExactState
from workers.learn.methods.feature_evidence import FeatureEvidenceMethod, FeatureEvidenceState
from workers.learn.methods.gaussian import gaussian
from workers.learn.methods.gaussian_elbo import COLLAPSED, GaussianELBo, GaussianElboState
from workers.learn.models.random_features import RandomFeatures
from workers.learn.predictive import exact_spread, factorised_spread, feature_spread, sampled_spread
from workers.learn.problem import Part
from workers.learn.problems.linear import LinearProblem
from workers.learn.problems.network import NetworkProblem


@dataclass(frozen=True, eq=False)
class Summary:
    """A posterior in numbers."""

    kappa: float
    objective: float
    """For one row, minimised: −log evidence / n, or −J_κ / (κ n)."""
    log_evidence: float | None
    """Of all rows; None where only a bound is known."""
    noise: float | None
    """s, the standard deviation of the noise on the targets; None for classes."""
    variances: Mapping[str, float]
    """`prior_variance.NAME`, … as in the trajectory."""
    scale: Tensor | None
    """σ of the weights, [1] or one for each weight with a prior; None of an exact posterior."""
    learning_rate: float | None
    """Of the candidate that won; None where nothing was trained by steps."""
    collapsed: bool
    """Whether the posterior is no more than the prior, which fits nothing."""
    spread: Callable[[Part], Tensor | None]
    """Returns the standard deviation of each target of a part, [n] or [n, c]; None where it is not to be had."""


def summary(method: EvidenceMethod, problem: LinearProblem | NetworkProblem, state: State, *, seed: int) -> Summary:
    """Return the posterior that a run has led to.

    Raises:
        LearnError: method, problem and state do not belong together.
    """
    match method, problem, state:
        case ExactEvidence(), LinearProblem(), ExactState():
            return _exact(problem, state)
        case GaussianELBo(), LinearProblem(), GaussianElboState():
            return _gaussian(method, problem, state)
        case FeatureEvidenceMethod(), NetworkProblem(), FeatureEvidenceState():
            return _features(method, problem, state)
        case ELBo(), LinearProblem() | NetworkProblem(), ElboState():
            return _trained(method, problem, state, seed=seed)
        case _:
            raise LearnError(f"{type(method).__name__} has no {type(state).__name__} of a {type(problem).__name__}")


def _exact(problem: LinearProblem, state: ExactState) -> Summary:
    model, at = gaussian(problem), Gaussians(state.best_v, state.best_noise)
    return Summary(
        kappa=1.0,
        objective=-state.best / model.regression.rows,
        log_evidence=state.best,
        noise=math.sqrt(float(at.noise)),
        variances=model.of_strengths.variances(at.v),
        scale=None,
        learning_rate=None,
        collapsed=not bool((at.v > 0.0).any()),
        spread=lambda part: exact_spread(model, at, problem.rows_of(part).design),
    )


def _gaussian(method: GaussianELBo, problem: LinearProblem, state: GaussianElboState) -> Summary:
    model, found = gaussian(problem), method.found(problem, state)
    data = model.regression
    kappa = kappa_of(method.kappa, weights=data.features * data.outputs, rows=data.rows)
    return Summary(
        kappa=kappa,
        objective=-float(found.objective) / (kappa * data.rows),
        log_evidence=None,
        noise=math.sqrt(float(found.at.noise)),
        variances=model.of_strengths.variances(found.at.v),
        scale=found.scale.reshape(-1).sqrt(),
        learning_rate=None,
        collapsed=signal(model.priors, data, found) < COLLAPSED,
        spread=lambda part: factorised_spread(model, found, problem.rows_of(part).design),
    )


def _features(method: FeatureEvidenceMethod, problem: NetworkProblem, state: FeatureEvidenceState) -> Summary:
    at, priors, rows = method.found(problem, state), GaussianPriors.read(problem.regularizers), problem.train.rows
    value, _ = method.profile(problem, state)
    return Summary(
        kappa=1.0,
        objective=value,
        log_evidence=-value * rows,
        noise=math.exp(0.5 * float(at.log_noise)),
        variances={**priors.variances(at.log_variance.exp()[None]), **_named(at.log_lengthscale.exp())},
        scale=None,
        learning_rate=None,
        collapsed=False,
        spread=lambda part: feature_spread(method, problem, state, part),
    )


def _trained(method: ELBo, problem: LinearProblem | NetworkProblem, state: ElboState, *, seed: int) -> Summary:
    found, priors = method.found(problem, state), GaussianPriors.read(problem.regularizers)
    inside = priors.of < priors.size
    scale = found.scale if found.scale.numel() == 1 else found.scale[inside]
    signal_ = float(found.mean[inside].double().square().mean()) / float(scale.double().square().mean())
    return Summary(
        kappa=found.kappa,
        objective=found.objective,
        log_evidence=None,
        noise=found.noise,
        variances={**priors.variances(found.variance), **_lengthscales(problem, found.mean)},
        scale=scale,
        learning_rate=found.optimizer.rate,
        collapsed=signal_ < COLLAPSED,
        spread=lambda part: sampled_spread(problem, found, part, seed=seed),
    )


def _lengthscales(problem: LinearProblem | NetworkProblem, mean: Tensor) -> dict[str, float]:
    """Return the length scales among the weights of a random-feature Gaussian process; none of other models."""
    if not isinstance(problem, NetworkProblem) or not isinstance(problem.network.module, RandomFeatures):
        return {}
    return _named(functional.softplus(problem.network.split(mean)[2]))


def _named(scales: Tensor) -> dict[str, float]:
    values = scales.tolist()
    return {"lengthscale": values[0]} if len(values) == 1 else {f"lengthscale.{j}": v for j, v in enumerate(values)}
