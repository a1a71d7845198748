"""From arrays and settings to a denoising problem."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from workers.learn.errors import LearnError
from workers.learn.problems.denoising import DenoisingProblem
from workers.learn.regularizers.image import AbstractImageRegularizer

# Keeps these draws apart from any others that are made from the same seed.
_STREAM = 0x6E6F6973


@dataclass(frozen=True, eq=False)
class Pairs:
    """Noisy images and true ones, both [n, c, h, w], float64, about in 0 … 1."""

    noisy: np.ndarray
    truth: np.ndarray


def as_images(pixels: np.ndarray) -> np.ndarray:
    """Return images [n, c, h, w], float64, of arrays [n, h, w] or [n, h, w, c]; whole numbers mean 0 … 255.

    Raises:
        LearnError: another shape, or numbers that are not finite.
    """
    if pixels.ndim not in (3, 4) or (pixels.ndim == 4 and pixels.shape[-1] not in (1, 3)) or pixels.size == 0:
        raise LearnError(f"images come as [n, h, w] or [n, h, w, 3]; found the shape {pixels.shape}")
    stacked = pixels[:, None] if pixels.ndim == 3 else np.moveaxis(pixels, -1, 1)
    whole = np.issubdtype(pixels.dtype, np.integer)
    images = np.ascontiguousarray(stacked, dtype=np.float64) / (255.0 if whole else 1.0)
    if not np.isfinite(images).all():
        raise LearnError("images must be finite numbers")
    return images


def noisy(images: np.ndarray, sigma: float, seed: int, *, indices: Sequence[int] | None = None) -> np.ndarray:
    """Return images with Gaussian noise of standard deviation `sigma`, not clipped, of the same shape.

    The noise of an image depends on `seed` and the image's own index alone: not on the batch it comes in, nor on
    dtype or device.

    Args:
        images: [n, …].
        sigma: in units of the images.
        seed: not negative.
        indices: of the images within their data set; 0 … n − 1 if not given.
    """
    numbers = range(len(images)) if indices is None else indices
    if len(numbers) != len(images):
        raise LearnError(f"expected an index for each of {len(images)} images; found {len(numbers)}")
    result = np.array(images, dtype=np.float64)
    for image, index in zip(result, numbers, strict=True):
        generator = np.random.Generator(np.random.Philox(np.random.SeedSequence([_STREAM, seed, int(index)])))
        image += sigma * generator.standard_normal(image.shape)
    return result


def denoising_problem(
    pairs: Pairs, regularizer: AbstractImageRegularizer, *, dtype: torch.dtype, device: torch.device | str
) -> DenoisingProblem:
    """Build a problem, everything moved to the device once."""
    noisy_images = on_device(pairs.noisy, dtype=dtype, device=device)
    return DenoisingProblem(noisy_images, on_device(pairs.truth, dtype=dtype, device=device), regularizer)


def on_device(images: np.ndarray, *, dtype: torch.dtype, device: torch.device | str) -> Tensor:
    """Return images as a tensor of that dtype on that device."""
    return torch.as_tensor(images).to(dtype=dtype, device=torch.device(device))
