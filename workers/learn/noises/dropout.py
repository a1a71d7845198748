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
        return _dropped(x, self.strength.rows(hyper, x), draws)


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
        """Return what goes on from hidden layer `layer`, of the shape of `x`: [n, width] or [n, c, h, w]."""
        values = self.strength.rows(hyper, x)
        return _dropped(x, values if values.ndim == 1 else values[:, layer], draws)


def _dropped(x: Tensor, probability: Tensor, draws: Draws) -> Tensor:
    p = column(probability, x)
    shape = (*x.shape[:2], *(1,) * (x.ndim - 2))
    kept = draws.uniform(shape, x).ge(p).to(x.dtype)
    return x * kept.div_(1.0 - p)
