"""The objective of a method without validation rows as a function of the strengths, all else at its best."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TypeVar, assert_never

import torch
from torch import Tensor

from workers.learn.cost import Cost
from workers.learn.errors import LearnError
from workers.learn.gaussian_evidence import Gaussians, slope
from workers.learn.gaussian_regression import fit
from workers.learn.kappa import kappa_of
from workers.learn.method import AbstractMethod, State, run
from workers.learn.methods.elbo import ELBo
from workers.learn.methods.exact_evidence import ExactEvidence
from workers.learn.methods.feature_evidence import FeatureEvidenceMethod
from workers.learn.methods.gaussian import gaussian
from workers.learn.methods.gaussian_elbo import GaussianELBo
from workers.learn.problem import AbstractBilevelProblem
from workers.learn.problems.linear import LinearProblem
from workers.learn.problems.network import NetworkProblem
from workers.learn.regularizers.l2 import L2

P = TypeVar("P", LinearProblem, NetworkProblem, LinearProblem | NetworkProblem)
Q = TypeVar("Q", bound=AbstractBilevelProblem)
S = TypeVar("S", bound=State)

EvidenceMethod = ExactEvidence | GaussianELBo | FeatureEvidenceMethod | ELBo

_MOST_STEPS = 2000


@dataclass(frozen=True, eq=False)
class Profile:
    """The objective where strengths are held."""

    value: float
    """For one row, to be minimised."""
    slope: Tensor | None
    """Its derivative in the logarithm of each strength, [h], float64; None where the value is that of a training."""
    cost: Cost


def held(problem: P, strengths: Mapping[str, Tensor]) -> P:
    """Return the problem with all its strengths fixed: given ones by name, natural, the others as they are."""
    parts = [part for part in problem.regularizers if isinstance(part, L2)]
    fixed = tuple(
        replace(part, initial=strengths.get(part.name, torch.as_tensor(part.initial)).double(), fixed=True)
        for part in parts
    )
    return replace(problem, regularizers=fixed)


def profile(
    method: EvidenceMethod, problem: LinearProblem | NetworkProblem, strengths: Mapping[str, Tensor], *, seed: int
) -> Profile:
    """Return the objective at strengths by name: posterior, noise and length scales are sought anew.

    By the envelope theorem the derivative is the partial one. A stochastic objective is trained, by the first of the
    method's candidates; the same seed gives the same rows and draws, so that values can be compared.

    Raises:
        LearnError: the problem is not one for the method.
    """
    match method:
        case ExactEvidence() if isinstance(problem, LinearProblem):
            return _exact(method, held(problem, strengths))
        case GaussianELBo() if isinstance(problem, LinearProblem):
            return _gaussian(method, held(problem, strengths))
        case FeatureEvidenceMethod() if isinstance(problem, NetworkProblem):
            return _features(method, held(problem, strengths), seed=seed)
        case ELBo():
            return _trained(method, held(problem, strengths), seed=seed)
        case ExactEvidence() | GaussianELBo() | FeatureEvidenceMethod():
            raise LearnError(f"{type(method).__name__} does not take a {type(problem).__name__}")
        case _:
            assert_never(method)


def _exact(method: ExactEvidence, problem: LinearProblem) -> Profile:
    state = _ended(replace(method, tolerance=min(method.tolerance, 1e-9)), problem, seed=0)
    model = gaussian(problem)
    data, at = model.regression, Gaussians(state.best_v, state.best_noise)
    found = fit(data, model.priors, at.v, at.noise)
    return Profile(-state.best / data.rows, slope(data, at, found).v / data.rows, state.cost)


def _gaussian(method: GaussianELBo, problem: LinearProblem) -> Profile:
    method = replace(method, tolerance=min(method.tolerance, 1e-13))
    state = _ended(method, problem, seed=0)
    model, best = gaussian(problem), method.found(problem, state)
    data, priors = model.regression, model.priors
    scale = best.scale.expand(data.features)
    moments = best.found.squares + data.outputs * priors.total(scale)
    weight = kappa_of(method.kappa, weights=data.features * data.outputs, rows=data.rows) * data.rows
    return Profile(
        -float(best.objective) / weight,
        0.5 * (moments / best.at.v - data.outputs * priors.counts) / weight,
        state.cost,
    )


def _features(method: FeatureEvidenceMethod, problem: NetworkProblem, *, seed: int) -> Profile:
    state = _ended(replace(method, tolerance=min(method.tolerance, 1e-8)), problem, seed=seed)
    value, derivative = method.profile(problem, state, newton_steps=2)
    return Profile(value, torch.tensor([derivative], dtype=torch.float64), state.cost)


def _trained(method: ELBo, problem: LinearProblem | NetworkProblem, *, seed: int) -> Profile:
    state = _ended(replace(method, candidates=method.candidates[:1]), problem, seed=seed)
    return Profile(float(state.scores[0]), None, state.cost)


def _ended(method: AbstractMethod[Q, S], problem: Q, *, seed: int) -> S:
    state = method.init(problem, seed=seed)
    most = method.steps if isinstance(method, ELBo) else _MOST_STEPS
    for after, _ in run(method, problem, state, max_steps=most):
        state = after
    return state
