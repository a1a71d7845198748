"""Squares cut out of images."""

from dataclasses import dataclass, replace
from typing import Self, final

import torch
from torch import Tensor

from workers.learn.errors import LearnError
from workers.learn.hyperparameters import Hyper
from workers.learn.models.image_shape import ImageShape
from workers.learn.noises.base import AbstractInputNoise, RowHyper, Strength
from workers.learn.noises.draws import Draws
from workers.learn.transforms import Whole


@final
@dataclass(frozen=True, eq=False)
class Cutout(AbstractInputNoise):
    """Sets `holes` squares with sides of `length` pixels to zero; they may overlap, and reach over the border.

    Both are whole numbers, so training has no derivative in them at all.

    Source: DeVries & Taylor (2017), section 3.
    """

    length: Strength
    holes: Strength
    shape: ImageShape

    def __post_init__(self) -> None:
        for strength in self.strengths:
            if not isinstance(strength.transform, Whole) or strength.transform.low < 0 or strength.shape != ():
                raise LearnError(f"{strength.name} is one whole number from 0 on")

    @property
    def strengths(self) -> tuple[Strength, ...]:
        """See `AbstractNoise.strengths`."""
        return (self.length, self.holes)

    def fixed_at(self, hyper: Hyper) -> Self:
        """See `AbstractNoise.fixed_at`."""
        return replace(self, length=self.length.fixed_at(hyper), holes=self.holes.fixed_at(hyper))

    def check(self, features: int) -> None:
        """See `AbstractInputNoise.check`."""
        self.shape.check(features)

    def __call__(self, x: Tensor, hyper: RowHyper, draws: Draws) -> Tensor:
        """See `AbstractInputNoise.__call__`."""
        assert isinstance(self.holes.transform, Whole)  # noqa: S101 (by __post_init__)
        n, most = x.shape[0], self.holes.transform.high
        length, holes = self.length.rows(hyper, x)[:, None], self.holes.rows(hyper, x)[:, None]
        corner = draws.uniform((n, 2, most), x)
        is_cut = torch.arange(most, dtype=x.dtype, device=x.device) < holes
        down = self._side(corner[:, 0], length, self.shape.height) & is_cut[:, :, None]
        right = self._side(corner[:, 1], length, self.shape.width)
        # A pixel is kept if no hole has both its row and its column: counting them is a product of matrices.
        hits = torch.matmul(down.mT.to(x.dtype), right.to(x.dtype))
        kept = hits.eq(0.0).to(x.dtype).reshape(n, -1, 1)
        return (x.view(n, -1, self.shape.channels) * kept).view_as(x)

    def _side(self, fraction: Tensor, length: Tensor, size: int) -> Tensor:
        """Return which of `size` places the holes cover, [n, holes, size]; their centres are pixels, uniformly."""
        first = torch.floor(fraction * size) - torch.floor(length / 2.0)
        place = torch.arange(size, dtype=fraction.dtype, device=fraction.device)
        return (place >= first[:, :, None]) & (place < (first + length)[:, :, None])
