"""The cross-entropy of several classes."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from workers.learn.losses.base import AbstractLoss, LossAt, average


@dataclass(frozen=True)
class Softmax(AbstractLoss):
    """ℓ(z, y) = log Σ_c exp z_c − z_y, where y is the number of a class.

    Adding one number to all outputs changes nothing: whoever has a direction in `w` that does only that must
    penalise it or leave it out.
    """

    @property
    def curvature_bound(self) -> float:
        """See `AbstractLoss.curvature_bound`."""
        return 0.5  # Böhning (1992): diag(p) − p pᵀ ⪯ ½ (I − 11ᵀ/c)

    @property
    def curvature_lipschitz(self) -> float:
        """See `AbstractLoss.curvature_lipschitz`."""
        # D³ℓ[u, v, v] = E (u − E u)(v − E v)² ≤ max |u − E u| · Var v ≤ √2 · ½ for ‖u‖ = ‖v‖ = 1.
        return 0.7072

    @property
    def self_concordance(self) -> float:
        """See `AbstractLoss.self_concordance`."""
        return 1.4143  # |D³ℓ[u, v, v]| ≤ max |u_i − u_j| D²ℓ[v, v], and |u_i − u_j| ≤ √2 ‖u‖

    @property
    def has_shift(self) -> bool:
        """See `AbstractLoss.has_shift`."""
        return True

    def value(self, z: Tensor, y: Tensor) -> Tensor:
        """See `AbstractLoss.value`."""
        chosen = torch.gather(z, -1, y.view(-1, 1, 1).expand(-1, z.shape[1], 1)).squeeze(-1)
        return torch.logsumexp(z, -1) - chosen

    def at(self, z: Tensor, y: Tensor) -> LossAt:
        """See `AbstractLoss.at`."""
        log_probability = functional.log_softmax(z, -1)
        index = y.view(-1, 1, 1).expand(-1, z.shape[1], 1)
        value = -torch.gather(log_probability, -1, index).squeeze(-1)
        probability = log_probability.exp()
        slope = probability.scatter_add(-1, index, -torch.ones_like(index, dtype=z.dtype))

        def curvature(v: Tensor) -> Tensor:
            weighted = probability * v
            return weighted - probability * weighted.sum(-1, keepdim=True)

        return LossAt(value, slope, curvature, lambda: probability * (1.0 - probability))

    def metrics(self, z: Tensor, y: Tensor, weights: Tensor) -> dict[str, float]:
        """Return `loss` (nats) and `accuracy`."""
        correct = (z.argmax(-1) == y[:, None]).to(z.dtype)
        return {"loss": average(self.value(z, y), weights), "accuracy": average(correct, weights)}
