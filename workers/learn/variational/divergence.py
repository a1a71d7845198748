"""KL(q ‖ p) of a Gaussian posterior from a prior whose variances are at their optimum, with its derivatives."""

from dataclasses import dataclass
from functools import cached_property
from typing import final

import torch
from torch import Tensor

from workers.learn.gaussian_evidence import Bounds
from workers.learn.variational.partition import Partition


def softplus(raw: Tensor) -> Tensor:
    """Return log(1 + eʳ)."""
    return torch.nn.functional.softplus(raw)


def inverse_softplus(value: Tensor) -> Tensor:
    """Return r with log(1 + eʳ) = value > 0; exact for tiny and for huge values."""
    return value + torch.log(-torch.expm1(-value))


@dataclass(frozen=True, eq=False)
class Divergence:
    """KL(q ‖ p) of k models at the best variances; float64."""

    value: Tensor
    """[k]."""
    variance: Tensor
    """v, [k, g]."""


@dataclass(frozen=True, eq=False)
class DivergenceSlope:
    """The gradient of KL(q ‖ p)/(κ n) of k models, in pieces; float64."""

    by_mean: Tensor
    """Factors of m in ∂/∂m, [k, g]: 1/(κ n v)."""
    by_scale: Tensor
    """∂/∂σ: [k, 1] of one σ, [k, p] of one for each weight."""
    by_log_noise: Tensor | None
    """∂/∂ log s, [k]: not zero where a bound on a strength ties v to the noise. None without noise."""


@final
@dataclass(frozen=True, eq=False)
class Prior:
    """w_j ~ N(0, v_{g(j)}), with v_g = E_q ‖w_g‖² / d_g wherever the bounds of the strengths leave it.

    There KL_g = (d_g/2) log(1 + ‖m_g‖² / (d_g σ²)) for one σ, and in general ½ [d_g log v_g − Σ_g log σ_j²]. A strength
    λ that a bound holds makes v = s²/(κ n λ), s² = 1 without noise; then (d_g/2) (ρ − 1 − log ρ) comes on top,
    ρ = E_q ‖w_g‖² / (d_g v). The value is written so that it keeps its digits where m is nearly zero, as at the start.

    Derivatives are those at fixed v: where v is at its optimum they are the same, and where it is held it moves with
    the noise alone.

    Source: Harvey, Petrov & Hughes (2025), equation for λ* and the KL that it leaves.
    """

    partition: Partition
    bounds: Bounds
    """Of λ, [g]."""
    weight: float
    """κ n."""

    def divergence(self, mean: Tensor, scale: Tensor, noise: Tensor | None) -> Divergence:
        """Return KL(q ‖ p).

        Args:
            mean: m, [k, p].
            scale: σ, [k, 1] or [k, p].
            noise: s², [k]; None for a likelihood without.
        """
        counts = self.partition.counts
        squares, spread = self._moments(mean, scale)
        best = (squares + spread) / counts
        value = 0.5 * counts * torch.log1p(squares / spread)
        if scale.shape[1] > 1:
            # The logarithm of the mean less the mean of the logarithms: what one σ for all would save.
            value += 0.5 * (counts * torch.log(spread / counts) - 2.0 * self.partition.total(scale.log()))
        variance = self._bounded(best, noise)
        excess = best / variance - 1.0
        value += 0.5 * counts * (excess - torch.log1p(excess))
        return Divergence(value.sum(1), variance)

    def slope(self, mean: Tensor, scale: Tensor, noise: Tensor | None) -> DivergenceSlope:
        """Return the gradient of KL(q ‖ p)/(κ n): what every step of training asks for, in few operations."""
        counts = self.partition.counts
        squares, spread = self._moments(mean, scale)
        best = (squares + spread) / counts
        variance = self._bounded(best, noise)
        by_mean = 1.0 / (self.weight * variance)
        if scale.shape[1] > 1:
            of_weight = self.partition.spread(by_mean, outside=0.0)
            by_scale = scale * of_weight - self._inside / (self.weight * scale.double())
        else:
            by_scale = (spread * by_mean - counts / self.weight).sum(1, keepdim=True) / scale
        by_noise = None if noise is None else (counts * (1.0 - best / variance)).sum(1) / self.weight
        return DivergenceSlope(by_mean, by_scale, by_noise)

    def strengths(self, variance: Tensor, noise: Tensor | None) -> Tensor:
        """Return λ = s²/(κ n v), [k, g]."""
        return (1.0 if noise is None else noise[:, None]) / (self.weight * variance)

    def _moments(self, mean: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        """Return ‖m_g‖² and Σ_g σ_j², both [k, g]."""
        squares = self.partition.squares(mean)
        if scale.shape[1] > 1:
            return squares, self.partition.squares(scale)
        return squares, scale.double().square() * self.partition.counts

    def _bounded(self, best: Tensor, noise: Tensor | None) -> Tensor:
        low, high = self._box
        if noise is None:
            return torch.clamp(best, low, high)
        level = noise.double()[:, None]
        return torch.clamp(best, level * low, level * high)

    @cached_property
    def _box(self) -> tuple[Tensor, Tensor]:
        """Least and largest v for s² = 1, [g]."""
        return 1.0 / (self.weight * self.bounds.high), 1.0 / (self.weight * self.bounds.low)

    @cached_property
    def _inside(self) -> Tensor:
        """1 for weights with a prior and 0 for others, [p]."""
        return (self.partition.of < self.partition.size).double()
