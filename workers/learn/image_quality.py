"""How near an image is to the true one: peak signal-to-noise ratio and structural similarity."""

import math

import torch
from torch import Tensor
from torch.nn.functional import conv2d

from workers.learn.errors import LearnError

_WINDOW = 11
_SIGMA = 1.5
_K1, _K2 = 0.01, 0.03
# An exact copy has no error; a finite number keeps means of several images meaningful.
_LARGEST_PSNR = 200.0


def psnr(x: Tensor, truth: Tensor) -> Tensor:
    """Return 10 log₁₀(1 / mean squared error) of each image, [n] in decibels, at most 200; the data range is 1.

    Args:
        x: images, [n, c, h, w].
        truth: of the same shape.
    """
    _check(x, truth)
    error = (x.double() - truth.double()).square().mean((1, 2, 3))
    return -10.0 * error.clamp_min(10.0 ** (-_LARGEST_PSNR / 10.0)).log10()


def ssim(x: Tensor, truth: Tensor) -> Tensor:
    """Return the mean structural similarity of each image, [n]; the data range is 1.

    Means, variances and covariance are taken in a Gaussian window of 11 × 11 pixels and σ = 1.5, wherever it fits
    into the image, each channel by itself; in smaller images it is the largest odd window that fits.

    Args:
        x: images, [n, c, h, w].
        truth: of the same shape.

    Source: Wang, Bovik, Sheikh, Simoncelli (2004).
    """
    _check(x, truth)
    a, b = x.double(), truth.double()
    mean_a, mean_b = _blur(a), _blur(b)
    variance_a = _blur(a * a) - mean_a.square()
    variance_b = _blur(b * b) - mean_b.square()
    covariance = _blur(a * b) - mean_a * mean_b
    c1, c2 = _K1**2, _K2**2
    luminance = (2.0 * mean_a * mean_b + c1) / (mean_a.square() + mean_b.square() + c1)
    structure = (2.0 * covariance + c2) / (variance_a + variance_b + c2)
    return (luminance * structure).mean((1, 2, 3))


def quality(x: Tensor, truth: Tensor) -> dict[str, float]:
    """Return `psnr` and `ssim`, the means over images [n, c, h, w]."""
    return {"psnr": float(psnr(x, truth).mean()), "ssim": float(ssim(x, truth).mean())}


def _blur(x: Tensor) -> Tensor:
    """Return the Gaussian mean wherever the window fits, along columns and then rows."""
    n, c, height, width = x.shape
    single = x.reshape(n * c, 1, height, width)
    blurred = conv2d(single, _window(height, x)[None, None, :, None])
    blurred = conv2d(blurred, _window(width, x)[None, None, None, :])
    return blurred.reshape(n, c, *blurred.shape[-2:])


def _window(length: int, like: Tensor) -> Tensor:
    size = min(_WINDOW, length - 1 + length % 2)
    at = torch.arange(size, dtype=like.dtype, device=like.device) - size // 2
    weights = torch.exp(-at.square() / (2.0 * _SIGMA**2))
    return weights / weights.sum()


def _check(x: Tensor, truth: Tensor) -> None:
    if x.shape != truth.shape or x.ndim != 4 or math.prod(x.shape) == 0:
        raise LearnError(
            f"expected two batches of images [n, c, h, w]; found {tuple(x.shape)} and {tuple(truth.shape)}"
        )
