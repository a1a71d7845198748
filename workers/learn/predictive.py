"""How far predicted numbers may be off, by the posterior of the weights and the noise: standard deviations."""

from typing import Final

import torch
from torch import Tensor

from workers.learn.gaussian_elbo import Factorised
from workers.learn.gaussian_evidence import Gaussians
from workers.learn.gaussian_priors import GaussianPriors
from workers.learn.methods.elbo import Found
from workers.learn.methods.feature_evidence import FeatureEvidenceMethod, FeatureEvidenceState
from workers.learn.methods.gaussian import Gaussian
from workers.learn.problem import Part
from workers.learn.problems.design import Design
from workers.learn.problems.network import NetworkProblem
from workers.learn.variational.rows import VariationalProblem
from workers.learn.variational.weight_noise import selection_noise

_SAMPLES: Final = 20
_MOST_FEATURES: Final = 4096
"""Up to which the covariance of the weights is factorised for this."""


def exact_spread(model: Gaussian, at: Gaussians, design: Design) -> Tensor | None:
    """Return √(s² + φᵀ P⁻¹ φ) of each row, [n], P = Φᵀ Φ/s² + V⁻¹; None where features are too many for that.

    Source: Bishop (2006), equation (3.59).
    """
    of_feature = at.v[model.priors.of]
    kept = torch.nonzero(of_feature > 0.0).squeeze(1)
    if model.regression.features > _MOST_FEATURES:
        return None
    scale = of_feature[kept].sqrt()
    precision = scale[:, None] * model.regression.gram[kept][:, kept] * scale / at.noise
    precision.diagonal().add_(1.0)
    phi = _features(model, design)[:, kept] * scale
    half = torch.linalg.solve_triangular(torch.linalg.cholesky(precision), phi.T, upper=False)
    spread: Tensor = (at.noise + half.square().sum(0)).sqrt()
    return spread


def factorised_spread(model: Gaussian, found: Factorised, design: Design) -> Tensor:
    """Return √(s² + Σ_j φ_j² σ_j²) of each row, [n]."""
    scale = found.scale.expand(model.regression.features)
    return (found.at.noise + _features(model, design).square() @ scale).sqrt()


def sampled_spread(problem: VariationalProblem, found: Found, part: Part, *, seed: int) -> Tensor | None:
    """Return the root of noise and variance of the outputs over draws of the weights, [n, c]; None for classes."""
    if found.noise is None:
        return None
    priors = GaussianPriors.read(problem.regularizers)
    spread = torch.where(priors.of < priors.size, found.scale.to(found.mean), 0.0)
    outputs = []
    for sample in range(_SAMPLES):
        draw = selection_noise(found.mean.numel(), seed=seed, sample=sample, like=found.mean)
        outputs.append(problem.outputs_on(found.mean + spread * draw, part)[0].double())
    return (torch.stack(outputs).var(0) + found.noise**2).sqrt()


def feature_spread(
    method: FeatureEvidenceMethod, problem: NetworkProblem, state: FeatureEvidenceState, part: Part
) -> Tensor:
    """Return the standard deviation of each row's target, [n]: see `FeatureEvidence.predictive`."""
    return method.predictive(problem, state, problem.rows_of(part).x)[1]


def _features(model: Gaussian, design: Design) -> Tensor:
    """Return rows as the Gaussian model has them, [n, d], dense."""
    matrix = (design.matrix.to_dense() if design.is_sparse else design.matrix).double()
    if model.center is not None:
        return matrix - model.center
    return torch.cat([matrix, torch.ones_like(matrix[:, :1])], 1) if model.layout.basis is not None else matrix
