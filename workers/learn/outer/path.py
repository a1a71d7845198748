"""One hyperparameter: the curve of weights that training would give, and where the outer loss is least on it."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import final

from torch import Tensor

_SURE = 3.0
"""A slope of so many times its uncertainty has the right sign."""


@dataclass(frozen=True)
class PathPoint:
    """Weights on the path, or near it, and the way on."""

    raw: float
    weights: Tensor
    """[p]."""
    tangent: Tensor
    """dw/draw, [p]: the solution of H s = −∂²_{w raw} inner."""
    value: float
    """Outer loss."""
    slope: float
    """d outer / d raw."""


@dataclass(frozen=True)
class PathState:
    """What is known of the search besides its points."""

    below: float
    """Raw values down to here may be the best; at the box's end at first."""
    above: float
    foreseen: float
    """Slope that the path told of the coming trial."""
    doubt: float
    """How far it may be off."""
    verifying: bool
    """Whether it is believed already, and the trial only a test of it."""
    target: float
    """Error that the slope at the coming trial may have."""
    surprise: float | None
    """By how much the last trial's slope differed from what was foreseen; None before the second point."""
    length: float
    """How far away that trial was."""
    reach: float
    """No step is longer."""
    rejected: int
    """Trials in a row that were no better than the best point."""

    @staticmethod
    def start(low: float, high: float, reach: float) -> "PathState":
        """Return the state at the first point."""
        return PathState(
            low, high, 0.0, 0.0, verifying=False, target=0.0, surprise=None, length=1.0, reach=reach, rejected=0
        )


@dataclass(frozen=True)
class Sight:
    """Where a path seems to lead."""

    raw: float
    """Where the slope vanishes, or as far as the reach goes."""
    curvature: float
    slope: float
    """Slope foreseen there: zero but for the precision of the search."""
    looks: int
    """Evaluations of the outer loss and its gradient that were spent."""


@final
@dataclass(frozen=True)
class Path:
    """Continuation: from a point and its tangent the outer loss can be looked at along the way, untrained.

    Training costs dozens of gradients, a look one. So each trial is where the outer loss would be least if the
    weights went on as they do; the slope that is then found there tells how far such forecasts can be trusted.

    Source: predictor-corrector continuation as in Allgower & Georg (1990), chapter 2; regularization paths with
    approximate solves as in Pedregosa (2016).
    """

    first_reach: float = 3.0
    """Longest first step: a factor of twenty in a strength."""
    largest_reach: float = 6.0
    slowing: float = 0.1
    """Decline of the tangent per unit of raw that is assumed as long as only one is known."""
    precision: float = 0.1
    """Of a step, relative to its length."""
    most_looks: int = 5

    def at(self, point: PathPoint, other: PathPoint | None, raw: float) -> tuple[Tensor, Tensor]:
        """Return weights and tangent, both [p], that the path through `point` has at `raw`.

        With a second point that is far enough apart for a difference of tangents to mean something, and not much
        nearer than `raw` is, the tangent changes linearly.
        """
        step = raw - point.raw
        apart = math.inf if other is None else point.raw - other.raw
        if other is not None and abs(apart) > 0.2 and abs(step) <= 1.5 * abs(apart):
            bend = (point.tangent - other.tangent) / apart
            return point.weights + step * point.tangent + (0.5 * step * step) * bend, point.tangent + step * bend
        growth = math.exp(min(-self.slowing * step, 20.0))
        return point.weights + ((1.0 - growth) / self.slowing) * point.tangent, growth * point.tangent

    def look(
        self,
        slope_at: Callable[[float], float],
        point: PathPoint,
        other: PathPoint | None,
        *,
        ends: tuple[float, float],
        reach: float,
        resolution: float,
    ) -> Sight:
        """Return where the slope along the path vanishes, by regula falsi, downhill from `point`.

        Args:
            slope_at: the slope of the outer loss at a raw value, along the path.
            point: where to start.
            other: another point, for a first guess.
            ends: the least and the largest raw value to consider.
            reach: the longest step.
            resolution: how precisely to look; for a step of many times that, a tenth of the step.
        """
        down = point.slope > 0.0
        end = max(ends[0], point.raw - reach) if down else min(ends[1], point.raw + reach)
        if end == point.raw or point.slope == 0.0:
            return Sight(point.raw, 0.0, point.slope, 0)

        def inside(raw: float) -> float:
            return min(max(raw, end), point.raw) if down else max(min(raw, end), point.raw)

        guess = point.raw + 0.7 * (end - point.raw)
        if other is not None and other.raw != point.raw:
            secant = (point.slope - other.slope) / (point.raw - other.raw)
            if secant > 0.0:
                guess = inside(point.raw - point.slope / secant)
        known, at_known, curvature, error = point.raw, point.slope, 0.0, 0.0
        looks = 0
        while looks < self.most_looks:
            looks += 1
            found = slope_at(guess)
            if guess == known or not math.isfinite(found):
                break
            curvature = (found - at_known) / (guess - known)
            coming = inside(guess - found / curvature) if curvature > 0.0 else end
            error = found + curvature * (coming - guess)
            if found * at_known > 0.0 or abs(found) <= abs(at_known):
                known, at_known = guess, found
            moved, guess = abs(coming - guess), coming
            if moved <= max(0.3 * resolution, self.precision * abs(guess - point.raw)):
                break
        return Sight(guess, curvature, error, looks)

    def take(
        self, state: PathState, best: PathPoint, found: PathPoint, *, noise: float, uncertainty: float
    ) -> tuple[PathState, bool]:
        """Take in a trial; return the state after it, and whether the trial is the new best.

        Args:
            state: the state that proposed the trial.
            best: the best point before it.
            found: the trial.
            noise: differences of values below this mean nothing.
            uncertainty: of the slope that was found.
        """
        length = abs(found.raw - best.raw)
        surprise = max(abs(found.slope - state.foreseen), uncertainty)
        state = replace(state, surprise=surprise, length=max(length, 1e-12))
        if found.value > best.value + noise:
            below = max(state.below, found.raw) if found.raw < best.raw else state.below
            above = min(state.above, found.raw) if found.raw > best.raw else state.above
            return replace(state, below=below, above=above, reach=0.5 * length, rejected=state.rejected + 1), False
        below, above = state.below, state.above
        if found.slope < -_SURE * uncertainty:
            below = max(below, found.raw)
        elif found.slope > _SURE * uncertainty:
            above = min(above, found.raw)
        longer = length > 0.9 * state.reach and found.slope * best.slope > 0.0
        reach = min(2.0 * state.reach, self.largest_reach) if longer else max(state.reach, min(length, 1.0))
        return replace(state, below=below, above=above, reach=reach, rejected=0), True
