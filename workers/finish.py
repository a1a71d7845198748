"""The model that a job leaves behind: trained to the end at the strengths that were learned."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from workers.calibration import AnyCalibration, calibrations
from workers.learn.cost import Cost
from workers.learn.inner.base import InnerSolution
from workers.learn.inner.lbfgs import LBFGS
from workers.learn.inner.reduced_newton import ReducedNewton
from workers.learn.method import Answer
from workers.learn.problem import Part
from workers.learn.problems.linear import LinearProblem
from workers.learn.problems.linear_data import L1Term, L2Term, refit_problem
from workers.learn.whitened_oracle import WhitenedOracle
from workers.precision import in_double


@dataclass(frozen=True, eq=False)
class FinishedModel:
    """The final weights, and how well they do."""

    weights: dict[str, Tensor]
    """`weight` [c, d] and, with an intercept, `bias` [c]; on the CPU, for standardised features."""
    metrics: dict[str, dict[str, float]]
    """Part → name → value. With folds, those of `train` and `valid` are means over folds."""
    trained_on: str
    """`train`, or `folds` for all rows that are not test rows."""
    rows: int
    strength_factor: float
    """What the learned strengths were multiplied with for the final training; 1 without folds."""
    cost: Cost
    calibration: Mapping[str, AnyCalibration] = field(default_factory=dict)
    """Of every part whose predictions have probabilities."""


def finish(problem: LinearProblem, answer: Answer, terms: Sequence[L2Term | L1Term], *, seed: int) -> FinishedModel:
    """Train once more, in float64 and as far as that goes, and measure every part.

    With folds the final model is trained on the rows of all folds. A strength λ of a mean loss over n rows is a
    Gaussian prior of precision n λ on each weight, and it is the prior that was learned: on N rows instead of n the
    learned strengths are multiplied by n/N. Strengths that the job fixed stay as they are.

    Args:
        problem: the problem that the job posed.
        answer: what the method found.
        terms: the penalties that the problem was made with.
        seed: the job's.
    """
    problem, answer = in_double(problem, answer)
    solution = _train(problem, answer.raw, answer.weights)
    if problem.layout.models == 1:
        parts = _in_order(problem.parts())
        metrics = {part.value: problem.evaluate(solution.w, part) for part in parts}
        found = calibrations(problem, solution.w, parts)
        weights = problem.named_weights(solution.w)
        return FinishedModel(_on_cpu(weights), metrics, "train", problem.train.design.rows, 1.0, solution.cost, found)
    metrics = {part.value: problem.evaluate(solution.w, part) for part in (Part.TRAIN, Part.VALID)}
    found = calibrations(problem, solution.w, (Part.TRAIN, Part.VALID))
    refit = refit_problem(problem, terms)
    rows = refit.train.design.rows
    factor = _mean_training_rows(problem) / rows
    natural = {name: factor * value for name, value in problem.space.constrain(answer.raw).items()}
    final = _train(refit, refit.space.unconstrain(natural), refit.initial_weights(seed))
    if Part.TEST in refit.parts():
        metrics[Part.TEST.value] = refit.evaluate(final.w, Part.TEST)
        found |= calibrations(refit, final.w, (Part.TEST,))
    return FinishedModel(
        _on_cpu(refit.named_weights(final.w)), metrics, "folds", rows, factor, solution.cost + final.cost, found
    )


def _train(problem: LinearProblem, raw: Tensor, w0: Tensor) -> InnerSolution:
    oracle = problem.oracle()
    if problem.sparse:
        return ReducedNewton(margin=1.0).solve(oracle, raw, w0, tol=1e-10)
    metric = oracle.metric(raw, w0)
    # Half its square is the excess of the loss, where the metric is near the Hessian: beyond this is rounding.
    tol = 1e-9
    if metric is None:
        return LBFGS().solve(oracle, raw, w0, tol=tol)
    seen = WhitenedOracle(oracle, metric)
    found = LBFGS(first_step=1.0).solve(seen, raw, metric.inverse(w0), tol=tol)
    return replace(found, w=metric.forward(found.w))


def _mean_training_rows(problem: LinearProblem) -> float:
    """Mean over folds of the rows that each fold's model trains on."""
    return float((problem.train.weights > 0).sum()) / problem.layout.models


def _in_order(parts: frozenset[Part]) -> list[Part]:
    return [part for part in Part if part in parts]


def _on_cpu(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu() for name, tensor in weights.items()}
