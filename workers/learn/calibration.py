"""How far predicted probabilities and intervals can be believed."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from workers.learn.errors import LearnError

BINS: Final = 15
"""Of equal width, as in Guo et al. (2017)."""

LEVELS: Final = (0.5, 0.8, 0.95)
"""Of the intervals whose coverage is counted."""


@dataclass(frozen=True)
class Bin:
    """The predictions whose confidence lies in (low, high]; the first bin includes its lower end."""

    low: float
    high: float
    count: int
    confidence: float
    """Mean over the bin; NaN of an empty one."""
    accuracy: float


@dataclass(frozen=True)
class Calibration:
    """Proper scores of class probabilities, and the error of confidences."""

    nll: float
    """Mean of −log p_y, in nats; infinite where a class that occurs was given no probability."""
    brier: float
    """Mean over rows of Σ_c (p_c − 1{y = c})², between 0 and 2."""
    ece: float
    """Expected calibration error: Σ_bins (count/n) |accuracy − confidence|, confidence the largest probability."""
    accuracy: float
    bins: tuple[Bin, ...]


@dataclass(frozen=True)
class Coverage:
    """How often a central interval held the target."""

    level: float
    covered: float
    """Fraction of targets inside."""
    width: float
    """Mean width of the intervals."""


@dataclass(frozen=True)
class GaussianCalibration:
    """Scores of predictions N(mean, std²)."""

    nll: float
    """Mean of −log N(y; mean, std²), in nats per row, summed over outputs."""
    rmse: float
    """Root of the mean over rows of ‖y − mean‖²."""
    coverage: tuple[Coverage, ...]


def class_calibration(logits: Tensor, y: Tensor, *, bins: int = BINS) -> Calibration:
    """Return scores of softmax probabilities.

    Args:
        logits: [n, C], or log-odds of class 1, [n, 1]; any shift of a row is the same prediction. Log-probabilities are
            logits too.
        y: class numbers, [n].
        bins: number of bins of equal width between 0 and 1.

    Raises:
        LearnError: shapes that do not fit, no rows, or class numbers outside 0 … C − 1.

    Source: Naeini, Cooper & Hauskrecht (2015) and Guo et al. (2017), equations (2) to (5); Brier (1950).
    """
    if logits.ndim != 2 or logits.shape[:1] != y.shape or y.numel() == 0 or bins < 1:
        raise LearnError(f"expected logits [n, C] and classes [n]; found {tuple(logits.shape)} and {tuple(y.shape)}")
    z = logits.detach().double()
    if z.shape[1] == 1:
        z = torch.cat([torch.zeros_like(z), z], dim=1)
    y = y.long()
    if int(y.min()) < 0 or int(y.max()) >= z.shape[1]:
        raise LearnError(f"classes are numbered 0 … {z.shape[1] - 1}; found {int(y.min())} … {int(y.max())}")
    logs = torch.log_softmax(z, dim=1)
    probabilities = logs.exp()
    confidence, chosen = probabilities.max(1)
    correct = (chosen == y).double()
    squares = probabilities.square().sum(1) - 2.0 * probabilities.gather(1, y[:, None]).squeeze(1) + 1.0
    found = _bins(confidence, correct, bins)
    n = y.numel()
    return Calibration(
        nll=float(-logs.gather(1, y[:, None]).mean()),
        brier=float(squares.mean()),
        ece=sum(part.count / n * abs(part.accuracy - part.confidence) for part in found if part.count),
        accuracy=float(correct.mean()),
        bins=found,
    )


def gaussian_calibration(
    mean: Tensor, std: Tensor, y: Tensor, *, levels: Sequence[float] = LEVELS
) -> GaussianCalibration:
    """Return scores of Gaussian predictions and the coverage of their central intervals.

    Args:
        mean: [n] or [n, c].
        std: standard deviations of the targets, noise included: positive, of a shape that expands to that of `mean`.
        y: targets, of the shape of `mean`.
        levels: probabilities that the intervals ought to hold.

    Raises:
        LearnError: shapes that do not fit, no rows, or deviations or levels that are none.
    """
    if mean.shape != y.shape or y.numel() == 0:
        raise LearnError(f"expected means and targets of one shape; found {tuple(mean.shape)} and {tuple(y.shape)}")
    mean, y = mean.detach().double(), y.double()
    std = std.detach().double().expand(mean.shape)
    if not bool((std > 0.0).all()) or not all(0.0 < level < 1.0 for level in levels):
        raise LearnError("standard deviations must be positive and levels between 0 and 1")
    error = (y - mean) / std
    n = y.shape[0]
    nll = 0.5 * error.square() + std.log() + 0.5 * math.log(2.0 * math.pi)
    found = []
    for level in levels:
        half = math.sqrt(2.0) * float(torch.erfinv(torch.tensor(level, dtype=torch.float64)))
        found.append(Coverage(level, float((error.abs() <= half).double().mean()), float((2.0 * half * std).mean())))
    return GaussianCalibration(float(nll.sum()) / n, math.sqrt(float((y - mean).square().sum()) / n), tuple(found))


def _bins(confidence: Tensor, correct: Tensor, bins: int) -> tuple[Bin, ...]:
    # Intervals are open below: a confidence of exactly 3/15 belongs to the third bin.
    place = (torch.ceil(confidence * bins) - 1).long().clamp(0, bins - 1)
    zeros = torch.zeros(bins, dtype=torch.float64, device=confidence.device)
    counts = zeros.index_add(0, place, torch.ones_like(confidence))
    confidences = (zeros.index_add(0, place, confidence) / counts).tolist()  # 0/0 is NaN, which is meant
    accuracies = (zeros.index_add(0, place, correct) / counts).tolist()
    return tuple(
        Bin(index / bins, (index + 1) / bins, int(count), confidences[index], accuracies[index])
        for index, count in enumerate(counts.tolist())
    )
