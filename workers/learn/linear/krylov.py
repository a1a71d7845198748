"""What the iterations share: scaling, the warm start, and residuals that are measured."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from workers.learn.linear.base import LinearSolution, MatVec, Outcome
from workers.learn.linear.vectors import check_vectors, norm, without_iterating


@dataclass(frozen=True)
class Cycle:
    """An approximate solution d of H d = r, by a recurrence that was started at zero."""

    x: Tensor
    steps: int
    outcome: Outcome
    residual: float = math.inf
    """Norm of the residual that the recurrence carried along."""
    drift: float = math.inf
    """Bound of what rounding can have put between that and the true one; infinite: not known."""


StartCycle = Callable[[MatVec, Tensor, float, int], Cycle]
"""(matvec, r, tol, most products) ↦ Cycle; at least one iteration, whatever `tol`."""


def solve_in_cycles(
    start: StartCycle, matvec: MatVec, b: Tensor, *, x0: Tensor | None, tol: float, max_steps: int
) -> LinearSolution:
    """Solve H x = b by a recurrence, measure its residual, and restart it where the recurrence had drifted.

    The residual that a recurrence carries along departs from the true one by rounding; in float32 it can go on
    falling by orders of magnitude after the true one has stopped. Unless its drift is bounded by a hundredth of
    the tolerance, or of a residual that missed it, each cycle therefore ends with one product that measures, and if
    the recurrence was wrong a new one starts from the measured residual for as long as a cycle at least halves it.

    The system is solved for b/‖b‖, so that a right-hand side of 1e-30 does not underflow in float32. A warm
    start is scaled by argmin_t ‖b − t H x0‖ = ⟨b, H x0⟩/‖H x0‖², which makes it never worse than none.
    """
    check_vectors(b, x0)
    b = b.detach()
    scale = norm(b)
    if (trivial := without_iterating(b, scale)) is not None:
        return trivial
    unit, target = b / scale, tol / scale

    x, r, residual, measuring = torch.zeros_like(b), unit, 1.0, 0
    if x0 is not None and (size := norm(x0)) > 0 and math.isfinite(size):
        h = matvec(x0.detach() / size).detach()
        measuring, hh = 1, norm(h)
        if hh > 0 and math.isfinite(hh):
            t = float(torch.dot(unit, h / hh)) / hh
            x, r = x0.detach() * (t / size), unit - t * h
            residual = norm(r)
            if residual <= target < 1.0:
                return LinearSolution(scale * x, scale * residual, measuring, Outcome.CONVERGED)

    iterating = 0
    outcome: Outcome
    while True:
        cycle = start(matvec, r, target, max_steps - iterating)
        iterating += cycle.steps
        candidate = x + cycle.x
        # a residual that is far from the tolerance need not be known more precisely than itself
        near = max(target, cycle.residual) if cycle.outcome is Outcome.ITERATION_LIMIT else target
        if cycle.drift < 0.01 * near and cycle.outcome in (Outcome.CONVERGED, Outcome.ITERATION_LIMIT):
            x, residual, outcome = candidate, cycle.residual, cycle.outcome
            break
        r = unit - matvec(candidate).detach()
        measuring += 1
        previous, measured = residual, norm(r)
        outcome = cycle.outcome
        if not math.isfinite(measured):
            outcome = Outcome.DIVERGED
        else:
            x, residual = candidate, measured
        if outcome in (Outcome.INDEFINITE, Outcome.DIVERGED):
            break
        outcome = Outcome.CONVERGED if residual <= target else Outcome.ITERATION_LIMIT
        if outcome is Outcome.CONVERGED or iterating >= max_steps or residual > 0.5 * previous:
            break
    return LinearSolution(scale * x, scale * residual, iterating + measuring, outcome)
