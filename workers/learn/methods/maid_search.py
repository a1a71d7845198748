"""Backtracking that accepts a step only if the exact objective is proven to fall."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from workers.learn.cost import Cost
from workers.learn.methods.maid_bounds import sandwich
from workers.learn.methods.maid_gradient import Accuracies, Differentiator, InexactGradient
from workers.learn.methods.maid_inner import Located
from workers.learn.oracle import AbstractMetric, AbstractOracle


@dataclass(frozen=True)
class Coordinates:
    """Where the metric of a run takes its curvature; no metric if there is none to take."""

    oracle: AbstractOracle
    curvature_at: Tensor | None
    wanted: bool

    def metric(self, raw: Tensor) -> AbstractMetric | None:
        """Return the metric at some hyperparameters."""
        return self.oracle.metric(raw, self.curvature_at) if self.wanted else None


@dataclass(frozen=True)
class Search:
    """How a search for the next point ended."""

    accepted: Located | None
    """The next point; None where none could be proven to be lower."""
    here: InexactGradient
    """Where the step is taken from, as accurately as the search needed it."""
    accuracies: Accuracies
    step: float
    """α of the accepted point, or of the last one tried."""
    claim: float
    """λ ⟨z, θ − θ⁺⟩, by which the objective is proven to fall; zero if no point was accepted."""
    failures: int
    """How often accuracies had to be tightened."""
    trials: int
    cost: Cost
    last: Cost
    """What the inner solve of the last trial took."""
    least_norm: float
    """Norm of the inner gradient at which precision ended a solve, the largest; zero if none was ended by it."""


@dataclass(frozen=True)
class Backtracking:
    """Algorithm 3.1 but for the hypergradient: shorten the step, then tighten the accuracies.

    θ⁺ = P(θ − α z) is accepted if ψ = U₊(θ⁺) − U₋(θ) + λ ⟨z, θ − θ⁺⟩ ≤ 0 (C6), which proves
    f(θ⁺) ≤ f(θ) − λ ⟨z, θ − θ⁺⟩: without bounds the displacement is α z, and the product α ‖z‖².
    """

    differentiator: Differentiator
    coordinates: Coordinates
    decrease: float
    """λ, the fraction of the promised decrease that is asked for."""
    shorten: float
    """ρ, the factor of the step after each rejection."""
    most_steps: int
    """Trials before the accuracies are tightened; one more after each failure."""
    most_failures: int

    def search(self, here: InexactGradient, accuracies: Accuracies, first: float) -> Search:
        """Return the next point, or none if no accuracy that can be reached shows a decrease.

        Args:
            here: the present point.
            accuracies: ε and δ to begin with.
            first: α to begin with.
        """
        differ, budget, alpha, failures = self.differentiator, self.most_steps, first, 0
        trials, cost, least = 0, Cost(), 0.0
        while True:
            found = self._backtrack(here, accuracies, alpha, budget)
            trials, cost, alpha = trials + found.trials, cost + found.cost, found.alpha
            least = max(least, found.least_norm)
            done = Search(
                found.accepted, here, accuracies, alpha, found.claim, failures, trials, cost, found.last, least
            )
            if found.accepted is not None or failures >= self.most_failures or differ.is_stationary(here):
                return done
            failures, budget = failures + 1, budget + 1
            if found.hidden is None:  # the step or its direction is at fault
                tightened = accuracies.times(differ.shrink)
            else:  # ε alone is, and by so much
                tightened = replace(accuracies, inner=min(accuracies.inner, found.hidden.distance) * found.hidden.power)
            if differ.can_improve(here, tightened, insist=True):
                here, accuracies, spent = differ.differentiate(
                    here.at,
                    tightened,
                    metric=self.coordinates.metric(here.at.raw),
                    adjoint0=here.adjoint,
                    like=here,
                )
                cost, alpha = cost + spent, first
                if not here.at.reached:
                    least = max(least, here.at.gradient_norm)
            elif found.hidden is None or found.hidden.by_trial:
                # This point is as accurate as that already. Shorter steps go on where the last round stopped, and a
                # trial that was too inexact is made again.
                accuracies = tightened
            else:
                return done

    def _backtrack(self, here: InexactGradient, accuracies: Accuracies, alpha: float, budget: int) -> "_Round":
        differ, at = self.differentiator, here.at
        oracle, precision = differ.oracle, torch.finfo(at.raw.dtype).eps
        cost, least, guess = Cost(), 0.0, at.weights
        noise = 4.0 * precision * abs(here.value)
        for trial in range(budget):
            raw = differ.box.clamp(at.raw - alpha * here.gradient)
            promise = float(torch.dot(here.gradient, at.raw - raw))
            # To first order the objective falls by no more than the promise, and the shorter the step the less: where
            # that would not show in the value at θ itself, no shorter step is tried. Only a reason to tighten sooner.
            gain = (1.0 - self.decrease) * promise - noise
            if not gain > here.gap:
                hidden = _Hidden(at.distance, differ.powers(2.0 * here.gap, gain), by_trial=False)
                return _Round(None, alpha, 0.0, trial, cost, Cost(), least, hidden)
            located, spent = differ.locator.locate(
                raw, guess, accuracy=accuracies.inner, metric=self.coordinates.metric(raw), like=at
            )
            outer = oracle.outer(located.weights, raw)
            constants = oracle.constants(raw)
            value = float(outer.value)
            upper = sandwich(
                value,
                float(torch.linalg.vector_norm(outer.gradient)),
                located.distance,
                smoothness=0.0 if constants is None else constants.outer_smoothness,
                convex=False,
            ).upper
            cost += spent + Cost(gradients=1)
            if not located.reached:
                least = max(least, located.gradient_norm)
            if upper - here.bounds.lower + self.decrease * promise + noise <= 0.0:
                return _Round(located, alpha, self.decrease * promise, trial + 1, cost, spent, least, None)
            gap = here.gap + upper - value
            if located.reached and not gain > gap:
                hidden = _Hidden(located.distance, differ.powers(2.0 * gap, gain), by_trial=True)
                return _Round(None, alpha, 0.0, trial + 1, cost, spent, least, hidden)
            alpha *= self.shorten
            # The weights move about in proportion to the step.
            guess = at.weights + self.shorten * (located.weights - at.weights)
        return _Round(None, alpha, 0.0, budget, cost, Cost(), least, None)


@dataclass(frozen=True)
class _Hidden:
    """Why the uncertainty of values hides whatever a step could gain."""

    distance: float
    """Of the weights that are too inexact."""
    power: float
    """Of ν, by which that distance has to shrink."""
    by_trial: bool
    """Whether they are those of the trial and not of the present point."""


@dataclass(frozen=True)
class _Round:
    accepted: Located | None
    alpha: float
    claim: float
    trials: int
    cost: Cost
    last: Cost
    least_norm: float
    hidden: _Hidden | None
