"""One contender on one problem: stepped until its time is up, and judged outside of its clock."""

import time
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from benchmarks.networks_contests import Contender, Contest
from workers.learn.errors import AllDiverged
from workers.learn.method import Answer, Status
from workers.learn.problem import Part
from workers.learn.problems.network import NetworkProblem

_CLOSER: Final = 1.15
_LEAST: Final = 1 / 100
"""A contender is judged again when its time has grown by this factor and by a hundredth of all its time."""


@dataclass(frozen=True)
class Mark:
    """What a contender would have answered after so many seconds."""

    seconds: float
    valid_loss: float
    valid_accuracy: float
    test_loss: float
    test_accuracy: float


@dataclass(frozen=True)
class Trace:
    """One run of a contender."""

    contender: str
    seed: int
    steps: int
    seconds: float
    """That it took: less than it was given if it came to an end."""
    marks: tuple[Mark, ...]
    strengths: dict[str, float]
    """Of its last answer, those that it learned."""
    retrained: tuple[Mark, ...]
    """Trained from scratch with the strengths that it answered, other seeds."""

    @staticmethod
    def of(found: dict[str, Any]) -> "Trace":
        """Return a trace as JSON has kept it."""
        marks, again = (tuple(Mark(**mark) for mark in found[name]) for name in ("marks", "retrained"))
        return Trace(**{**found, "marks": marks, "retrained": again})

    def at(self, seconds: float, field: str) -> float:
        """Return a field of the answer at a moment; infinite before the first."""
        found = [getattr(mark, field) for mark in self.marks if mark.seconds <= seconds]
        return float(found[-1]) if found else float("inf")


def run(contest: Contest, contender: Contender, whole: NetworkProblem, *, seed: int, seconds: float) -> Trace:
    """Step a contender until its time is up or it has come to its end.

    A step that ends too late does not count, unless it is the first.
    """
    problem = contest.seen(contender, whole)
    method = contest.method(contender, problem)
    due, steps, marks = 0.0, 0, list[Mark]()
    answer: Answer | None = None
    begun = time.process_time()
    state = method.init(problem, seed=seed)
    spent = time.process_time() - begun
    is_over = False
    while not is_over:
        begun = time.process_time()
        state, point = method.step(problem, state)
        spent += time.process_time() - begun
        if spent > seconds and answer is not None:
            break
        steps += 1
        is_over = spent > seconds or (point.status is not Status.RUNNING and not point.is_trial)
        if spent >= due or is_over:
            due = max(_CLOSER * spent, spent + _LEAST * seconds)
            try:
                found = method.answer(problem, state)
            except AllDiverged:
                continue
            if answer is None or not torch.equal(found.weights, answer.weights):
                answer = found
                marks.append(judged(problem, answer.weights, spent))
    assert answer is not None
    # The last moments may have gone by without a look.
    found = method.answer(problem, state)
    if spent <= seconds and not torch.equal(found.weights, answer.weights):
        answer = found
        marks.append(judged(problem, answer.weights, spent))
    again = ()
    if contest.retrains:
        trained = contest.trainer(problem).train(problem, answer.raw, w0=None, seed=1000 + seed)
        again = (judged(problem, trained.weights, 0.0),)
    return Trace(
        contender.name,
        seed,
        steps,
        min(spent, seconds),
        tuple(marks),
        named(problem, answer.raw),
        again,
    )


def default_run(contest: Contest, problem: NetworkProblem, *, seed: int) -> Trace:
    """Train once at the strengths that everything starts from."""
    raw = problem.space.initial(torch.float32, torch.device("cpu"))
    begun = time.process_time()
    trained = contest.trainer(problem).train(problem, raw, w0=None, seed=seed)
    spent = time.process_time() - begun
    return Trace("default", seed, 1, spent, (judged(problem, trained.weights, spent),), named(problem, raw), ())


def judged(problem: NetworkProblem, weights: Tensor, seconds: float) -> Mark:
    """Return what weights are worth on all rows."""
    valid, test = (problem.evaluate(weights, part) for part in (Part.VALID, Part.TEST))
    return Mark(seconds, valid["loss"], valid["accuracy"], test["loss"], test["accuracy"])


def named(problem: NetworkProblem, raw: Tensor) -> dict[str, float]:
    """Return natural values by name, one for each number."""
    values = problem.space.constrain(raw.detach().double().cpu()).values()
    return dict(zip(problem.space.scalar_names(), torch.cat([v.reshape(-1) for v in values]).tolist(), strict=True))
