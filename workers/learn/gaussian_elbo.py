"""The data-emphasized ELBo of linear regression in closed form, and what it loses against the evidence."""

import math
from dataclasses import dataclass, replace
from enum import StrEnum

import torch
from torch import Tensor

from workers.learn.gaussian_evidence import Bounds, Gaussians, maximised
from workers.learn.gaussian_regression import Fit, Priors, Regression, fit


class Posterior(StrEnum):
    """The family of Gaussians that the posterior is sought in."""

    ISOTROPIC = "isotropic"
    DIAGONAL = "diagonal"
    EXACT = "exact"


@dataclass(frozen=True, eq=False)
class Factorised:
    """A point of the coordinate ascent: prior variances v [g], noise s², and q = N(m, diag σ²)."""

    at: Gaussians
    scale: Tensor
    """σ², [] if one for all weights, else [d]."""
    found: Fit
    """m and its statistics, at the v and s² before these."""
    log_likelihood: Tensor
    """E log p(y | w, s²) for one row, a scalar."""
    objective: Tensor
    """J_κ, a scalar."""


def sweep(
    regression: Regression, priors: Priors, at: Gaussians, bounds: Bounds, *, kappa: float, diagonal: bool
) -> Factorised:
    """Return the maximisers of J_κ in m, σ², then v and s², each with what comes before it fixed. J_κ never falls.

    m = (κ G/s² + V⁻¹)⁻¹ κ Φᵀ y/s²; σ² = D / (κ tr G/s² + Σ 1/v) or σ_j² = 1 / (κ G_jj/s² + 1/v_j);
    v_g = (‖m_g‖² + Σ_g σ²) / d_g; s² = (‖y − Φ m‖² + Σ_j σ_j² G_jj) / n.

    Args:
        regression: the data; D = d c weights, all outputs together.
        priors: which weights share a variance.
        at: v > 0 and s² to start from.
        bounds: of the strengths s²/(κ n v).
        kappa: how often the data count.
        diagonal: a σ² for each weight, or one for all.

    Source: Harvey, Petrov & Hughes (2025), data-emphasized ELBo.
    """
    n, c = regression.y.shape
    found = fit(regression, priors, at.v, at.noise, kappa=kappa)
    precision = kappa / at.noise
    if diagonal:
        scale = 1.0 / (precision * regression.column_squares + 1.0 / at.v[priors.of])
        spread, blur = c * priors.total(scale), c * (scale * regression.column_squares).sum()
    else:
        scale = regression.features / (precision * regression.trace + (priors.counts / at.v).sum())
        spread, blur = c * scale * priors.counts, c * scale * regression.trace
    blurred = found.residual + blur
    new = maximised(regression, priors, found.squares + spread, blurred, at.noise, bounds, kappa=kappa)
    expected = -0.5 * (n * c * torch.log(2.0 * math.pi * new.noise) + blurred / new.noise)
    point = Factorised(new, scale, found, expected / n, kappa * expected)
    return replace(point, objective=kappa * expected - divergence(regression, priors, point))


def divergence(regression: Regression, priors: Priors, point: Factorised) -> Tensor:
    """Return KL(q ‖ prior), a scalar, at the v of a point."""
    c, v, scale = regression.outputs, point.at.v, point.scale
    of_feature = scale if scale.ndim else scale.expand(regression.features)
    moments = point.found.squares + c * priors.total(of_feature)
    logs = of_feature.log().sum()
    return 0.5 * ((moments / v + c * priors.counts * (v.log() - 1.0)).sum() - c * logs)


def signal(priors: Priors, regression: Regression, point: Factorised) -> float:
    """Return ‖m‖² / Σ σ²: how far the posterior is from the prior, in units of its own spread.

    Near zero the bound has given up on the weights: q = p, all of y is called noise, and the objective's slope
    towards a fit is lost. That is the collapse which κ > 1 is there to prevent.
    """
    of_feature = point.scale if point.scale.ndim else point.scale.expand(regression.features)
    return float(point.found.squares.sum() / (regression.outputs * priors.total(of_feature).sum()))


def gap(regression: Regression, priors: Priors, at: Gaussians, *, diagonal: bool) -> Tensor:
    """Return log evidence − max_q ELBo at given v and s², κ = 1, a scalar ≥ 0: what the family of q costs.

    c/2 [D log(tr P / D) − log det P] for one σ², by the inequality of the means; c/2 [Σ log P_jj − log det P] for
    one σ² for each weight, Hadamard's inequality; P = G/s² + V⁻¹, and D features.

    Source: the inequality of arithmetic and geometric means for the eigenvalues of P; Hadamard (1893).
    """
    found = fit(regression, priors, at.v, at.noise)
    inverse = 1.0 / at.v[priors.of]
    logdet = found.logdet + inverse.log().sum()
    if diagonal:
        return 0.5 * regression.outputs * ((regression.column_squares / at.noise + inverse).log().sum() - logdet)
    mean = (regression.trace / at.noise + inverse.sum()) / regression.features
    return 0.5 * regression.outputs * (regression.features * mean.log() - logdet)
