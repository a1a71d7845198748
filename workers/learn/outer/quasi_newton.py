"""Quasi-Newton steps on an outer objective whose every value is a training run."""

from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor

from workers.learn.outer.box import blocked, projected_gradient


@dataclass(frozen=True)
class QuasiNewtonState:
    """The incumbent, what is known of the curvature, and how far a step may go."""

    raw: Tensor
    """[h], the best accepted point."""
    value: float
    gradient: Tensor
    """[h], at the incumbent."""
    steps: Tensor
    """[m, h], differences of points, newest last."""
    changes: Tensor
    """[m, h], differences of their gradients."""
    radius: float
    """No coordinate moves further than this in one step."""
    rejected: int
    """Trials in a row that were no better than the incumbent."""
    small: int
    """Accepted steps in a row whose decrease was too small to matter."""


@final
@dataclass(frozen=True)
class QuasiNewton:
    """Projected L-BFGS with a trust radius; every evaluation, accepted or not, improves the model.

    There is no line search: each point is a training run, and a rejected one still brings a gradient, so the model is
    corrected and a shorter step tried from the incumbent. One dimension is better served by `Path`.

    Source: two-metric projection of Bertsekas (1982) with the two-loop recursion of Nocedal (1980).
    """

    memory: int = 20
    first_step: float = 2.0
    """Largest change of a coordinate in the first step: two is a factor of seven in a strength."""
    largest_step: float = 6.0

    def start(self, raw: Tensor, value: float, gradient: Tensor) -> QuasiNewtonState:
        """Return the state at the first point."""
        none = raw.new_zeros((0, raw.shape[0]))
        return QuasiNewtonState(raw, value, gradient, none, none, self.first_step, 0, 0)

    def advance(
        self,
        state: QuasiNewtonState,
        raw: Tensor,
        value: float,
        gradient: Tensor,
        *,
        noise: float,
        gradient_noise: float,
    ) -> tuple[QuasiNewtonState, bool]:
        """Take in a trial and return the state after it, and whether the trial is the new incumbent.

        Args:
            state: the state that proposed the trial.
            raw: the trial, [h].
            value: the outer objective there.
            gradient: the hypergradient there, [h].
            noise: differences of values below this mean nothing.
            gradient_noise: likewise for coordinates of gradients: their difference is then no curvature.
        """
        step, change = raw - state.raw, gradient - state.gradient
        slope, slope_after = float(torch.dot(state.gradient, step)), float(torch.dot(gradient, step))
        length = float(step.abs().max())
        if float(change.abs().max()) > gradient_noise:
            state = self._remember(state, step, change)
        accepted = value <= state.value + 1e-4 * slope + noise
        if not accepted:
            # The minimiser of the cubic through both ends, kept well inside.
            shorter = length * min(max(_cubic_fraction(state.value, slope, value, slope_after), 0.1), 0.5)
            return replace(state, radius=shorter, rejected=state.rejected + 1), False
        # Still going down at the trial: the radius, not the model, ended the step.
        radius = state.radius
        if slope_after < 0.5 * slope or (slope_after < 0 and length > 0.9 * state.radius):
            radius = max(radius, 2.0 * length)
        elif slope_after <= 0.0:
            radius = max(radius, 1.5 * length)
        radius = min(radius, self.largest_step)
        small = state.small + 1 if state.value - value <= noise else 0
        return replace(state, raw=raw, value=value, gradient=gradient, radius=radius, rejected=0, small=small), True

    def propose(self, state: QuasiNewtonState, low: Tensor, high: Tensor) -> tuple[Tensor, float]:
        """Return the next trial, [h], and the decrease that the model promises there."""
        held = blocked(state.raw, state.gradient, low, high)
        gradient = torch.where(held, 0.0, state.gradient)
        direction = self._direction(state, gradient, held)
        longest = float(direction.abs().max()) if direction.numel() else 0.0
        if longest > state.radius:
            direction = direction * (state.radius / longest)
        trial = torch.minimum(torch.maximum(state.raw + direction, low), high)
        return trial, -0.5 * float(torch.dot(gradient, trial - state.raw))

    def restart(self, state: QuasiNewtonState) -> QuasiNewtonState:
        """Return the state with failures forgotten: they were those of values less accurate than the next."""
        return replace(state, radius=max(state.radius, 0.5 * self.first_step), rejected=0, small=0)

    def is_stationary(self, state: QuasiNewtonState, low: Tensor, high: Tensor, *, tol: float) -> bool:
        """Whether the projected gradient is within `tol` and this is no plateau that was never left."""
        size = float(projected_gradient(state.raw, state.gradient, low, high).abs().max())
        return size == 0.0 or (size <= tol and state.steps.shape[0] > 0)

    def _remember(self, state: QuasiNewtonState, step: Tensor, change: Tensor) -> QuasiNewtonState:
        curvature = float(torch.dot(step, change))
        if curvature <= 1e-10 * float(torch.linalg.vector_norm(step) * torch.linalg.vector_norm(change)):
            return state
        keep = self.memory - 1
        return replace(
            state,
            steps=torch.cat([state.steps[-keep:], step[None]]),
            changes=torch.cat([state.changes[-keep:], change[None]]),
        )

    def _direction(self, state: QuasiNewtonState, gradient: Tensor, held: Tensor) -> Tensor:
        size = float(gradient.abs().max()) if gradient.numel() else 0.0
        if size == 0.0:
            return torch.zeros_like(gradient)
        free = (~held).to(gradient.dtype)
        pairs: list[tuple[Tensor, Tensor, Tensor]] = []
        for s, y in zip(state.steps * free, state.changes * free, strict=True):
            sy = torch.dot(s, y)
            if float(sy) > 1e-10 * float(torch.linalg.vector_norm(s) * torch.linalg.vector_norm(y)):
                pairs.append((s, y, sy))
        if not pairs:
            return -gradient * (state.radius / size)
        d = -gradient
        weights: list[Tensor] = []
        for s, y, sy in reversed(pairs):
            a = torch.dot(s, d) / sy
            weights.append(a)
            d = d - a * y
        s, y, sy = pairs[-1]
        d = d * (sy / torch.dot(y, y))
        for (s, y, sy), a in zip(pairs, reversed(weights), strict=True):
            d = d + (a - torch.dot(y, d) / sy) * s
        return d if float(torch.dot(d, gradient)) < 0 else -gradient * (state.radius / size)


def _cubic_fraction(value0: float, slope0: float, value1: float, slope1: float) -> float:
    """Return where in [0, 1] the cubic through two values and slopes is least; ½ if it has no minimum there."""
    d1 = slope0 + slope1 - 3.0 * (value1 - value0)
    square = d1 * d1 - slope0 * slope1
    if square < 0.0:
        return 0.5
    d2 = square**0.5
    bottom = slope1 - slope0 + 2.0 * d2
    return 0.5 if bottom == 0.0 else 1.0 - (slope1 + d2 - d1) / bottom
