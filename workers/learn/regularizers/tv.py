"""Total variation, smoothed, with its strength and its smoothing to be learned."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from workers.learn.hyperparameters import Hyper
from workers.learn.regularizers.image import AbstractImageRegularizer, ImageBounds, Quantity, learned
from workers.learn.regularizers.modulus import THIRD_DERIVATIVE, Modulus

# The Gram matrix of two columns is formed in floating point.
_ROUNDING = 1.0 + 1e-5


@final
@dataclass(frozen=True, eq=False)
class TV(AbstractImageRegularizer):
    """R = λ Σ φ(D x), with D x all differences of neighbours in a column and in a row, φ(t) = √(t² + ν²) − ν.

    λ is `strength`, ν `smoothing`: differences below ν are smoothed as a quadratic would, edges well above it are
    kept. No difference reaches over the border (Neumann conditions).

    Source: Rudin, Osher, Fatemi (1992), in the separable and smoothed form of Salehi et al. (2023), section 4.2,
    whose λ is twice ours.
    """

    strength: Quantity
    smoothing: Quantity

    def quantities(self) -> tuple[Quantity, ...]:
        """See `AbstractImageRegularizer.quantities`."""
        return (self.strength, self.smoothing)

    def __call__(self, x: Tensor, hyper: Hyper) -> Tensor:
        """See `AbstractImageRegularizer.__call__`."""
        strength, nu = self._values(hyper, x)
        return strength * (Modulus(_down(x), nu).value.sum() + Modulus(_across(x), nu).value.sum())

    def value_and_gradient(self, x: Tensor, hyper: Hyper) -> tuple[Tensor, Tensor]:
        """See `AbstractImageRegularizer.value_and_gradient`."""
        strength, nu = self._values(hyper, x)
        down, across = Modulus(_down(x), nu), Modulus(_across(x), nu)
        value = strength * (down.value.sum() + across.value.sum())
        return value, strength * _transposed(down.slope, across.slope, x)

    def curvature(self, x: Tensor, hyper: Hyper) -> Callable[[Tensor], Tensor]:
        """See `AbstractImageRegularizer.curvature`."""
        strength, nu = self._values(hyper, x)
        down = strength * Modulus(_down(x), nu).curvature
        across = strength * Modulus(_across(x), nu).curvature
        return lambda v: _transposed(down * _down(v), across * _across(v), v)

    def cross(self, x: Tensor, hyper: Hyper, q: Tensor) -> Mapping[str, Tensor]:
        """See `AbstractImageRegularizer.cross`."""
        strength, nu = self._values(hyper, x)
        down, across = Modulus(_down(x), nu), Modulus(_across(x), nu)
        q_down, q_across = _down(q), _across(q)
        return {
            self.strength.name: (down.slope * q_down).sum() + (across.slope * q_across).sum(),
            self.smoothing.name: strength * ((down.slope_by_nu * q_down).sum() + (across.slope_by_nu * q_across).sum()),
        }

    def cross_forward(self, x: Tensor, hyper: Hyper, rates: Hyper) -> Tensor:
        """See `AbstractImageRegularizer.cross_forward`."""
        strength, nu = self._values(hyper, x)
        of_strength, of_nu = self.strength.rate(rates, x), strength * self.smoothing.rate(rates, x)
        down, across = Modulus(_down(x), nu), Modulus(_across(x), nu)
        return _transposed(
            of_strength * down.slope + of_nu * down.slope_by_nu,
            of_strength * across.slope + of_nu * across.slope_by_nu,
            x,
        )

    def bounds(self, hyper: Hyper, like: Tensor) -> ImageBounds:
        """Return bounds from ‖D‖² = 4 cos²(π/2h) + 4 cos²(π/2w), exact, and rows of D of norm √2.

        ∂²R = λ Dᵀ φ″(D x) D with φ″ ≤ 1/ν, hence ‖∂²R‖ ≤ λ ‖D‖²/ν; two such matrices differ by at most
        λ ‖D‖² max|φ‴| max_j |(D (x − z))_j| with |φ‴| ≤ 0.859/ν², |(D v)_j| ≤ √2 ‖v‖. The columns of the cross
        derivative, λ Dᵀ φ′ and λ ν Dᵀ ∂φ′/∂ν, have derivatives in x of the form λ Dᵀ diag(·) D with entries within
        1/ν both.
        """
        strength, nu = (float(value) for value in self._values(hyper, like))
        height, width = like.shape[-2:]
        square = 4.0 * math.cos(math.pi / (2 * height)) ** 2 + 4.0 * math.cos(math.pi / (2 * width)) ** 2
        return ImageBounds(
            curvature=strength * square / nu,
            curvature_lipschitz=strength * square * math.sqrt(2.0) * THIRD_DERIVATIVE / nu**2,
            cross_lipschitz=math.sqrt(len(learned(self))) * strength * square / nu,
        )

    def cross_norm(self, x: Tensor, hyper: Hyper) -> float:
        """Return the norm itself, from the Gram matrix of the columns, with a margin for rounding."""
        strength, nu = self._values(hyper, x)
        scales = {self.strength.name: strength, self.smoothing.name: nu}
        names = [quantity.name for quantity in learned(self)]
        columns = []
        for moved in names:
            rates = {name: scales[name] if name == moved else torch.zeros_like(strength) for name in names}
            columns.append(self.cross_forward(x, hyper, rates).reshape(-1))
        stacked = torch.stack(columns)
        return float(torch.linalg.eigvalsh((stacked @ stacked.T).double())[-1].clamp_min(0.0).sqrt()) * _ROUNDING

    def _values(self, hyper: Hyper, like: Tensor) -> tuple[Tensor, Tensor]:
        return self.strength.value(hyper, like), self.smoothing.value(hyper, like)


def _down(x: Tensor) -> Tensor:
    """Return the differences of neighbours in a column, [n, c, h − 1, w]."""
    return x[..., 1:, :] - x[..., :-1, :]


def _across(x: Tensor) -> Tensor:
    """Return the differences of neighbours in a row, [n, c, h, w − 1]."""
    return x[..., 1:] - x[..., :-1]


def _transposed(down: Tensor, across: Tensor, like: Tensor) -> Tensor:
    """Return Dᵀ of both kinds of differences, of the shape of `like`."""
    result = torch.zeros_like(like)
    result[..., 1:, :] += down
    result[..., :-1, :] -= down
    result[..., 1:] += across
    result[..., :-1] -= across
    return result
