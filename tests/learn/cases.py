"""Small linear problems of every kind, for tests to share."""

import numpy as np
import scipy.sparse
import torch
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits
from sklearn.preprocessing import StandardScaler

from workers.learn.problems.layout import Per
from workers.learn.problems.linear import LinearProblem
from workers.learn.problems.linear_data import Examples, L2Term, LinearData, linear_problem

CPU = torch.device("cpu")
CLASSES = {"squared": 0, "logistic": 2, "softmax": 3}


def small_problem(
    kind: str = "squared",
    per: Per = Per.MODEL,
    *,
    sparse: bool = False,
    folds: int = 0,
    intercept: bool = True,
    initial: float = 0.05,
    biases: bool = False,
    seed: int = 0,
    n: int = 36,
    d: int = 4,
    order: np.ndarray | None = None,
    dtype: torch.dtype = torch.float64,
) -> LinearProblem:
    """Return a random problem; `kind` is squared, logistic or softmax (three classes)."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, d)) + 0.3
    if sparse:
        X = X * (rng.random(size=X.shape) < 0.6)
    score = X @ rng.normal(size=(d, max(CLASSES[kind], 1))) + rng.normal(size=(n, max(CLASSES[kind], 1)))
    match kind:
        case "squared":
            y = score[:, 0]
        case "logistic":
            y = (score[:, 0] > 0).astype(np.int64)
        case _:
            y = score.argmax(1)
    fold = np.arange(n) % max(folds, 1)
    if order is not None:
        X, y, fold = X[order], y[order], fold[order]

    def part(rows: np.ndarray) -> Examples:
        return Examples(scipy.sparse.csr_array(X[rows]) if sparse else X[rows], y[rows])

    if folds:
        data = LinearData(part(np.arange(n)), fold=fold)
    else:
        is_train = (np.arange(n) if order is None else order) < n // 2
        data = LinearData(part(np.flatnonzero(is_train)), part(np.flatnonzero(~is_train)))
    return linear_problem(
        data,
        loss="squared" if kind == "squared" else "cross_entropy",
        terms=[L2Term("l2", initial, per, 1e-8, 1e4, biases=biases)],
        intercept=intercept,
        dtype=dtype,
        device=CPU,
        classes=CLASSES[kind] or None,
    )


def raw_of(problem: LinearProblem, *, seed: int = 1) -> torch.Tensor:
    """Return raw hyperparameters near the initial ones, all different."""
    raw = problem.space.initial(torch.float64, CPU)
    return raw + torch.linspace(-0.5, 0.5, raw.numel() + 2, dtype=torch.float64)[1:-1]


def named_problem(name: str, *, initial: float = 1e-2, per: Per = Per.MODEL) -> LinearProblem:
    """Return scikit-learn's digits, breast_cancer or diabetes, standardised, half held out."""
    load = {"digits": load_digits, "breast_cancer": load_breast_cancer, "diabetes": load_diabetes}[name]
    X, y = load(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(y))
    half = len(y) // 2
    train, valid = order[:half], order[half:]
    X = StandardScaler().fit(X[train]).transform(X)
    return linear_problem(
        LinearData(Examples(X[train], y[train]), Examples(X[valid], y[valid])),
        loss="squared" if name == "diabetes" else "cross_entropy",
        terms=[L2Term("l2", initial, per, 1e-8, 1e4)],
        intercept=True,
        dtype=torch.float64,
        device=CPU,
    )
