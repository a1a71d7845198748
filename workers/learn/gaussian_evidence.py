"""The evidence of Bayesian linear regression, and the updates that climb it."""

import math
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from workers.learn.gaussian_regression import Fit, Priors, Regression, fit

_QUIET: Final = 1e-12
"""Smallest noise variance, as a fraction of the mean square of y."""


@dataclass(frozen=True, eq=False)
class Gaussians:
    """What type-II maximum likelihood chooses: prior variances v [g] and the variance s² of the noise, a scalar."""

    v: Tensor
    noise: Tensor


@dataclass(frozen=True, eq=False)
class Bounds:
    """Box of the strengths λ_g = s² / (κ n v_g) of each group, [g]: 0 and ∞ where there is none, equal if fixed."""

    low: Tensor
    high: Tensor

    @staticmethod
    def none(groups: int) -> "Bounds":
        """Return no bounds."""
        return Bounds(torch.zeros(groups, dtype=torch.float64), torch.full((groups,), math.inf, dtype=torch.float64))

    def held(self, v: Tensor, noise: Tensor, *, rows: float) -> Tensor:
        """Return the bound that each group of variances v [g] runs into, and NaN for those inside; rows: κ n."""
        strength = torch.where(v > 0.0, noise / (rows * v.clamp_min(torch.finfo(v.dtype).tiny)), math.inf)
        none = torch.full_like(v, math.nan)
        upper = torch.where((strength >= self.high) & torch.isfinite(self.high), self.high, none)
        return torch.where((strength <= self.low) & (self.low > 0.0), self.low, upper)


@dataclass(frozen=True, eq=False)
class Slope:
    """∂ log evidence / ∂ log v, [g], and ∂ log evidence / ∂ log s², a scalar."""

    v: Tensor
    noise: Tensor


def log_evidence(regression: Regression, at: Gaussians, found: Fit) -> Tensor:
    """Return log p(y | v, s²), a scalar: of y ~ N(0, s² I + Φ diag(v) Φᵀ) for each output.

    −½ [n c log(2π s²) + c log det(P V) + ‖y − Φ m‖²/s² + Σ_g ‖m_g‖²/v_g].

    Source: Bishop (2006), equation (3.86).
    """
    n, c = regression.y.shape
    return -0.5 * (
        n * c * torch.log(2.0 * math.pi * at.noise)
        + c * found.logdet
        + found.residual / at.noise
        + over(found.squares, at.v).sum()
    )


def slope(regression: Regression, at: Gaussians, found: Fit) -> Slope:
    """Return the gradient: ½ (‖m_g‖²/v_g − c γ_g) and ½ (‖y − Φ m‖²/s² − c (n − γ))."""
    n, c = regression.y.shape
    return Slope(
        0.5 * (over(found.squares, at.v) - c * found.determined),
        0.5 * (found.residual / at.noise - c * (n - found.determined.sum())),
    )


def mackay(regression: Regression, at: Gaussians, found: Fit, bounds: Bounds) -> Gaussians:
    """Return v_g ← ‖m_g‖² / (c γ_g) and s² ← ‖y − Φ m‖² / (c (n − γ)): where the gradient would vanish if γ stayed.

    Where a bound holds a strength λ_g, v_g = s² / (n λ_g) goes with s², and the variance of the noise becomes
    (‖y − Φ m‖² + Σ_held n λ_g ‖m_g‖²) / (c (n − γ + Σ_held γ_g)).

    Source: MacKay (1992), Bayesian interpolation; for v_g of single features, his automatic relevance determination.
    """
    n, c = regression.y.shape
    free = over(found.squares, c * found.determined)
    held = bounds.held(free, at.noise, rows=n)
    tied = ~torch.isnan(held)
    left = n - torch.where(tied, 0.0, found.determined).sum()
    noise = (found.residual + torch.where(tied, n * held * found.squares, 0.0).sum()) / (c * left)
    noise = noise.clamp_min(quietest(regression))
    return Gaussians(torch.where(tied, noise / (n * held), free), noise)


def em(regression: Regression, at: Gaussians, found: Fit, priors: Priors, bounds: Bounds) -> Gaussians:
    """Return what an EM step makes of v and s²: slower than `mackay`, but the evidence never falls.

    v_g ← (‖m_g‖² + c tr_g P⁻¹) / (c d_g),  s² ← (‖y − Φ m‖² + c tr(Φ P⁻¹ Φᵀ)) / (c n); a group that was pruned stays
    pruned.

    Source: Dempster, Laird & Rubin (1977); Bishop (2006), 9.3.4.
    """
    c = regression.outputs
    moments = found.squares + c * at.v * (priors.counts - found.determined)
    blurred = found.residual + c * at.noise * found.determined.sum()
    return maximised(regression, priors, moments, blurred, at.noise, bounds, kappa=1.0)


def maximised(
    regression: Regression,
    priors: Priors,
    moments: Tensor,
    blurred: Tensor,
    noise: Tensor,
    bounds: Bounds,
    *,
    kappa: float,
) -> Gaussians:
    """Return the v and s² that maximise κ E log p(y | w, s²) + E log p(w | v) under a fixed q(w).

    v_g = E ‖w_g‖² / (c d_g) and s² = E ‖y − Φ w‖² / (c n). Where a bound holds a strength λ, v = s² / (κ n λ), whose
    terms κ n λ E ‖w_g‖² / s² + c d_g log s² join those of the noise.

    Args:
        regression: the data.
        priors: which weights share a variance.
        moments: E ‖w_g‖², [g].
        blurred: E ‖y − Φ w‖², a scalar.
        noise: a guess of s², by which the bounds that hold are found.
        bounds: of the strengths.
        kappa: how often the data count.
    """
    n, c = regression.y.shape
    free = moments / (c * priors.counts)
    held = torch.full_like(free, math.nan)
    for _ in range(2):
        held = bounds.held(free, noise, rows=kappa * n)
        tied = ~torch.isnan(held)
        pull = torch.where(tied, kappa * n * held * moments, 0.0).sum()
        count = c * (kappa * n + torch.where(tied, priors.counts, 0.0).sum())
        noise = ((kappa * blurred + pull) / count).clamp_min(quietest(regression))
    return Gaussians(torch.where(torch.isnan(held), free, noise / (kappa * n * held)), noise)


def noise_at(regression: Regression, priors: Priors, strengths: Tensor) -> Tensor:
    """Return the noise variance of greatest evidence at strengths λ = s² / (n v) that are held, [g].

    s² = yᵀ (I + Φ diag(1/(n λ)) Φᵀ)⁻¹ y / (n c), which is (‖y − Φ m‖² + Σ n λ_g ‖m_g‖²) / (n c).
    """
    n, c = regression.y.shape
    one = torch.ones_like(strengths[0])
    found = fit(regression, priors, one / (n * strengths), one)
    return ((found.residual + n * (strengths * found.squares).sum()) / (n * c)).clamp_min(quietest(regression))


def quietest(regression: Regression) -> float:
    """Return the least variance of the noise that is told from none."""
    return _QUIET * float(regression.y.square().mean()) + torch.finfo(regression.y.dtype).tiny


def irrelevant(at: Gaussians, found: Fit, *, below: float) -> Tensor:
    """Return the groups, [g], whose effective number of determined features has fallen below a number."""
    return (at.v > 0.0) & (found.determined < below)


def readmitted(regression: Regression, priors: Priors, at: Gaussians, found: Fit) -> Tensor:
    """Return variances, [g], for pruned groups that the evidence wants back; zero for all others.

    At v_g = 0 the evidence has the slope ½ Σ_{j in g} (q_j² − c s_j), with q_j = φ_jᵀ C⁻¹ y and s_j = φ_jᵀ C⁻¹ φ_j.
    Where that is positive, pruning was no maximum. A feature by itself is best at (q²/c − s)/s².

    Source: Faul & Tipping (2002), Analysis of sparse Bayesian learning, equations (16) to (20).
    """
    gone = at.v == 0.0
    if not bool(gone.any()):
        return torch.zeros_like(at.v)
    m = found.mean()
    quality = regression.transposed_times(regression.y - regression.times(m)) / at.noise  # q, [d, c]
    sparsity = _sparsity(regression, priors, at)  # s, [d]
    gain = priors.total(quality.square().sum(1) / regression.outputs - sparsity)
    wanted = gone & (gain > 1e-9 * priors.total(sparsity))
    return torch.where(wanted, gain / priors.total(sparsity.square()).clamp_min(torch.finfo(m.dtype).tiny), 0.0)


def _sparsity(regression: Regression, priors: Priors, at: Gaussians) -> Tensor:
    """Return φ_jᵀ C⁻¹ φ_j, [d], for features of pruned groups; zero for others."""
    of_feature, beta = at.v[priors.of], 1.0 / at.noise
    gone = torch.nonzero(of_feature == 0.0).squeeze(1)
    result = torch.zeros_like(of_feature)
    if regression.is_wide:
        matrix = beta * regression.kernel(of_feature)
        matrix.diagonal().add_(1.0)
        factor = torch.linalg.cholesky(matrix)
        for chosen in torch.split(gone, 1024):
            half = torch.linalg.solve_triangular(factor, regression.columns(chosen), upper=False)
            result[chosen] = beta * half.square().sum(0)
        return result
    kept = torch.nonzero(of_feature > 0.0).squeeze(1)
    scale, gram = of_feature[kept].sqrt(), regression.gram
    matrix = beta * scale[:, None] * gram[kept][:, kept] * scale
    matrix.diagonal().add_(1.0)
    factor = torch.linalg.cholesky(matrix)
    half = torch.linalg.solve_triangular(factor, scale[:, None] * gram[kept][:, gone], upper=False)
    result[gone] = beta * gram.diagonal()[gone] - beta**2 * half.square().sum(0)
    return result


def over(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Return the quotients, zero where the denominator is zero: of a group that was pruned."""
    return torch.where(denominator > 0.0, numerator / torch.where(denominator > 0.0, denominator, 1.0), 0.0)
