"""A step length that satisfies the strong Wolfe conditions, or their approximate form near a minimum."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from workers.learn.oracle import InnerValue

_MAX_EVALUATIONS = 25


@dataclass(frozen=True)
class Trial:
    """A step length t, and the loss and the slope along the direction there."""

    t: float
    value: float
    slope: float
    at: InnerValue
    w: Tensor


def wolfe(
    evaluate: Callable[[float], Trial],
    start: Trial,
    *,
    first: float,
    armijo: float,
    curvature: float,
    resolution: float,
) -> tuple[Trial | None, int]:
    """Return a trial that satisfies the conditions, or None if rounding hides them, and the evaluations spent.

    A trial is good if φ(t) ≤ φ(0) + armijo · t φ'(0) and |φ'(t)| ≤ curvature · |φ'(0)|. Near a minimum the values
    are equal to working precision and say nothing; then slopes decide: φ(t) ≤ φ(0) + resolution and
    curvature · φ'(0) ≤ φ'(t) ≤ (2 armijo − 1) φ'(0).

    Args:
        evaluate: t ↦ the trial there.
        start: the trial at 0, of negative slope.
        first: the step length to try first.
        armijo: fraction of the promised decrease that is asked for.
        curvature: fraction of the slope that may be left.
        resolution: differences of values below this are noise.

    Source: Nocedal & Wright (2006), algorithms 3.5 and 3.6; Hager & Zhang (2005) for the approximate conditions.
    """
    low, high = start, None
    t = first
    for count in range(1, _MAX_EVALUATIONS + 1):
        trial = evaluate(t)
        if not math.isfinite(trial.value) or not math.isfinite(trial.slope):
            high, t = trial, 0.1 * t + 0.9 * low.t
            continue
        decrease = trial.value <= start.value + armijo * trial.t * start.slope
        flat = trial.value <= start.value + resolution and trial.slope <= (2 * armijo - 1) * start.slope
        if (decrease or flat) and abs(trial.slope) <= curvature * abs(start.slope):
            return trial, count
        worse = high is not None and trial.value > low.value + resolution
        if not (decrease or flat) or worse or trial.slope >= 0:
            high = trial
        else:
            low = trial
        if high is None:
            t = min(max(_cubic(low if low is not trial else start, trial), 2.0 * t), 10.0 * t)
            continue
        width = high.t - low.t
        if width <= 1e-16 * max(1.0, high.t):
            break
        inside = _cubic(low, high) if math.isfinite(high.value) else low.t + 0.5 * width
        t = min(max(inside, low.t + 0.1 * width), high.t - 0.1 * width)
    return (low, count) if low is not start else (None, count)


def _cubic(a: Trial, b: Trial) -> float:
    """Return the minimiser of the cubic through two values and slopes; the midpoint, or a leap, if there is none."""
    span = b.t - a.t
    if span == 0.0:
        return b.t
    d1 = a.slope + b.slope - 3.0 * (a.value - b.value) / (a.t - b.t)
    square = d1 * d1 - a.slope * b.slope
    if square < 0.0:
        return a.t + 0.5 * span if b.slope >= 0 else b.t + 10.0 * span
    d2 = math.copysign(math.sqrt(square), span)
    bottom = b.slope - a.slope + 2.0 * d2
    if bottom == 0.0:
        return a.t + 0.5 * span if b.slope >= 0 else b.t + 10.0 * span
    return b.t - span * (b.slope + d2 - d1) / bottom
