"""Changes of an image that leave what it shows as it is, on whole batches at a time."""

from dataclasses import dataclass, replace
from typing import Self, final

import torch
from torch import Tensor

from workers.learn.hyperparameters import Hyper
from workers.learn.models.image_shape import ImageShape
from workers.learn.noises.base import AbstractInputNoise, RowHyper, Strength, column
from workers.learn.noises.draws import Draws


@final
@dataclass(frozen=True, eq=False)
class Translation(AbstractInputNoise):
    """Moves each image by up to a fraction t of its height and of its width, uniformly, and not by whole pixels.

    Between pixels it interpolates linearly; beyond the border is what is on the border.
    """

    strength: Strength
    shape: ImageShape

    @property
    def strengths(self) -> tuple[Strength, ...]:
        """See `AbstractNoise.strengths`."""
        return (self.strength,)

    def fixed_at(self, hyper: Hyper) -> Self:
        """See `AbstractNoise.fixed_at`."""
        return replace(self, strength=self.strength.fixed_at(hyper))

    def check(self, features: int) -> None:
        """See `AbstractInputNoise.check`."""
        self.shape.check(features)

    def __call__(self, x: Tensor, hyper: RowHyper, draws: Draws) -> Tensor:
        """See `AbstractInputNoise.__call__`."""
        reach = column(self.strength.rows(hyper, x), x)
        by = draws.signed((x.shape[0], 2), x) * reach
        return shifted(x, self.shape, down=by[:, 0] * self.shape.height, right=by[:, 1] * self.shape.width)


@final
@dataclass(frozen=True, eq=False)
class Brightness(AbstractInputNoise):
    """Adds one number to all pixels of an image, uniform between −b and b, in the units of the features."""

    strength: Strength
    shape: ImageShape

    @property
    def strengths(self) -> tuple[Strength, ...]:
        """See `AbstractNoise.strengths`."""
        return (self.strength,)

    def fixed_at(self, hyper: Hyper) -> Self:
        """See `AbstractNoise.fixed_at`."""
        return replace(self, strength=self.strength.fixed_at(hyper))

    def check(self, features: int) -> None:
        """See `AbstractInputNoise.check`."""
        self.shape.check(features)

    def __call__(self, x: Tensor, hyper: RowHyper, draws: Draws) -> Tensor:
        """See `AbstractInputNoise.__call__`."""
        return x + draws.signed((x.shape[0], 1), x) * column(self.strength.rows(hyper, x), x)


@final
@dataclass(frozen=True, eq=False)
class Contrast(AbstractInputNoise):
    """Multiplies an image's differences from its own mean by a factor, uniform between 1 − c and 1 + c."""

    strength: Strength
    shape: ImageShape

    @property
    def strengths(self) -> tuple[Strength, ...]:
        """See `AbstractNoise.strengths`."""
        return (self.strength,)

    def fixed_at(self, hyper: Hyper) -> Self:
        """See `AbstractNoise.fixed_at`."""
        return replace(self, strength=self.strength.fixed_at(hyper))

    def check(self, features: int) -> None:
        """See `AbstractInputNoise.check`."""
        self.shape.check(features)

    def __call__(self, x: Tensor, hyper: RowHyper, draws: Draws) -> Tensor:
        """See `AbstractInputNoise.__call__`."""
        by = draws.signed((x.shape[0], 1), x) * column(self.strength.rows(hyper, x), x)
        return torch.lerp(x, x.mean(1, keepdim=True), -by)


def shifted(x: Tensor, shape: ImageShape, *, down: Tensor, right: Tensor) -> Tensor:
    """Return images, [n, d], moved by numbers of pixels, [n] each.

    Linear interpolation along one axis is a matrix with two numbers in each row; moving a batch is two batched
    products with such matrices.
    """
    rows = _interpolation(down, shape.height)
    columns = _interpolation(right, shape.width)
    if shape.channels == 1:
        moved = rows @ x.view(-1, shape.height, shape.width) @ columns.mT
        return moved.reshape(x.shape)
    planes = rows[:, None] @ shape.planes(x) @ columns[:, None].mT
    return shape.rows(planes)


def _interpolation(by: Tensor, size: int) -> Tensor:
    """Return matrices [n, size, size] that move a line of pixels by `by` [n]."""
    place = torch.arange(size, dtype=by.dtype, device=by.device)
    source = (place - by[:, None]).clamp_(0.0, size - 1.0)
    return (source[:, :, None] - place).abs_().neg_().add_(1.0).clamp_(min=0.0)
