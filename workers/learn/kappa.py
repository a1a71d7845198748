"""How often the data count beside the prior."""

from typing import Literal

from workers.learn.errors import LearnError

Kappa = float | Literal["auto"]
"""A number, or "auto": as many times as there are weights for a row, and at least once."""


def kappa_of(kappa: Kappa, *, weights: int, rows: int) -> float:
    """Return κ: for "auto" max(1, D/n), D weights that have a prior, and n training rows.

    D/n is what Harvey, Petrov & Hughes (2025) take; below one it would under-fit where data are plenty (on diabetes,
    κ = 0.0226, the noise comes out as 0.89 instead of 0.49), so there the data count once.

    Raises:
        LearnError: a number that is not positive.
    """
    if kappa == "auto":
        return max(1.0, weights / rows)
    if not kappa > 0.0:
        raise LearnError(f"kappa must be positive; found {kappa}")
    return float(kappa)
