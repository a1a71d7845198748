"""Linear regression by its exact evidence: no validation set, no sampling, nothing to choose."""

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Final, final

import torch
from torch import Tensor

from workers.learn.cost import Cost
from workers.learn.errors import LearnError
from workers.learn.gaussian_evidence import (
    Gaussians,
    em,
    irrelevant,
    log_evidence,
    mackay,
    noise_at,
    over,
    readmitted,
    slope,
)
from workers.learn.gaussian_regression import Fit, fit
from workers.learn.method import AbstractMethod, Answer, Status, TrajectoryPoint
from workers.learn.methods.gaussian import Gaussian, gaussian
from workers.learn.problems.linear import LinearProblem

_ROUNDING: Final = 1e-12
"""A fall of the log evidence by less than this fraction of it is no fall."""


@dataclass(frozen=True)
class ExactState:
    """All that changes during a run."""

    step: int
    cost: Cost
    v: Tensor
    """Prior variances to evaluate next, [g]; zero of a group that was pruned."""
    noise: Tensor
    """s² to evaluate next, a scalar."""
    best_v: Tensor
    best_noise: Tensor
    best: float
    """Log evidence at the two before; −∞ before the first point."""


@final
@dataclass(frozen=True)
class ExactEvidence(AbstractMethod[LinearProblem, ExactState]):
    """Type-II maximum likelihood of linear regression: v_g of every prior and s² of the noise, by fixed points.

    A step is one update of MacKay's, and one of EM's after an update that lowered the evidence, so that it climbs. With
    a strength for each feature this is automatic relevance determination: a feature that the data no longer determine
    is left out, if its strength has no upper bound; at the end each of those is tried again, and comes back if the
    evidence wants it. Trains on the training rows and needs no others.

    It ends at a point where no derivative of the log evidence in a log strength, or in log s², exceeds `tolerance`
    times the number of rows.

    Source: MacKay (1992), Bayesian interpolation; Tipping (2001) for single features; Faul & Tipping (2002) for the
    test of those left out.
    """

    state_type: ClassVar[type] = ExactState

    tolerance: float = 1e-8
    prune_below: float = 1e-5
    """Effective number of determined features of a group under which it is left out."""

    def init(self, problem: LinearProblem, *, seed: int) -> ExactState:  # noqa: ARG002 (nothing is random)
        """See `AbstractMethod.init`: the given strengths, and the noise that goes best with them."""
        model = gaussian(problem)
        strengths = model.of_strengths.initial
        noise = noise_at(model.regression, model.priors, strengths)
        v = noise / (model.regression.rows * strengths)
        return ExactState(0, _preparation(model), v, noise, v, noise, -math.inf)

    def step(self, problem: LinearProblem, state: ExactState) -> tuple[ExactState, TrajectoryPoint]:
        """See `AbstractMethod.step`."""
        model = gaussian(problem)
        data, priors, bounds = model.regression, model.priors, model.of_strengths.bounds
        at = Gaussians(state.v, state.noise)
        found = fit(data, priors, at.v, at.noise)
        value = float(log_evidence(data, at, found))
        size = self._slope(model, at, found)
        cost = state.cost + _update(model)
        if value < state.best - _ROUNDING * abs(state.best):
            last = Gaussians(state.best_v, state.best_noise)
            after = em(data, last, fit(data, priors, last.v, last.noise), priors, bounds)
            cost += _update(model)
            best = last, state.best
            ended = False
        else:
            best = at, value
            after, ended = self._next(model, at, found, size)
        state = ExactState(state.step + 1, cost, after.v, after.noise, best[0].v, best[0].noise, best[1])
        point = self._point(model, state, at, found, value, size)
        return state, replace(point, status=Status.CONVERGED) if ended else point

    def answer(self, problem: LinearProblem, state: ExactState) -> Answer:
        """See `AbstractMethod.answer`: the strengths of the highest evidence and the mean of the posterior there."""
        if state.step == 0:
            raise LearnError("no point was evaluated yet")
        model = gaussian(problem)
        m = fit(model.regression, model.priors, state.best_v, state.best_noise).mean()
        like = problem.initial_weights(0)
        raw = model.of_strengths.raw(_strengths(model, state.best_v, state.best_noise))
        return Answer(raw.to(like), model.weights(m).to(like))

    def _next(self, model: Gaussian, at: Gaussians, found: Fit, size: float) -> tuple[Gaussians, bool]:
        """Return what to evaluate next, and whether this was the last."""
        data, priors, bounds = model.regression, model.priors, model.of_strengths.bounds
        if size <= self.tolerance:
            back = readmitted(data, priors, at, found)
            if not bool((back > 0.0).any()):
                return at, True
            return Gaussians(torch.where(back > 0.0, back, at.v), at.noise), False
        after = mackay(data, at, found, bounds)
        if priors.size > 1:
            gone = irrelevant(at, found, below=self.prune_below) & torch.isinf(bounds.high)
            # Left out only on its way down: a slope upwards is a feature that has only just come back.
            gone &= after.v < at.v
            if bool((at.v > 0.0).sum() > gone.sum()):
                after = Gaussians(torch.where(gone, 0.0, after.v), after.noise)
        return after, False

    def _slope(self, model: Gaussian, at: Gaussians, found: Fit) -> float:
        """Return the largest slope of the log evidence per row that the bounds leave."""
        data, bounds = model.regression, model.of_strengths.bounds
        there = slope(data, at, found)
        held = bounds.held(over(found.squares, data.outputs * found.determined), at.noise, rows=data.rows)
        tied = ~torch.isnan(held)
        # Held strengths move with the noise: v_g = s²/(n λ_g).
        of_noise = there.noise + torch.where(tied, there.v, 0.0).sum()
        free = torch.where(tied | (at.v == 0.0), 0.0, there.v)
        return float(torch.cat([free, of_noise[None]]).abs().max()) / data.rows

    def _point(
        self, model: Gaussian, state: ExactState, at: Gaussians, found: Fit, value: float, size: float
    ) -> TrajectoryPoint:
        data = model.regression
        determined = float(found.determined.sum())
        return TrajectoryPoint(
            step=state.step - 1,
            hyperparameters=model.of_strengths.named(_strengths(model, at.v, at.noise)),
            train_loss=0.5 * float(found.residual) / data.rows,
            valid_loss=None,
            hypergradient_norm=size,
            inner_iterations=1,
            inner_residual=math.nan,
            metrics={
                "log_evidence": value,
                "objective": -value / data.rows,
                "noise": float(at.noise) ** 0.5,
                **model.of_strengths.variances(at.v),
                "determined": determined,
                "pruned": float((at.v == 0.0).sum()),
                "kappa": 1.0,
                "gradient_equivalents": float(state.cost.gradient_equivalents),
            },
        )


def _strengths(model: Gaussian, v: Tensor, noise: Tensor) -> Tensor:
    """Return λ = s²/(n v), [g]; infinite of groups that were pruned."""
    return noise / (model.regression.rows * v)


def _preparation(model: Gaussian) -> Cost:
    """Return what a Gram matrix costs, in products with the Hessian: twice through Φ each."""
    rows, features = model.regression.rows, model.regression.features
    return Cost(hessian_vector_products=math.ceil(min(rows, features) / 2))


def _update(model: Gaussian) -> Cost:
    """Return what a factorisation costs; after an eigendecomposition there is none."""
    data = model.regression
    if model.priors.size == 1:
        return Cost(inner_iterations=1)
    small, entries = min(data.rows, data.features), max(data.design.entries, 1)
    anew = math.ceil(small / 2) if data.is_wide else 0  # Φ V Φᵀ changes with V
    return Cost(inner_iterations=1, gradients=1, hessian_vector_products=anew + math.ceil(small**3 / (6 * entries)))
