"""Banks of small filters on images: responses with symmetric borders, their transpose, and bounds of their norms."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, final

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import conv2d, conv_transpose2d, fold, unfold

from workers.learn.errors import LearnError

_CACHED: Final = 1 << 18
"""Responses that are worked on at a time: 2 MiB in float64."""

_GRID: Final = 128
"""Frequencies per direction at which a filter's gain is looked at: at least 8 to a period of its finest ripple."""


@final
@dataclass(frozen=True, eq=False)
class FilterBank:
    """A_k x = f_k ∗ E x for k filters, with E the image continued by its mirror image beyond the border.

    The mirror repeats the outermost pixels (half-sample symmetry, a Neumann condition), so that pixels at the border
    are filtered as often as those inside; a response for every pixel. ∗ is a correlation, as in torch.
    """

    filters: Tensor
    """[k, s, s]."""

    def __call__(self, x: Tensor) -> Tensor:
        """Return the responses, [m, k, h, w], of single-channel images [m, 1, h, w]; differentiable in everything.

        Raises:
            LearnError: the images are smaller than the filters' margin.
        """
        return conv2d(self._continued(x), self.filters[:, None])

    def there_and_back(self, x: Tensor, between: Callable[[int, Tensor], Tensor]) -> Tensor:
        """Return Σ_k A_kᵀ u_k, [m, 1, h, w], where u is what `between` makes of the responses A x.

        On a CPU the responses are made, changed and taken back a strip at a time, images and rows of them, so that
        they never leave its cache: they are as many times the pixels as there are filters.

        Args:
            x: single-channel images, [m, 1, h, w].
            between: (number of the strip, its responses [m′, k, h′, w]) ↦ u of the same shape; may work in place.
        """
        continued = self._continued(x)
        filters, more = self.filters[:, None], self.filters.shape[-1] - 1
        result = torch.zeros_like(continued)
        for place, (images, rows) in enumerate(self._strips(x)):
            seen = slice(rows.start, rows.stop + more)
            responses = conv2d(continued[images, :, seen], filters)
            result[images, :, seen] += _returned(between(place, responses), filters)
        return self._folded(result)

    def patches(self, x: Tensor) -> Iterator[Tensor]:
        """Yield what the responses of a strip look at, [m′, s², l], for strip after strip of images [m, 1, h, w].

        `flat` times that are the responses, [m′, k, l], of the strip's l pixels.
        """
        continued, size = self._continued(x), self.filters.shape[-1]
        for images, rows in self._strips(x):
            yield unfold(continued[images, :, rows.start : rows.stop + size - 1], size)

    @property
    def flat(self) -> Tensor:
        """The filters as rows, [k, s²]."""
        return self.filters.flatten(1)

    def transposed(self, u: Tensor) -> Tensor:
        """Return Σ_k A_kᵀ u_k, [m, 1, h, w], of u [m, k, h, w]."""
        return self._folded(conv_transpose2d(u, self.filters[:, None]))

    def transposed_each(self, u: Tensor) -> Tensor:
        """Return A_kᵀ u_k for each k, [m, k, h, w]."""
        return self._folded(conv_transpose2d(u, self.filters[:, None], groups=self.filters.shape[0]))

    def patch_energy(self, x: Tensor) -> Tensor:
        """Return the sum of squares of the pixels that each response looks at, [m, 1, h, w]."""
        ones = torch.ones_like(self.filters[:1, None])
        return conv2d(self._continued(x).square(), ones)

    def norms(self) -> Tensor:
        """Return ‖f_k‖, [k]."""
        found: Tensor = torch.linalg.vector_norm(self.filters, dim=(1, 2))
        return found

    def copies(self, height: int, width: int) -> float:
        """Return ‖E‖²: how often a pixel occurs at most in the continued image."""
        before, after = self._margins
        most = [1 + (after > 0) + (before > 0 and before + after > length) for length in (height, width)]
        return float(most[0] * most[1])

    def gain(self, scales: Tensor) -> float:
        """Return an upper bound of max_ω Σ_k a_k |f̂_k(ω)|² for a [k] ≥ 0, hence of ‖Σ_k a_k A_kᵀ A_k‖ / ‖E‖².

        The gain is a trigonometric polynomial of degree s − 1 in each frequency, hence at most its largest value on a
        grid of M points over cos²(π (s − 1)/M). Responses are a part of those of the continued image on the whole
        plane, whose energy is the integral of the gain times its spectrum.

        Source: Ehlich & Zeller (1964), for the polynomial.
        """
        size = self.filters.shape[-1]
        points = max(_GRID, 16 * size)
        spectrum = torch.fft.rfft2(self.filters, s=(points, points)).abs().square()
        largest = float(torch.einsum("k,kab->ab", scales, spectrum).max())
        return largest / math.cos(math.pi * (size - 1) / points) ** 2

    def _strips(self, x: Tensor) -> Iterator[tuple[slice, slice]]:
        """Yield images and rows whose responses fit a cache together; everything at once on an accelerator."""
        images, height = x.shape[0], x.shape[-2]
        if x.device.type != "cpu":
            yield slice(0, images), slice(0, height)
            return
        of_image = self.filters.shape[0] * height * x.shape[-1]
        together = max(1, _CACHED // of_image)
        rows = height if together > 1 else max(1, min(height, _CACHED * height // of_image))
        for first in range(0, images, together):
            for top in range(0, height, rows):
                yield slice(first, min(first + together, images)), slice(top, min(top + rows, height))

    @property
    def _margins(self) -> tuple[int, int]:
        size = self.filters.shape[-1]
        return (size - 1) // 2, size // 2

    def _continued(self, x: Tensor) -> Tensor:
        """Return E x, [m, 1, h + s − 1, w + s − 1]."""
        before, after = self._margins
        if max(before, after) > min(x.shape[-2:]):
            size = self.filters.shape[-1]
            raise LearnError(f"images of {x.shape[-2]} × {x.shape[-1]} are too small for filters of {size} × {size}")
        for axis in (-2, -1):
            length = x.shape[axis]
            head = x.narrow(axis, 0, before).flip(axis)
            tail = x.narrow(axis, length - after, after).flip(axis)
            x = torch.cat([head, x, tail], axis)
        return x

    def _folded(self, z: Tensor) -> Tensor:
        """Return Eᵀ z: the margins added to the pixels that they repeat."""
        before, after = self._margins
        for axis in (-1, -2):
            length = z.shape[axis] - before - after
            inside = z.narrow(axis, before, length).clone()
            inside.narrow(axis, 0, before).add_(z.narrow(axis, 0, before).flip(axis))
            inside.narrow(axis, length - after, after).add_(z.narrow(axis, before + length, after).flip(axis))
            z = inside
        return z


def _returned(u: Tensor, filters: Tensor) -> Tensor:
    """Return the transpose of the convolution with filters [k, 1, s, s], of u [m, k, h, w]: [m, 1, h + s − 1, …]."""
    if u.device.type != "cpu":
        return conv_transpose2d(u, filters)
    # A product and a sum of shifted images. `conv_transpose2d` does that in float64 too, but takes ten times as long
    # in float32 on a CPU.
    size, more = filters.shape[-1], filters.shape[-1] - 1
    return fold(filters.flatten(1).T @ u.flatten(2), (u.shape[-2] + more, u.shape[-1] + more), size)


def cosine_filters(count: int, size: int, *, seed: int) -> Tensor:
    """Return `count` filters of zero mean and norm 1 to start from, [count, size, size], float64.

    They are the cosines of the lowest frequencies but the constant one, orthogonal to each other, with a tenth of
    noise that the seed draws: equal starts of equal filters would stay equal. There are size² − 1 such cosines; of
    further filters the noise is all there is. Cosines respond sparsely to images, as what is learned does.

    Source: the start of Chen, Ranftl, Pock (2014), "Insights into analysis operator learning", without its noise.
    """
    line = np.arange(size)
    waves = np.cos(np.pi * (line[None] + 0.5) * line[:, None] / size)  # [frequency, pixel]
    pairs = sorted(
        ((u, v) for u in range(size) for v in range(size) if u or v), key=lambda each: (math.hypot(*each), each)
    )
    start = np.zeros((count, size, size))
    for row, (u, v) in zip(start, pairs, strict=False):
        row[:] = np.outer(waves[u], waves[v])
        row /= np.linalg.norm(row)
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence([0x66696C74, seed])))
    noise = generator.standard_normal(start.shape)
    noise -= noise.mean((1, 2), keepdims=True)
    start += 0.1 * noise / np.linalg.norm(noise, axis=(1, 2), keepdims=True)
    return torch.as_tensor(start / np.linalg.norm(start, axis=(1, 2), keepdims=True))
