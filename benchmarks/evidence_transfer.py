"""What strengths of a transfer are worth and cost: by the evidence, by the paper's grid, by Bayesian optimization."""

import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import optuna
import torch
from torch import Tensor

from benchmarks.evidence_cases import Transfer, chosen, target_problem
from workers.learn.calibration import Calibration, class_calibration
from workers.learn.kappa import Kappa
from workers.learn.method import Status
from workers.learn.methods.elbo import ELBo
from workers.learn.problems.network import NetworkProblem
from workers.learn.training.optimizers import SGD
from workers.learn.training.schedule import Cosine

STEPS = 500
"""Of every training of every contender."""
STRENGTHS = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 0.0)
"""Of the backbone, and of the head."""
FEW_STRENGTHS = (1e-2, 1e-4, 0.0)
RATES = (0.1, 0.01, 0.001, 0.0001)
TRIALS = 36
CLIP = 1.0
DRAWS = 10


@dataclass(frozen=True)
class Point:
    """Strengths of backbone and head, and the learning rate."""

    backbone: float
    head: float
    rate: float


@dataclass(frozen=True)
class Outcome:
    """What a contender answered, and what that took."""

    contender: str
    rows: int
    seed: int
    accuracy: float
    nll: float
    ece: float
    """All three of one network, on the target's test rows; of the evidence: that of the mean weights."""
    seconds: float
    """Processor time of everything up to the answer."""
    trainings: int
    point: Point
    """What was answered with; of the evidence: the strengths that came out."""
    kappa: float | None = None
    drawn: tuple[float, float, float] | None = None
    """Accuracy, NLL and ECE of the mean prediction of several draws from the posterior; None without one."""
    candidates: tuple[tuple[float, float, float], ...] = ()
    """Rate, objective and test accuracy of each candidate of the evidence; the latter only told, never asked."""


@dataclass(frozen=True)
class Tried:
    """One training on four fifths of the rows."""

    point: Point
    loss: float
    """On the last fifth; infinite if it is not finite."""
    seconds: float


@dataclass(frozen=True, eq=False)
class Task:
    """So many rows of the target, drawn by a seed that start and batches of all trainings have as well."""

    case: Transfer
    rows: int
    seed: int
    both: NetworkProblem = field(init=False)
    """All rows."""
    part: NetworkProblem = field(init=False)
    """Four fifths."""
    x: Tensor = field(init=False)
    y: Tensor = field(init=False)
    """The last fifth."""

    def __post_init__(self) -> None:
        inner, outer = chosen(self.case.target, self.rows, seed=self.seed)
        object.__setattr__(self, "both", target_problem(self.case, np.concatenate([inner, outer])))
        object.__setattr__(self, "part", target_problem(self.case, inner))
        object.__setattr__(self, "x", torch.as_tensor(self.case.target.X[outer]))
        object.__setattr__(self, "y", torch.as_tensor(self.case.target.y[outer]))

    def tried(self, point: Point, *, steps: int) -> Tried:
        """Return what a point is worth on the last fifth, trained on the others."""
        begun = time.process_time()
        losses = self.part.losses
        value = float(losses.of(losses.outputs(fitted(self.part, point, seed=self.seed, steps=steps), self.x), self.y))
        return Tried(point, value if math.isfinite(value) else math.inf, time.process_time() - begun)

    def refitted(self, name: str, tried: Sequence[Tried], *, steps: int) -> Outcome:
        """Return what a search that made these trials answers: the best point, trained on all rows."""
        best = min(tried, key=lambda one: one.loss).point
        begun = time.process_time()
        w = fitted(self.both, best, seed=self.seed, steps=steps)
        seconds = sum(one.seconds for one in tried) + time.process_time() - begun
        found = worth(self.both, w)
        return Outcome(name, self.rows, self.seed, found.accuracy, found.nll, found.ece, seconds, len(tried) + 1, best)


def by_grid(task: Task, *, steps: int) -> list[Outcome]:
    """Return what the grid of 144 points answers, and what the part of it that the thin grid is would have."""
    tried = [task.tried(Point(*values), steps=steps) for values in itertools.product(STRENGTHS, STRENGTHS, RATES)]
    few = [one for one in tried if {one.point.backbone, one.point.head} <= set(FEW_STRENGTHS)]
    return [task.refitted("grid", tried, steps=steps), task.refitted("thin grid", few, steps=steps)]


def by_thin_grid(task: Task, *, steps: int) -> list[Outcome]:
    """Return what the grid of 36 points answers: every other strength."""
    points = itertools.product(FEW_STRENGTHS, FEW_STRENGTHS, RATES)
    return [task.refitted("thin grid", [task.tried(Point(*values), steps=steps) for values in points], steps=steps)]


def by_tpe(task: Task, *, steps: int) -> list[Outcome]:
    """Return what Optuna's sampler finds: strengths between the least and the most of the grid, the grid's rates."""
    begun = time.process_time()
    tried = list(_proposed(lambda point: task.tried(point, steps=steps), seed=task.seed))
    own = time.process_time() - begun - sum(one.seconds for one in tried)
    found = task.refitted("tpe", tried, steps=steps)
    return [Outcome(**{**vars(found), "seconds": found.seconds + own})]


def by_evidence(name: str, kappa: Kappa) -> Callable[..., list[Outcome]]:
    """Return a contender: the ELBo with κ, four learning rates side by side, all rows, no validation."""

    def answer(task: Task, *, steps: int) -> list[Outcome]:
        problem = task.both
        method = ELBo(kappa=kappa, steps=steps, steps_per_point=steps)
        begun = time.process_time()
        state, point = method.step(problem, method.init(problem, seed=task.seed))
        found = method.found(problem, state)
        seconds = time.process_time() - begun
        assert point.status is Status.CONVERGED
        mean = worth(problem, found.mean)
        drawn = averaged(problem, found.mean, found.scale)
        of_candidates = [worth(problem, row[: problem.network.size]).accuracy for row in state.variables]
        backbone, head = (float(one) for one in found.strengths)
        return [
            Outcome(
                name,
                task.rows,
                task.seed,
                mean.accuracy,
                mean.nll,
                mean.ece,
                seconds,
                len(RATES),
                Point(backbone, head, found.optimizer.rate),
                found.kappa,
                (drawn.accuracy, drawn.nll, drawn.ece),
                tuple(zip(RATES, state.scores.tolist(), of_candidates, strict=True)),
            )
        ]

    return answer


CONTENDERS: dict[str, Callable[..., list[Outcome]]] = {
    "elbo": by_evidence("elbo", "auto"),
    "elbo, κ = 1": by_evidence("elbo, κ = 1", 1.0),
    "elbo, κ = 100": by_evidence("elbo, κ = 100", 100.0),
    "elbo, κ = 1000": by_evidence("elbo, κ = 1000", 1000.0),
    "grid": by_grid,
    "thin grid": by_thin_grid,
    "tpe": by_tpe,
}


def fitted(problem: NetworkProblem, at: Point, *, seed: int, steps: int) -> Tensor:
    """Return the weights of one training: step for step what `ELBo` does, without its noise, at given strengths.

    SGD with Nesterov's momentum, gradients clipped to norm 1, rates that fall to zero along a cosine.
    """
    raw = problem.space.initial(torch.float32, torch.device("cpu"))
    backbone, head = problem.regularizers
    diagonal = at.backbone * (backbone.groups == 0).float() + at.head * (head.groups == 0).float()
    optimizer, schedule = SGD(at.rate, 0.9, nesterov=True), Cosine(steps)
    w, buffers = problem.initial_weights(seed), problem.initial_buffers()
    moments = optimizer.start(w)
    for step in range(steps):
        found = problem.training_gradient(w, buffers, raw, seed=seed, step=step)
        gradient = found.gradient.addcmul_(diagonal, w)
        gradient.mul_((CLIP / torch.linalg.vector_norm(gradient)).clamp_max(1.0))
        moments = optimizer.update_(moments, w, gradient, rate=at.rate * schedule.factor(step))
    return w


def worth(problem: NetworkProblem, w: Tensor) -> Calibration:
    """Return what weights are worth on the test rows."""
    assert problem.test is not None
    return class_calibration(problem.losses.outputs(w, problem.test.x), problem.test.y)


def averaged(problem: NetworkProblem, mean: Tensor, scale: Tensor) -> Calibration:
    """Return what the mean of the probabilities of several draws of the weights is worth."""
    assert problem.test is not None
    generator = torch.Generator().manual_seed(0)
    total = torch.zeros(problem.test.rows, problem.network.outputs, dtype=torch.float64)
    for _ in range(DRAWS):
        w = mean + scale * torch.randn(mean.shape, generator=generator)
        total += torch.softmax(problem.losses.outputs(w, problem.test.x).double(), 1)
    return class_calibration((total / DRAWS).log(), problem.test.y)


def _proposed(tried: Callable[[Point], Tried], *, seed: int) -> Iterator[Tried]:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed))
    low, high = STRENGTHS[-2], STRENGTHS[0]
    for _ in range(TRIALS):
        trial = study.ask()
        backbone, head = (trial.suggest_float(name, low, high, log=True) for name in ("backbone", "head"))
        one = tried(Point(backbone, head, float(trial.suggest_categorical("rate", RATES))))
        study.tell(trial, min(one.loss, 1e6))
        yield one
