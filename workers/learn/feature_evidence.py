"""The exact evidence of a random-feature Gaussian process, as a function of its kernel and its noise."""

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import final

import torch
from torch import Tensor

from workers.learn.models.random_features import RandomFeatures


@dataclass(frozen=True, eq=False)
class Process:
    """Length scales ℓ [1] or [d], the variance v of the weights and the variance s² of the noise, as logarithms.

    y = Φ(ℓ) w + b + noise, w ~ N(0, v); b is no random quantity, but is chosen where the evidence is greatest.
    """

    log_lengthscale: Tensor
    log_variance: Tensor
    log_noise: Tensor

    @staticmethod
    def of(logs: Tensor) -> "Process":
        """Return the process of a vector [h] of its logarithms."""
        return Process(logs[:-2], logs[-2], logs[-1])

    @property
    def logs(self) -> Tensor:
        """The vector of its logarithms, [h]."""
        return torch.cat([self.log_lengthscale, self.log_variance[None], self.log_noise[None]])


@dataclass(frozen=True, eq=False)
class Conditioned:
    """A process after it has seen the data."""

    log_evidence: Tensor
    """A scalar, summed over outputs."""
    mean: Tensor
    """Of the weights, [R, c]."""
    bias: Tensor
    """b, [c]."""
    residual: Tensor
    """‖y − Φ m − b‖², a scalar."""


@final
@dataclass(frozen=True, eq=False)
class FeatureEvidence:
    """log p(y | ℓ, v, s²) for y ~ N(b, s² I + v Φ Φᵀ) in each output; Φ = φ(x; ℓ, o = `outputscale`).

    One Cholesky decomposition of the smaller of I + Φᵀ Φ v/s² and I + Φ Φᵀ v/s², whose eigenvalues are at least one.

    Source: Rasmussen & Williams (2006), equations (2.30) and (2.43), in the space of the features.
    """

    features: RandomFeatures
    x: Tensor
    """[n, d], float64."""
    y: Tensor
    """[n, c], float64."""
    outputscale: float

    @cached_property
    def _scale(self) -> Tensor:
        return torch.tensor(self.outputscale, dtype=self.x.dtype, device=self.x.device)

    def phi(self, x: Tensor, at: Process) -> Tensor:
        """Return Φ, [n, R]."""
        return self.features.features(x, at.log_lengthscale.exp(), self._scale)

    def conditioned(self, at: Process) -> Conditioned:
        """Return the evidence and the posterior mean, differentiable in the process."""
        phi, noise = self.phi(self.x, at), at.log_noise.exp()
        n, c = self.y.shape
        factor = self._factor(phi, at)
        both = torch.cat([self.y, torch.ones_like(self.y[:, :1])], dim=1)
        # C⁻¹ [y 1], for the generalised least squares of b.
        solved = self._solve(phi, factor, at, both)
        bias = solved[:, :c].sum(0) / solved[:, c].sum()
        alpha = solved[:, :c] - solved[:, c:] * bias
        centered = self.y - bias
        logdet = n * at.log_noise + 2.0 * factor.diagonal().log().sum()
        evidence = -0.5 * (c * (n * math.log(2.0 * math.pi) + logdet) + (centered * alpha).sum())
        # C α = y − b, hence y − b − Φ m = s² α.
        return Conditioned(evidence, at.log_variance.exp() * phi.T @ alpha, bias, (noise * alpha).square().sum())

    def predictive(self, x: Tensor, at: Process) -> tuple[Tensor, Tensor]:
        """Return mean [m, c] and standard deviation [m] of targets at x [m, d], noise included."""
        phi = self.phi(self.x, at)
        found, factor, new = self.conditioned(at), self._factor(phi, at), self.phi(x, at)
        variance, noise = at.log_variance.exp(), at.log_noise.exp()
        if phi.shape[0] <= phi.shape[1]:
            half = torch.linalg.solve_triangular(factor, phi @ new.T, upper=False)
            spread = variance * (new.square().sum(1) - (variance / noise) * half.square().sum(0)).clamp_min(0.0)
        else:
            spread = variance * torch.linalg.solve_triangular(factor, new.T, upper=False).square().sum(0)
        return new @ found.mean + found.bias, (noise + spread).sqrt()

    def on(self, x: Tensor, y: Tensor) -> "FeatureEvidence":
        """Return the same on other rows."""
        return replace(self, x=x, y=y)

    def _factor(self, phi: Tensor, at: Process) -> Tensor:
        ratio = (at.log_variance - at.log_noise).exp()
        small = phi @ phi.T if phi.shape[0] <= phi.shape[1] else phi.T @ phi
        identity = torch.eye(small.shape[0], dtype=small.dtype, device=small.device)
        factor: Tensor = torch.linalg.cholesky(identity + ratio * small)
        return factor

    def _solve(self, phi: Tensor, factor: Tensor, at: Process, right: Tensor) -> Tensor:
        """Return C⁻¹ right, [n, m]."""
        noise = at.log_noise.exp()
        if phi.shape[0] <= phi.shape[1]:
            return torch.cholesky_solve(right, factor) / noise
        ratio = (at.log_variance - at.log_noise).exp()
        return (right - ratio * phi @ torch.cholesky_solve(phi.T @ right, factor)) / noise
