"""Why strengths that were learned without validation rows may be trusted: their objective looked at afresh."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

import torch
from torch import Tensor

from service.numbers import jsonable
from service.records import JsonObject
from service.spec.job import JobSpec
from workers.learn.cost import Cost
from workers.learn.evidence_profile import EvidenceMethod, Profile, profile
from workers.learn.hyperparameters import HyperparameterSpace
from workers.learn.method import Answer
from workers.learn.methods.elbo import ELBo
from workers.learn.posterior import Summary
from workers.learn.problems.linear import LinearProblem
from workers.learn.problems.network import NetworkProblem
from workers.learn.verification import random_direction
from workers.verdict import Verdict

_MOST_NEIGHBOURS: Final = 5
_AWAY: Final = 0.5
"""Where derivatives are compared: so far from the answer, in logarithms along a direction of length one. At the answer
itself they vanish, and a relative error would say nothing."""

_STEP: Final = 1e-3
_AGREEMENT: Final = 1e-2
_WORTH: Final = {True: 1e-2, False: 1e-6}
"""A change of the objective by less than this part of it is none: of trainings, and of closed forms."""


@dataclass(frozen=True)
class Neighbour:
    """The objective with one strength moved."""

    name: str
    factor: float
    strength: float
    value: float


@dataclass(frozen=True)
class ElboEvidence:
    """The outcome of all checks; no value where none was made."""

    verdict: Verdict
    sentence: str
    objective: float | None = None
    """Sought anew at the answer's strengths."""
    analytic: float = math.nan
    difference: float = math.nan
    size: int = 0
    seed: int = 0
    neighbours: tuple[Neighbour, ...] = ()
    at_bounds: tuple[tuple[str, str], ...] = ()
    is_trained: bool = False
    cost: Cost = field(default_factory=Cost)

    @property
    def relative_error(self) -> float:
        """Of the derivative, against central differences."""
        return abs(self.analytic - self.difference) / max(abs(self.analytic), abs(self.difference), 1e-300)

    def body(self) -> JsonObject:
        """The `evidence` of a result."""
        body: JsonObject = {"verdict": self.verdict.value, "sentence": self.sentence}
        if self.objective is None:
            return body
        check: JsonObject | None = None
        if not self.is_trained:
            check = {
                "direction": {"seed": self.seed, "size": self.size, "in": "logarithms of the strengths"},
                "at": f"the answer, moved by {_AWAY} along the direction",
                "analytic": jsonable(self.analytic),
                "central_difference": jsonable(self.difference),
                "relative_error": jsonable(self.relative_error),
                "step": _STEP,
            }
        return {
            **body,
            "objective": "−J/(κ n) sought anew with the strengths held, for one row",
            "objective_at_answer": jsonable(self.objective),
            "hypergradient_check": check,
            "neighbours": [
                {
                    **_scalar(one.name),
                    "factor": one.factor,
                    "strength": jsonable(one.strength),
                    "objective": jsonable(one.value),
                }
                for one in self.neighbours
            ],
            "at_bounds": [{**_scalar(name), "bound": bound} for name, bound in self.at_bounds],
            "cost": {
                "inner_iterations": self.cost.inner_iterations,
                "gradients": self.cost.gradients,
                "hessian_vector_products": self.cost.hessian_vector_products,
            },
        }


class _Profiles:
    """Objectives at strengths, and what they have cost."""

    def __init__(self, method: EvidenceMethod, problem: LinearProblem | NetworkProblem, *, seed: int) -> None:
        self._method = method
        self._problem = problem
        self._seed = seed
        self.cost = Cost()

    def at(self, raw: Tensor) -> Profile:
        found = profile(self._method, self._problem, _natural(self._problem.space, raw), seed=self._seed)
        self.cost += found.cost
        return found


def examine_elbo(
    method: EvidenceMethod,
    problem: LinearProblem | NetworkProblem,
    answer: Answer,
    found: Summary,
    spec: JobSpec,
) -> ElboEvidence:
    """Hold the strengths at the answer and around it, and seek all else anew.

    - The objective with each of up to five strengths halved and doubled.
    - Where it has a closed form: its derivative against central differences of objectives sought anew, along a random
      direction that the job's seed draws.
    - Where it is trained for: with the learning rate that won, the same rows and the same draws.

    Args:
        method: the one that ran.
        problem: the one that the job posed.
        answer: what was found.
        found: the posterior.
        spec: whether to check, and the seed.
    """
    if not spec.verify:
        return ElboEvidence(Verdict.NOT_CHECKED, "The answer was not checked, as the job asked (verify is false).")
    is_trained = isinstance(method, ELBo)
    if isinstance(method, ELBo):
        won = [one for one in method.candidates if one.rate == found.learning_rate]
        method = replace(method, candidates=tuple(won[:1]))
    profiles = _Profiles(method, problem, seed=spec.seed)
    raw = answer.raw.double().cpu()
    here = profiles.at(raw)
    analytic = difference = math.nan
    if not is_trained:
        analytic, difference = _derivatives(profiles, raw, seed=spec.seed)
    names, natural = problem.space.scalar_names(), raw.exp().tolist()
    around = tuple(
        Neighbour(names[place], factor, natural[place] * factor, profiles.at(_moved(raw, place, factor)).value)
        for place in _chosen(raw, here)
        for factor in (0.5, 2.0)
    )
    evidence = ElboEvidence(
        Verdict.NOT_CHECKED,
        "",
        here.value,
        analytic,
        difference,
        raw.numel(),
        spec.seed,
        around,
        _at_bounds(problem.space, raw),
        is_trained,
        profiles.cost,
    )
    verdict, sentence = _judge(evidence, found.objective)
    if found.collapsed:
        sentence += (
            " But the prior has collapsed: the posterior is no more than the prior, and the model fits nothing. A "
            "larger kappa, or 'auto', gives the data more weight."
        )
    return replace(evidence, verdict=verdict, sentence=sentence)


def _judge(found: ElboEvidence, own: float) -> tuple[Verdict, str]:
    values = [one.value for one in found.neighbours]
    if found.objective is None or not all(map(math.isfinite, [found.objective, *values])):
        return Verdict.NOT_CHECKED, "The answer could not be checked: the objective is not finite at it or next to it."
    if not found.is_trained and not found.relative_error <= _AGREEMENT:
        return Verdict.NOT_CHECKED, (
            "The answer could not be confirmed: the derivative of the objective and its central differences differ by "
            f"{100 * found.relative_error:.2g} %."
        )
    worth = _WORTH[found.is_trained] * (1.0 + abs(found.objective))
    how = "trained for anew" if found.is_trained else "sought anew"
    agreement = "" if found.is_trained else ", and its derivative agrees with central differences to "
    agreement += "" if found.is_trained else f"{found.relative_error:.1g}"
    if own - found.objective > worth and not found.is_trained:
        return Verdict.DESCENDING, (
            f"Sought anew at the same strengths the objective is lower by {own - found.objective:.2g} a row: the run "
            f"was cut short, or there is more than one optimum{agreement}."
        )
    lowest = min(found.neighbours, key=lambda one: one.value, default=None)
    if lowest is not None and found.objective - lowest.value > worth:
        return Verdict.DESCENDING, (
            f"With {lowest.name} times {lowest.factor:.3g} and all else {how} the objective is lower by "
            f"{found.objective - lowest.value:.2g} a row: more steps will do better{agreement}."
        )
    moved = "the strength" if found.size == 1 else "any of the strengths tried"
    same = f"Halving or doubling {moved}, with all else {how}, does not lower the objective{agreement}"
    if found.at_bounds:
        count = "the strength lies" if found.size == 1 else f"{len(found.at_bounds)} of {found.size} strengths lie"
        return Verdict.AT_BOUND, f"{same}; but {count} on a bound: a wider box may do better."
    return Verdict.OPTIMUM, f"{same}."


def _derivatives(profiles: _Profiles, raw: Tensor, *, seed: int) -> tuple[float, float]:
    """Return the derivative along a random direction near the answer, and its central difference."""
    finite = torch.isfinite(raw)
    direction = torch.where(finite, random_direction(raw, seed=seed), 0.0)
    start = raw + _AWAY * direction
    slope = profiles.at(start).slope
    if slope is None:
        return math.nan, math.nan
    above, below = (profiles.at(start + sign * _STEP * direction).value for sign in (1.0, -1.0))
    return float(torch.where(finite, slope.cpu(), 0.0) @ direction), (above - below) / (2.0 * _STEP)


def _chosen(raw: Tensor, here: Profile) -> list[int]:
    """Return which strengths to move: those of the steepest slope, or else the first; none that was pruned."""
    finite = torch.nonzero(torch.isfinite(raw)).squeeze(1)
    if here.slope is not None and here.slope.numel() == raw.numel():
        weight = here.slope.cpu().abs()[finite]
    else:
        weight = -torch.arange(finite.numel(), dtype=torch.float64)
    order = torch.argsort(weight, descending=True, stable=True)[:_MOST_NEIGHBOURS]
    return sorted(finite[order].tolist())


def _moved(raw: Tensor, place: int, factor: float) -> Tensor:
    moved = raw.clone()
    moved[place] += math.log(factor)
    return moved


def _natural(space: HyperparameterSpace, raw: Tensor) -> Mapping[str, Tensor]:
    return space.constrain(raw)


def _at_bounds(space: HyperparameterSpace, raw: Tensor) -> tuple[tuple[str, str], ...]:
    low, high = space.bounds(raw.dtype, raw.device)
    # The way there and back through a logarithm is not exact.
    margin = 1e-9
    found = zip(space.scalar_names(), raw.tolist(), low.tolist(), high.tolist(), strict=True)
    return tuple(
        (name, "low" if value <= least + margin else "high")
        for name, value, least, most in found
        if math.isfinite(value) and (value <= least + margin or value >= most - margin)
    )


def _scalar(name: str) -> JsonObject:
    """`l2[3]` is the fourth of the strengths `l2`; `l2` alone has no index."""
    block, bracket, rest = name.partition("[")
    return {"name": block, "index": int(rest.removesuffix("]")) if bracket else None}
