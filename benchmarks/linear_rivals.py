"""The contenders of the linear benchmark; each leaves a trace of what it visited and what it had spent by then."""

import math
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import optuna
import torch
from linear_cases import Case
from scipy import optimize
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from torch import Tensor

from workers.learn.cost import Cost
from workers.learn.inner.base import AbstractInnerSolver
from workers.learn.inner.lbfgs import LBFGS
from workers.learn.method import AbstractMethod, Status, run
from workers.learn.oracle import AbstractOracle
from workers.learn.problem import AbstractBilevelProblem
from workers.learn.problems.layout import Per
from workers.learn.problems.linear import LinearProblem
from workers.learn.problems.linear_data import L2Term, linear_problem

STOPPED = "stopped, too dear, at"
"""How the end of a grid begins that was not run to its end."""


@dataclass(frozen=True)
class Visit:
    """Strengths that a contender would answer if it stopped here, and all that it had spent."""

    raw: Tensor
    claimed: float
    """Validation loss by the contender's own account."""
    cost: Cost
    seconds: float


@dataclass
class Trace:
    """What a contender did."""

    name: str
    visits: list[Visit] = field(default_factory=list)
    cost: Cost = field(default_factory=Cost)
    seconds: float = 0.0
    ended: str = ""


def problem_of(case: Case, per: str, *, initial: float) -> LinearProblem:
    """Return the case with one strength, or one for each class or feature, inside its box."""
    low, high = case.box
    term = L2Term("l2", initial, Per(per), low, high)
    return linear_problem(
        case.data,
        loss="cross_entropy",
        terms=[term],
        intercept=True,
        dtype=torch.float64,
        device="cpu",
        classes=case.classes,
    )


def strengths(case: Case, points: int) -> np.ndarray:
    """Return a grid over the box, strongest first, as a warm-started path wants it."""
    low, high = case.box
    return np.geomspace(high, low, points)


def _better(trace: Trace, visit: Visit) -> Visit:
    """Return the visit, or what was best before it, at the visit's cost."""
    if not trace.visits or visit.claimed < trace.visits[-1].claimed:
        return visit
    return replace(trace.visits[-1], cost=visit.cost, seconds=visit.seconds)


def learn(
    name: str,
    method: AbstractMethod[AbstractBilevelProblem, Any],
    problem: LinearProblem,
    *,
    max_steps: int,
    most: float = math.inf,
) -> Trace:
    """Run one of our methods; every step is a visit to what it would answer then.

    It is stopped after `max_steps`, or the step in which it had spent `most` gradient-equivalents.
    """
    trace = Trace(name)
    start = time.perf_counter()
    for state, point in run(method, problem, method.init(problem, seed=0), max_steps=max_steps):
        trace.seconds = time.perf_counter() - start
        trace.cost = state.cost
        best = method.answer(problem, state)
        trace.visits.append(Visit(best.raw, point.valid_loss, state.cost, trace.seconds))
        trace.ended = str(point.status) if point.status is not Status.RUNNING else "budget"
        if state.cost.gradient_equivalents >= most:
            break
    return trace


def train(
    oracle: AbstractOracle, raw: Tensor, w0: Tensor, *, relative: float, solver: AbstractInnerSolver | None = None
) -> tuple[Tensor, Cost]:
    """Minimise the inner loss until its gradient is `relative` times what it is at w = 0."""
    scale = float(oracle.inner(torch.zeros_like(w0), raw).gradient.norm())  # not charged
    solution = (solver or LBFGS()).solve(oracle, raw, w0, tol=relative * scale)
    return solution.w, solution.cost


def own_grid(case: Case, problem: LinearProblem, *, points: int, relative: float, most: float = math.inf) -> Trace:
    """A grid of one strength with our L-BFGS, each training started from the one before.

    The validation losses are not charged.
    """
    trace, oracle, w = Trace(f"grid of {points}, our L-BFGS, warm"), problem.oracle(), problem.initial_weights(0)
    start = time.perf_counter()
    for strength in strengths(case, points):
        raw = torch.tensor([math.log(strength)], dtype=torch.float64)
        w, cost = train(oracle, raw, w, relative=relative)
        trace.cost += cost
        claimed = float(oracle.outer(w, raw).value)
        trace.seconds = time.perf_counter() - start
        trace.visits.append(_better(trace, Visit(raw, claimed, trace.cost, trace.seconds)))
        if trace.cost.gradient_equivalents > most:
            trace.ended = f"{STOPPED} λ = {strength:.1e}"
            return trace
    trace.ended = "all points"
    return trace


def sklearn_grid(case: Case, *, points: int, tol: float, most: float = math.inf) -> Trace:
    """The same grid with scikit-learn: `warm_start`, lbfgs, its own stopping rule max|gradient| ≤ tol.

    SciPy's count of losses with gradients is the cost. The validation losses are not charged.
    """
    trace = Trace(f"grid of {points}, scikit-learn tol={tol:g}, warm")
    model = LogisticRegression(warm_start=True, tol=tol, max_iter=100_000)
    start = time.perf_counter()
    with counted_minimize() as evaluations:
        for strength in strengths(case, points):
            claimed = _fit(model, case, strength)
            trace.cost = Cost(gradients=evaluations[0])
            trace.seconds = time.perf_counter() - start
            raw = torch.tensor([math.log(strength)], dtype=torch.float64)
            trace.visits.append(_better(trace, Visit(raw, claimed, trace.cost, trace.seconds)))
            if trace.cost.gradient_equivalents > most:
                trace.ended = f"{STOPPED} λ = {strength:.1e}"
                return trace
    trace.ended = "all points"
    return trace


def sklearn_cold(case: Case, strength: float, *, tol: float) -> tuple[float, Cost, float]:
    """Train once from zero with scikit-learn; return its validation loss, its cost and its seconds."""
    start = time.perf_counter()
    with counted_minimize() as evaluations:
        claimed = _fit(LogisticRegression(tol=tol, max_iter=100_000), case, strength)
    return claimed, Cost(gradients=evaluations[0]), time.perf_counter() - start


def _fit(model: LogisticRegression, case: Case, strength: float) -> float:
    model.set_params(C=1.0 / (case.rows * strength))
    with warnings.catch_warnings():
        # line searches that end in rounding are what a tight tolerance asks for
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(case.train.X, case.train.y)
    return float(log_loss(case.valid.y, model.predict_proba(case.valid.X), labels=range(case.classes)))


@contextmanager
def counted_minimize() -> Iterator[list[int]]:
    """Count the losses with gradients that scipy.optimize.minimize asks for, line searches and all."""
    original, count = optimize.minimize, [0]

    def counting(*args: Any, **settings: Any) -> optimize.OptimizeResult:
        result = original(*args, **settings)
        count[0] += int(result.nfev)
        return result

    optimize.minimize = counting
    try:
        yield count
    finally:
        optimize.minimize = original


def tpe(case: Case, problem: LinearProblem, *, trials: int, relative: float) -> Trace:
    """Optuna's TPE over the same box; each training starts from the last one's weights, with our L-BFGS.

    The validation losses are not charged. A training ends after 200 iterations, converged or not, twice as many
    as scikit-learn's default: most of a box of many weak strengths is ill-conditioned, and TPE samples all of it.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    trace, oracle, w = Trace(f"TPE of {trials}, our L-BFGS, warm"), problem.oracle(), problem.initial_weights(0)
    study = optuna.create_study(direction="minimize", sampler=optuna.samplers.TPESampler(seed=0))
    low, high = case.box
    start = time.perf_counter()
    for _ in range(trials):
        trial = study.ask()
        picked = [trial.suggest_float(f"l{i}", low, high, log=True) for i in range(problem.space.size)]
        raw = torch.tensor(picked, dtype=torch.float64).log()
        w, cost = train(oracle, raw, w, relative=relative, solver=LBFGS(max_iterations=200))
        loss = float(oracle.outer(w, raw).value)
        study.tell(trial, loss)
        trace.cost += cost
        trace.seconds = time.perf_counter() - start
        trace.visits.append(_better(trace, Visit(raw, loss, trace.cost, trace.seconds)))
    trace.ended = "all trials"
    return trace


def changes(trace: Trace) -> list[Visit]:
    """Return the visits at which the contender's answer changed, in order."""
    kept: list[Visit] = []
    for visit in trace.visits:
        if not kept or not torch.equal(visit.raw, kept[-1].raw):
            kept.append(visit)
    return kept
