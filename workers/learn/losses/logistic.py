"""The cross-entropy of two classes, with one output."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from workers.learn.losses.base import AbstractLoss, LossAt, average


@dataclass(frozen=True)
class Logistic(AbstractLoss):
    """ℓ(z, y) = log(1 + eᶻ) − y z, where z is the log-odds of class 1 and y is 0 or 1."""

    @property
    def curvature_bound(self) -> float:
        """See `AbstractLoss.curvature_bound`."""
        return 0.25

    @property
    def curvature_lipschitz(self) -> float:
        """See `AbstractLoss.curvature_lipschitz`."""
        return 0.0963  # max |σ''| = 1 / (6 √3) = 0.09622…

    @property
    def self_concordance(self) -> float:
        """See `AbstractLoss.self_concordance`."""
        return 1.0  # |σ''| = σ' |1 − 2σ| ≤ σ'

    @property
    def has_shift(self) -> bool:
        """See `AbstractLoss.has_shift`."""
        return False

    def value(self, z: Tensor, y: Tensor) -> Tensor:
        """See `AbstractLoss.value`."""
        z = z.squeeze(-1)
        return functional.softplus(z) - y[:, None] * z

    def at(self, z: Tensor, y: Tensor) -> LossAt:
        """See `AbstractLoss.at`."""
        probability = torch.sigmoid(z)
        variance = probability * (1.0 - probability)
        slope = probability - y[:, None, None]
        return LossAt(self.value(z, y), slope, lambda v: variance * v, lambda: variance)

    def metrics(self, z: Tensor, y: Tensor, weights: Tensor) -> dict[str, float]:
        """Return `loss` (nats) and `accuracy`."""
        correct = ((z.squeeze(-1) > 0) == (y[:, None] > 0.5)).to(z.dtype)
        return {"loss": average(self.value(z, y), weights), "accuracy": average(correct, weights)}
