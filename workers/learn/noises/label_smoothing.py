"""Targets that are a little less sure of themselves."""

from dataclasses import dataclass, replace
from typing import Self, final

import torch
from torch import Tensor
from torch.nn import functional

from workers.learn.errors import LearnError
from workers.learn.hyperparameters import Hyper
from workers.learn.losses.base import AbstractLoss
from workers.learn.losses.logistic import Logistic
from workers.learn.losses.softmax import Softmax
from workers.learn.noises.base import AbstractNoise, RowHyper, Strength


@final
@dataclass(frozen=True, eq=False)
class LabelSmoothing(AbstractNoise):
    """(1 − s) ℓ(z, y) + s · mean over classes of ℓ(z, class): the loss of a target that is uniform with weight s.

    Source: Szegedy et al. (2016), section 7.
    """

    strength: Strength

    @property
    def strengths(self) -> tuple[Strength, ...]:
        """See `AbstractNoise.strengths`."""
        return (self.strength,)

    def fixed_at(self, hyper: Hyper) -> Self:
        """See `AbstractNoise.fixed_at`."""
        return replace(self, strength=self.strength.fixed_at(hyper))

    def mean(self, rule: AbstractLoss, outputs: Tensor, y: Tensor, hyper: RowHyper) -> Tensor:
        """Return the mean loss of outputs [n, c], a scalar; differentiable in them.

        Raises:
            LearnError: the loss has no classes.
        """
        s = self.strength.rows(hyper, outputs)
        # Neither part of the loss but the scores of the classes differs between targets.
        match rule:
            case Softmax():
                spread = torch.gather(outputs, 1, y[:, None]).squeeze(1) - outputs.mean(1)
                return functional.cross_entropy(outputs, y) + (s * spread).mean()
            case Logistic():
                z = outputs.squeeze(1)
                return (functional.softplus(z) - torch.lerp(y.to(z.dtype), torch.full_like(z, 0.5), s) * z).mean()
        raise LearnError("label smoothing needs classes, hence the loss 'cross_entropy'")
