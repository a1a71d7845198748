"""The squared loss of regression."""

from dataclasses import dataclass

import torch
from torch import Tensor

from workers.learn.losses.base import AbstractLoss, LossAt, average


@dataclass(frozen=True)
class Squared(AbstractLoss):
    """ℓ(z, y) = ½ ‖z − y‖². The factor ½ is in the loss; `mse` among the metrics is without it."""

    @property
    def curvature_bound(self) -> float:
        """See `AbstractLoss.curvature_bound`."""
        return 1.0

    @property
    def curvature_lipschitz(self) -> float:
        """See `AbstractLoss.curvature_lipschitz`."""
        return 0.0

    @property
    def self_concordance(self) -> float:
        """See `AbstractLoss.self_concordance`."""
        return 0.0

    @property
    def has_shift(self) -> bool:
        """See `AbstractLoss.has_shift`."""
        return False

    def value(self, z: Tensor, y: Tensor) -> Tensor:
        """See `AbstractLoss.value`."""
        return 0.5 * (z - _targets(z, y)).square().sum(-1)

    def at(self, z: Tensor, y: Tensor) -> LossAt:
        """See `AbstractLoss.at`."""
        slope = z - _targets(z, y)
        return LossAt(0.5 * slope.square().sum(-1), slope, lambda v: v, lambda: torch.ones_like(z))

    def metrics(self, z: Tensor, y: Tensor, weights: Tensor) -> dict[str, float]:
        """Return `loss`, `mse`, `rmse`, `mae` and `r2`, summed over outputs; `rmse` is the root of `mse`."""
        target = _targets(z, y)
        error = z - target
        squares = error.square().sum(-1)
        center = (weights[..., None] * target).sum(0)  # [k, c]
        spread = (target - center).square().sum(-1)  # [n, k]
        unexplained = (squares * weights).sum(0) / (spread * weights).sum(0)  # [k]
        mse = average(squares, weights)
        return {
            "loss": 0.5 * mse,
            "mse": mse,
            "rmse": mse**0.5,
            "mae": average(error.abs().sum(-1), weights),
            "r2": float(1.0 - unexplained.mean()),
        }


def _targets(z: Tensor, y: Tensor) -> Tensor:
    """Return y [n] or [n, c] as [n, 1, c]."""
    return y.reshape(y.shape[0], 1, z.shape[-1])
