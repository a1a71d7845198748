"""How the features of a row make an image."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from workers.learn.errors import LearnError


@dataclass(frozen=True)
class ImageShape:
    """A row of height · width · channels numbers, channels last, as image files have them."""

    height: int
    width: int
    channels: int

    @staticmethod
    def of(shape: Sequence[int]) -> "ImageShape":
        """Return the shape of arrays [h, w] or [h, w, c].

        Raises:
            LearnError: it is of another length, or a side is no positive number.
        """
        if len(shape) not in (2, 3) or min(shape) < 1:
            raise LearnError(f"an image has shape [h, w] or [h, w, c]; found {list(shape)}")
        return ImageShape(shape[0], shape[1], shape[2] if len(shape) == 3 else 1)

    @property
    def size(self) -> int:
        """Numbers in a row."""
        return self.height * self.width * self.channels

    def planes(self, rows: Tensor) -> Tensor:
        """Return rows [n, h w c] as planes [n, c, h, w]: a view."""
        self.check(rows.shape[-1])
        return rows.view(-1, self.height, self.width, self.channels).permute(0, 3, 1, 2)

    def rows(self, planes: Tensor) -> Tensor:
        """Return planes [n, c, h, w] as rows [n, h w c]."""
        return planes.permute(0, 2, 3, 1).reshape(planes.shape[0], -1)

    def check(self, features: int) -> None:
        """Raise LearnError unless rows of so many features are such images."""
        if features != self.size:
            raise LearnError(
                f"images of {self.height} x {self.width} x {self.channels} need {self.size} features; found {features}"
            )
