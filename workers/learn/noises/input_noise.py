"""Gaussian noise on the features."""

from dataclasses import dataclass, replace
from typing import Self, final

import torch
from torch import Tensor

from workers.learn.hyperparameters import Hyper
from workers.learn.noises.base import AbstractInputNoise, RowHyper, Strength, column
from workers.learn.noises.draws import Draws


@final
@dataclass(frozen=True, eq=False)
class InputNoise(AbstractInputNoise):
    """x + s ε with ε standard normal; s in the units of the features.

    Source: Bishop (1995), "Training with noise is equivalent to Tikhonov regularization".
    """

    strength: Strength

    @property
    def strengths(self) -> tuple[Strength, ...]:
        """See `AbstractNoise.strengths`."""
        return (self.strength,)

    def fixed_at(self, hyper: Hyper) -> Self:
        """See `AbstractNoise.fixed_at`."""
        return replace(self, strength=self.strength.fixed_at(hyper))

    def check(self, features: int) -> None:
        """See `AbstractInputNoise.check`."""

    def __call__(self, x: Tensor, hyper: RowHyper, draws: Draws) -> Tensor:
        """See `AbstractInputNoise.__call__`."""
        noise = draws.normal(tuple(x.shape), x)
        return torch.addcmul(x, noise, column(self.strength.rows(hyper, x), x))
