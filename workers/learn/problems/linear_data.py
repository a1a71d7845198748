"""From arrays and settings to a linear problem."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from workers.learn.errors import LearnError
from workers.learn.inner.reduced_newton import ReducedNewton
from workers.learn.losses.base import AbstractLoss
from workers.learn.losses.logistic import Logistic
from workers.learn.losses.softmax import Softmax
from workers.learn.losses.squared import Squared
from workers.learn.problems.design import Array, design
from workers.learn.problems.layout import Layout, Per
from workers.learn.problems.linear import LinearProblem, Rows
from workers.learn.regularizers.l1 import L1
from workers.learn.regularizers.l2 import L2
from workers.learn.sparse_oracle import SparseOracle


@dataclass(frozen=True, eq=False)
class Examples:
    """Rows of features, [n, d], dense or scipy-sparse, and their targets: [n], or [n, c] for regression."""

    X: Array
    y: np.ndarray


@dataclass(frozen=True, eq=False)
class LinearData:
    """Parts of the data: train and valid held apart, or all rows that are not test rows, with a fold each.

    With `fold` [n] (0 … k − 1 for each row of `train`) there are k models: model j trains on the rows of all folds
    but j and is validated on those of j, and `valid` must be None. With neither the problem has no outer loss, which
    is enough for a method that learns from the evidence.
    """

    train: Examples
    valid: Examples | None = None
    test: Examples | None = None
    fold: np.ndarray | None = None


@dataclass(frozen=True)
class L2Term:
    """One penalty ½ Σ λ_g w_j² and its strengths; `fixed` keeps them at `initial`."""

    name: str
    initial: float
    per: Per = Per.MODEL
    low: float | None = None
    high: float | None = None
    fixed: bool = False
    biases: bool = False


@dataclass(frozen=True)
class L1Term:
    """One penalty Σ λ_g |w_j| and its strengths; `fixed` keeps them at `initial`. Intercepts are never in it."""

    name: str
    initial: float
    per: Per = Per.MODEL
    low: float | None = None
    high: float | None = None
    fixed: bool = False


def linear_problem(
    data: LinearData,
    *,
    loss: str,
    terms: Sequence[L2Term | L1Term],
    intercept: bool,
    dtype: torch.dtype,
    device: torch.device | str,
    classes: int | None = None,
) -> LinearProblem:
    """Build a linear problem, everything moved to the device once.

    Args:
        data: arrays; class numbers 0 … C − 1 for cross-entropy.
        loss: "cross_entropy" (one output for two classes, else one for each) or "squared" (½ mean (Xw − y)²).
        terms: penalties; intercepts are penalised only by those with `biases`.
        intercept: whether the models have one.
        dtype: of everything; float64 unless there is a reason.
        device: where everything lies.
        classes: C, if not all of them occur among the rows.

    Raises:
        LearnError: parts that do not fit each other, the loss or the settings.
    """
    _check(data)
    where = torch.device(device)
    folds = 0 if data.fold is None else int(np.max(data.fold)) + 1
    models = max(folds, 1)
    rule, outputs = _loss(loss, data, classes)
    penalised = intercept and any(isinstance(term, L2Term) and term.biases for term in terms)
    train = _rows(data.train, rule, models, dtype, where)
    layout = Layout.make(
        features=train.design.columns,
        models=models,
        outputs=outputs,
        intercept=intercept,
        confined=rule.has_shift and not penalised,
        like=train.weights,
    )
    valid = None if data.valid is None else _rows(data.valid, rule, models, dtype, where)
    if data.fold is not None:
        train, valid = _in_folds(train, torch.as_tensor(np.asarray(data.fold)).to(where), folds)
    problem = LinearProblem(
        layout=layout,
        loss=rule,
        regularizers=tuple(_l2(layout, term, where) for term in terms if isinstance(term, L2Term)),
        train=train,
        valid=valid,
        test=None if data.test is None else _rows(data.test, rule, 1, dtype, where),
        sparse=tuple(_l1(layout, term, where) for term in terms if isinstance(term, L1Term)),
    )
    return problem if not problem.sparse else _within_reach(problem)


def refit_problem(problem: LinearProblem, terms: Sequence[L2Term | L1Term]) -> LinearProblem:
    """Return the problem of the final model after folds: one model, trained on the rows of all folds.

    It has the same hyperparameters, so the raw strengths that were learned apply. It has no validation rows of its
    own; as its outer loss it is given the test rows, or its training rows if there are none, for reporting only.
    """
    rows = problem.train.design.rows
    weights = problem.train.weights.new_full((rows, 1), 1.0 / rows)
    train = replace(problem.train, weights=weights)
    layout = replace(problem.layout, models=1)
    device = weights.device
    return LinearProblem(
        layout=layout,
        loss=problem.loss,
        regularizers=tuple(_l2(layout, term, device) for term in terms if isinstance(term, L2Term)),
        train=train,
        valid=problem.test if problem.test is not None else train,
        test=problem.test,
        sparse=tuple(_l1(layout, term, device) for term in terms if isinstance(term, L1Term)),
    )


def _l2(layout: Layout, term: L2Term, device: torch.device) -> L2:
    groups, shape = layout.groups(term.per, biases=term.biases)
    return L2(term.name, groups.to(device), term.initial, shape, term.fixed, term.low, term.high)


def _l1(layout: Layout, term: L1Term, device: torch.device) -> L1:
    groups, shape = layout.groups(term.per, biases=False)
    return L1(term.name, groups.to(device), term.initial, shape, term.fixed, term.low, term.high)


def _within_reach(problem: LinearProblem) -> LinearProblem:
    """Return the problem with sparse strengths that start where weights are active.

    Above max |∂_j smooth| at w = 0, of all weights of a group, the whole group is zero and stays so: the outer loss
    does not depend on its strength there, and nothing could be learned. So boxes end at the largest such number, and
    each strength starts at a tenth of its own or lower.

    Source: Bertrand et al. (2022), section 5, for the box.
    """
    slopes = _slopes_of_nothing(problem).abs()
    kept = []
    for penalty in problem.sparse:
        if penalty.fixed:
            kept.append(penalty)
            continue
        most = slopes.new_zeros(penalty.size + 1).scatter_reduce_(0, penalty.groups, slopes, "amax")[:-1]
        high = min(float(most.max()), math.inf if penalty.high is None else penalty.high)
        low = min(0.0 if penalty.low is None else penalty.low, high)
        initial = torch.clamp(0.1 * most, max=float(penalty.initial)).clamp(low, high).double().cpu()
        start = initial.reshape(penalty.shape) if penalty.shape else float(initial)
        kept.append(replace(penalty, initial=start, low=penalty.low and low, high=high))
    return replace(problem, sparse=tuple(kept))


def _slopes_of_nothing(problem: LinearProblem) -> Tensor:
    """Return ∂ of the mean losses in the coefficients, [p], with coefficients zero and intercepts trained."""
    nothing = L1("nothing", torch.zeros_like(problem.sparse[0].groups), 1e30, fixed=True)
    intercepts = torch.arange(problem.layout.size, device=nothing.groups.device) >= problem.layout.coefficients
    nothing = replace(nothing, groups=torch.where(intercepts, 1, 0))
    alone = replace(problem, regularizers=(), sparse=(nothing,))
    oracle, raw, w = alone.oracle(), alone.space.initial(torch.float64, torch.device("cpu")), alone.initial_weights(0)
    raw = raw.to(w)
    assert isinstance(oracle, SparseOracle)  # noqa: S101 (it has absolute values)
    if problem.layout.intercepts:
        w = ReducedNewton(max_iterations=50).solve(oracle, raw, w, tol=1e-6).w
    return oracle.smooth_part(w, raw).gradient


def _loss(name: str, data: LinearData, classes: int | None) -> tuple[AbstractLoss, int]:
    y = np.asarray(data.train.y)
    if name == "squared":
        return Squared(), 1 if y.ndim == 1 else y.shape[1]
    if name != "cross_entropy":
        raise LearnError(f"no loss {name!r} for linear models; there are 'cross_entropy' and 'squared'")
    parts = [part for part in (data.train, data.valid, data.test) if part is not None]
    found = np.unique(np.concatenate([np.asarray(part.y).reshape(-1) for part in parts]))
    if not np.array_equal(found, np.round(found)) or found[0] < 0:
        raise LearnError("class numbers must be whole and start at 0")
    count = int(found[-1]) + 1 if classes is None else classes
    if count <= found[-1] or count < 2:
        raise LearnError(f"found class number {int(found[-1])}, but there are {count} classes; at least 2 needed")
    return (Logistic(), 1) if count == 2 else (Softmax(), count)


def _rows(part: Examples, loss: AbstractLoss, models: int, dtype: torch.dtype, device: torch.device) -> Rows:
    X = design(part.X, dtype=dtype, device=device)
    y = torch.as_tensor(np.asarray(part.y)).to(device)
    n = X.rows
    y = y.long() if isinstance(loss, Softmax) else y.to(dtype)
    return Rows(X, y, torch.full((n, models), 1.0 / n, dtype=dtype, device=device))


def _in_folds(rows: Rows, fold: Tensor, folds: int) -> tuple[Rows, Rows]:
    inside = (fold[:, None] == torch.arange(folds, device=fold.device)).to(rows.weights.dtype)  # [n, k]
    outside = 1.0 - inside
    return (
        replace(rows, weights=outside / outside.sum(0)),
        replace(rows, weights=inside / inside.sum(0)),
    )


def _check(data: LinearData) -> None:
    for name, part in (("train", data.train), ("valid", data.valid), ("test", data.test)):
        if part is None:
            continue
        if len(part.X.shape) != 2 or part.X.shape[0] != np.asarray(part.y).shape[0] or part.X.shape[0] == 0:
            raise LearnError(f"{name}: X has shape {part.X.shape} and y {np.asarray(part.y).shape}")
        if part.X.shape[1] != data.train.X.shape[1]:
            raise LearnError(f"{name} has {part.X.shape[1]} features; train has {data.train.X.shape[1]}")
    if data.fold is None:
        return
    if data.valid is not None:
        raise LearnError("with folds there are no validation rows beside them")
    fold = np.asarray(data.fold)
    if fold.shape != (data.train.X.shape[0],) or not np.issubdtype(fold.dtype, np.integer):
        raise LearnError("fold must be a whole number for each training row")
    if np.min(fold) < 0 or np.max(fold) < 1 or np.bincount(fold).min() == 0:
        raise LearnError("folds are numbered 0 … k − 1, at least two of them, and none is empty")
