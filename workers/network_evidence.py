"""Why an answer on a network may be trusted: trained again from scratch at it and around it, with several seeds."""

from dataclasses import dataclass, field
from typing import Final

import torch
from pydantic import JsonValue
from torch import Tensor

from service.numbers import jsonable
from service.records import JsonObject
from service.spec.job import JobSpec
from workers.learn.cost import Cost
from workers.learn.problems.network import NetworkProblem
from workers.learn.retraining import RetrainedNeighbour, Retraining, retrain
from workers.learn.training.trainer import NetworkTrainer
from workers.verdict import Verdict

_SEEDS: Final = 3
_MOST_NEIGHBOURS: Final = 5
_WORTH: Final = 0.01
"""A part of the objective: with seeds in common even less than anybody would notice is more than chance."""

_MOST_BOUNDS: Final = 1000


@dataclass(frozen=True)
class NetworkEvidence:
    """The outcome of all trainings; none where none was made."""

    verdict: Verdict
    sentence: str
    retraining: Retraining | None = None
    strengths: tuple[float | None, ...] = ()
    """Natural value of the moved strength of each neighbour; None where all were moved together."""
    at_bounds: tuple[tuple[str, str], ...] = ()
    """Names of scalars that lie on a bound, and which, `low` or `high`."""
    cost: Cost = field(default_factory=Cost)

    def body(self) -> JsonObject:
        """The `evidence` of a result."""
        body: JsonObject = {"verdict": self.verdict.value, "sentence": self.sentence}
        found = self.retraining
        if found is None:
            return body
        return {
            **body,
            "objective_at_answer": jsonable(found.valid_loss.mean),
            "standard_error": jsonable(found.valid_loss.standard_error),
            "retrained": {
                "seeds": list(found.seeds),
                "training_steps": found.steps,
                "metrics": {
                    part: {
                        name: {"mean": jsonable(sample.mean), "standard_error": jsonable(sample.standard_error)}
                        for name, sample in metrics.items()
                    }
                    for part, metrics in found.metrics.items()
                },
            },
            "hypergradient_check": None,
            "neighbours": [
                _neighbour(neighbour, strength)
                for neighbour, strength in zip(found.neighbours, self.strengths, strict=True)
            ],
            "at_bounds": [{**_scalar(name), "bound": bound} for name, bound in self.at_bounds[:_MOST_BOUNDS]],
            "cost": {
                "inner_iterations": self.cost.inner_iterations,
                "gradients": self.cost.gradients,
                "hessian_vector_products": self.cost.hessian_vector_products,
            },
        }


def examine_network(problem: NetworkProblem, trainer: NetworkTrainer, raw: Tensor, spec: JobSpec) -> NetworkEvidence:
    """Train from scratch at an answer and with its strengths halved and doubled, three seeds each.

    Up to five strengths are moved one by one, more of them all together. Networks differ from seed to seed, so a
    neighbour counts as better where the differences, seed by seed, are below zero by more than chance, and by more than
    a hundredth of the objective.

    Args:
        problem: the problem that the job posed.
        trainer: one training from scratch.
        raw: the answer, [h].
        spec: whether to check, and the seed.
    """
    if not spec.verify:
        return NetworkEvidence(Verdict.NOT_CHECKED, "The answer was not checked, as the job asked (verify is false).")
    seeds = [spec.seed + 1 + place for place in range(_SEEDS)]
    found = retrain(problem, trainer, raw, seeds=seeds, most=_MOST_NEIGHBOURS)
    at_bounds = _at_bounds(problem, raw)
    verdict, sentence = _judge(found, strengths=raw.numel(), at_bounds=at_bounds)
    return NetworkEvidence(verdict, sentence, found, _strengths(problem, raw, found), at_bounds, found.cost)


def _judge(found: Retraining, *, strengths: int, at_bounds: tuple[tuple[str, str], ...]) -> tuple[Verdict, str]:
    loss = found.valid_loss
    if not torch.isfinite(torch.tensor(loss.values)).all():
        return Verdict.NOT_CHECKED, "The answer could not be checked: trained from scratch with it, the loss diverges."
    at = f"{loss.mean:.4g} ± {loss.standard_error:.1g} (mean and standard error of {len(found.seeds)} trainings)"
    finite = [one for one in found.neighbours if torch.isfinite(torch.tensor(one.valid_loss.values)).all()]
    worth = _WORTH * abs(loss.mean)
    better = [one for one in finite if one.difference.is_negative and one.difference.mean < -worth]
    if better:
        best = min(better, key=lambda one: one.difference.mean)
        what = "all strengths" if best.name is None else best.name
        return Verdict.DESCENDING, (
            f"Trained from scratch with the answer the objective is {at}; with {what} times {best.factor:.3g} it is "
            f"lower by {-best.difference.mean:.2g} ± {best.difference.standard_error:.1g}: more outer steps may do "
            "better, or the strengths are worth more as the schedule that they were in training."
        )
    moved = "all strengths together" if any(one.name is None for one in finite) else "any of the strengths tried"
    if strengths == 1:
        moved = "the strength"
    same = f"Trained from scratch with the answer the objective is {at}; halving or doubling {moved} does not lower it"
    if at_bounds:
        count = f"{len(at_bounds)} of {strengths} strengths lie" if strengths > 1 else "the strength lies"
        return (
            Verdict.AT_BOUND,
            f"{same} by more than chance and 1 %, but {count} on a bound: a wider box may do better.",
        )
    return Verdict.OPTIMUM, f"{same} by more than chance and 1 %."


def _at_bounds(problem: NetworkProblem, raw: Tensor) -> tuple[tuple[str, str], ...]:
    low, high = problem.space.bounds(raw.dtype, raw.device)
    is_low, is_high = (raw <= low).tolist(), (raw >= high).tolist()
    names = problem.space.scalar_names()
    return tuple(
        (name, "low" if below else "high")
        for name, below, above in zip(names, is_low, is_high, strict=True)
        if below or above
    )


def _strengths(problem: NetworkProblem, raw: Tensor, found: Retraining) -> tuple[float | None, ...]:
    natural = torch.cat([part.reshape(-1) for part in problem.space.constrain(raw.double().cpu()).values()]).tolist()
    at = dict(zip(problem.space.scalar_names(), natural, strict=True))
    return tuple(None if one.name is None else at[one.name] * one.factor for one in found.neighbours)


def _neighbour(neighbour: RetrainedNeighbour, strength: float | None) -> JsonObject:
    name: JsonObject = {"name": None, "index": None} if neighbour.name is None else _scalar(neighbour.name)
    return {
        **name,
        "factor": jsonable(neighbour.factor),
        "strength": None if strength is None else jsonable(strength),
        "objective": jsonable(neighbour.valid_loss.mean),
        "standard_error": jsonable(neighbour.valid_loss.standard_error),
        "difference": jsonable(neighbour.difference.mean),
        "difference_standard_error": jsonable(neighbour.difference.standard_error),
    }


def _scalar(name: str) -> JsonObject:
    """`l2[3]` is the fourth of the strengths `l2`; `l2` alone has no index."""
    block, bracket, rest = name.partition("[")
    index: JsonValue = int(rest.removesuffix("]")) if bracket else None
    return {"name": block, "index": index}
