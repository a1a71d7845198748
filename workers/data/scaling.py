"""Features brought to a common scale by what the training rows say."""

from dataclasses import dataclass
from typing import Final

import numpy as np
import scipy.sparse
from numpy.typing import NDArray

from workers.data.columns import Numbers
from workers.data.errors import BadData

_BLOCK: Final = 8 << 20
"""Numbers handled at once, so that no second copy of the data is made."""


@dataclass(frozen=True, eq=False)
class Scaler:
    """x ↦ (x − mean) / scale, feature by feature; kept with the weights, so that they apply to raw features."""

    mean: Numbers
    """[d]; zeros for sparse features, which centring would fill."""
    scale: Numbers
    """[d]; 1 for a feature that is constant on the training rows."""


def standardized(x: Numbers, train: NDArray[np.int64]) -> tuple[Numbers, Scaler]:
    """Give every column mean 0 and variance 1 on the rows `train`; `x` [n, d] is changed in place and returned.

    Raises:
        BadData: the variance of a feature is beyond what float64 holds.
    """
    n, d = train.size, x.shape[1]
    step = max(1, _BLOCK // max(1, d))
    blocks = [train[start : start + step] for start in range(0, n, step)]
    with np.errstate(over="ignore", invalid="ignore"):
        mean = sum((x[rows].sum(0) for rows in blocks), start=np.zeros(d)) / n
        # Two passes: E[x²] − E[x]² would lose all digits of a feature with a large mean.
        variance = sum((np.square(x[rows] - mean).sum(0) for rows in blocks), start=np.zeros(d)) / n
        scaler = Scaler(mean, _scale(mean, variance, n))
    return scaled_by(x, scaler), scaler


def scaled_by(x: Numbers, scaler: Scaler) -> Numbers:
    """Bring every column to a given scale; `x` [n, d] is changed in place and returned."""
    step = max(1, _BLOCK // max(1, x.shape[1]))
    with np.errstate(over="ignore", invalid="ignore"):
        for start in range(0, x.shape[0], step):
            rows = slice(start, start + step)
            x[rows] = (x[rows] - scaler.mean) / scaler.scale
    return x


def scaled(x: scipy.sparse.csr_array, train: NDArray[np.int64]) -> tuple[scipy.sparse.csr_array, Scaler]:
    """Give every column of a sparse x [n, d] variance 1 on the rows `train`, without centring it.

    Raises:
        BadData: the variance of a feature is beyond what float64 holds.
    """
    n, d = train.size, x.shape[1]
    rows = x[train]
    with np.errstate(over="ignore", invalid="ignore"):
        mean = np.asarray(rows.sum(axis=0)).reshape(d) / n
        stored = np.bincount(rows.indices, minlength=d)
        deviations = np.bincount(rows.indices, np.square(rows.data - mean[rows.indices]), minlength=d)
        variance = (deviations + (n - stored) * np.square(mean)) / n
        scale = _scale(mean, variance, n)
        data = x.data / scale[x.indices]
    return scipy.sparse.csr_array((data, x.indices, x.indptr), shape=x.shape), Scaler(np.zeros(d), scale)


def _scale(mean: Numbers, variance: Numbers, n: int) -> Numbers:
    broken = int((~np.isfinite(variance)).sum())
    if broken:
        raise BadData(f"{broken} features hold values so large that their variance overflows: scale them down first.")
    # Rounding leaves a variance of about (n ε mean)² to a constant; Chan, Golub & LeVeque (1983), (3.6).
    epsilon = np.finfo(np.float64).eps
    is_constant = variance <= n * epsilon * variance + np.square(n * mean * epsilon)
    return np.where(is_constant, 1.0, np.sqrt(np.where(is_constant, 1.0, variance)))
