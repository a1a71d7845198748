"""Dropout of features and of hidden units."""

from dataclasses import dataclass, replace
from typing import Self, final

from torch import Tensor

from workers.learn.hyperparameters import Hyper
from workers.learn.noises.base import AbstractInputNoise, AbstractNoise, RowHyper, Strength, column
from workers.learn.noises.draws import Draws


@final
@dataclass(frozen=True, eq=False)
class InputDropout(AbstractInputNoise):
    """Sets each feature to zero with probability p, and divides the others by 1 − p."""

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
        return x * _factors(x, self.strength.rows(hyper, x), draws)


@final
@dataclass(frozen=True, eq=False)
class Dropout(AbstractNoise):
    """Drops what goes into every linear map but the first: units of dense layers, whole channels of images.

    The strength is one probability, or one for each hidden layer: number l is that of what comes out of layer l.

    Source: Srivastava et al. (2014); Tompson et al. (2015) for channels.
    """

    strength: Strength

    @property
    def strengths(self) -> tuple[Strength, ...]:
        """See `AbstractNoise.strengths`."""
        return (self.strength,)

    def fixed_at(self, hyper: Hyper) -> Self:
        """See `AbstractNoise.fixed_at`."""
        return replace(self, strength=self.strength.fixed_at(hyper))

    def __call__(self, x: Tensor, layer: int, hyper: RowHyper, draws: Draws) -> Tensor:
        """Return what the outputs x of hidden layer `layer` are multiplied by.

        Args:
            x: [n, width] or [n, c, h, w].
            layer: number of the hidden layer.
            hyper: strengths.
            draws: random numbers.

        Returns:
            0 or 1/(1 − p), of shape [n, width] or [n, c, 1, 1].
        """
        values = self.strength.rows(hyper, x)
        return _factors(x, values if values.ndim == 1 else values[:, layer], draws)


def _factors(x: Tensor, probability: Tensor, draws: Draws) -> Tensor:
    p = column(probability, x)
    drawn = draws.uniform((*x.shape[:2], *(1,) * (x.ndim - 2)), x)
    return drawn.ge_(p).div_(1.0 - p)
