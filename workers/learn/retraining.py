"""Whether learned strengths hold up when networks are trained from scratch with them, again and again."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import torch
from scipy.special import stdtrit
from torch import Tensor

from workers.learn.cost import Cost
from workers.learn.problem import Part
from workers.learn.problems.network import NetworkProblem
from workers.learn.training.trainer import NetworkTrainer

_CONFIDENCE: Final = 0.95
"""One-sided, of Student's t."""


@dataclass(frozen=True)
class Sample:
    """One number for each seed."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Their mean."""
        return math.fsum(self.values) / len(self.values)

    @property
    def standard_error(self) -> float:
        """Of the mean; NaN for a single value."""
        n, mean = len(self.values), self.mean
        if n < 2:
            return math.nan
        return math.sqrt(math.fsum((value - mean) ** 2 for value in self.values) / (n - 1) / n)

    def minus(self, other: "Sample") -> "Sample":
        """Return the differences, seed by seed: what both owe to a seed cancels."""
        return Sample(tuple(a - b for a, b in zip(self.values, other.values, strict=True)))

    @property
    def is_negative(self) -> bool:
        """Whether the mean is below zero by more than chance would have it in 19 of 20 cases."""
        degrees = len(self.values) - 1
        return degrees > 0 and self.mean < -float(stdtrit(degrees, _CONFIDENCE)) * self.standard_error


@dataclass(frozen=True)
class RetrainedNeighbour:
    """The objective with one strength moved, or with all of them."""

    name: str | None
    """Of the scalar; None for all together."""
    factor: float
    """Of the natural value; less than asked for where the box ends, the mean of all for all together."""
    valid_loss: Sample
    difference: Sample
    """From the objective at the answer with the same seed."""


@dataclass(frozen=True)
class Retraining:
    """What training from scratch gives at an answer and around it."""

    seeds: tuple[int, ...]
    steps: int
    """Of each training."""
    metrics: dict[str, dict[str, Sample]]
    """Part → metric → values, at the answer."""
    neighbours: tuple[RetrainedNeighbour, ...]
    at_low: int
    """Strengths on their lower bound."""
    at_high: int
    cost: Cost = field(default_factory=Cost)

    @property
    def valid_loss(self) -> Sample:
        """The objective at the answer."""
        return self.metrics[Part.VALID]["loss"]


def retrain(
    problem: NetworkProblem,
    trainer: NetworkTrainer,
    raw: Tensor,
    *,
    seeds: Sequence[int],
    factors: Sequence[float] = (0.5, 2.0),
    most: int = 5,
) -> Retraining:
    """Train from scratch at an answer and with strengths multiplied by each factor, inside the box; all seeds each.

    Up to `most` strengths are moved one by one, more of them all together. The seeds are the same everywhere, so that
    differences are compared within a seed.

    Args:
        problem: with validation rows.
        trainer: how, and for how many steps.
        raw: the answer, [h].
        seeds: of initial weights and batches.
        factors: of natural values.
        most: strengths that are moved one by one.
    """
    space = problem.space
    names: list[str | None] = list(space.scalar_names()) if raw.numel() <= most else [None]
    moves: list[tuple[str | None, float, Tensor]] = []
    for place, name in enumerate(names):
        for factor in factors:
            moved = _moved(problem, raw, None if name is None else place, factor)
            if bool((moved != raw).any()):
                ratio = _factor(problem, raw, moved, None if name is None else place)
                # what differs by rounding is the factor that was asked for: the box was not in the way
                moves.append((name, factor if math.isclose(ratio, factor, rel_tol=1e-5) else ratio, moved))
    points = [raw, *(moved for _, _, moved in moves)]
    trained = trainer.train_all(
        problem, [point for point in points for _ in seeds], seeds=[seed for _ in points for seed in seeds]
    )
    groups = [trained[start : start + len(seeds)] for start in range(0, len(trained), len(seeds))]
    at = Sample(tuple(one.value for one in groups[0]))
    found = []
    for (name, factor, _), group in zip(moves, groups[1:], strict=True):
        values = Sample(tuple(one.value for one in group))
        found.append(RetrainedNeighbour(name, factor, values, values.minus(at)))
    measured = {
        part: [problem.evaluate(one.weights, part) for one in groups[0]] for part in Part if part in problem.parts()
    }
    low, high = space.bounds(raw.dtype, raw.device)
    return Retraining(
        seeds=tuple(seeds),
        steps=trainer.steps,
        metrics={
            part.value: {name: Sample(tuple(one[name] for one in runs)) for name in runs[0]}
            for part, runs in measured.items()
        },
        neighbours=tuple(found),
        at_low=int((raw <= low).sum()),
        at_high=int((raw >= high).sum()),
        cost=sum((one.cost for one in trained), Cost()),
    )


def _moved(problem: NetworkProblem, raw: Tensor, place: int | None, factor: float) -> Tensor:
    """Return the answer with one natural value, or with all of them, multiplied by a factor, inside the box."""
    space = problem.space
    before = torch.cat([part.reshape(-1) for part in space.constrain(raw).values()])
    natural = before * factor if place is None else before.clone()
    if place is not None:
        natural[place] *= factor
    parts = torch.split(natural, [block.size for block in space.blocks])
    # Beyond the box a value may be outside of its domain.
    inside = [
        part.clamp(-math.inf if block.low is None else block.low, math.inf if block.high is None else block.high)
        for part, block in zip(parts, space.blocks, strict=True)
    ]
    if torch.equal(torch.cat(inside), before):
        return raw
    named = {block.name: part.reshape(block.shape) for block, part in zip(space.blocks, inside, strict=True)}
    moved = space.clamp(space.unconstrain(named))
    # What a way through natural values and back only rounds has not moved.
    return torch.where((moved - raw).abs() <= 1e-5, raw, moved)


def _factor(problem: NetworkProblem, raw: Tensor, moved: Tensor, place: int | None) -> float:
    """Return the factor that the box has left; the mean of all in logarithms where all have moved."""
    before, after = (
        torch.cat([part.reshape(-1) for part in problem.space.constrain(at.double().cpu()).values()])
        for at in (raw, moved)
    )
    ratio = after / before
    return float(ratio[place] if place is not None else ratio.log().mean().exp())
