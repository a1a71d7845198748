"""Linear-Gaussian data with known answers."""

import numpy as np
import torch
from sklearn.datasets import load_diabetes

from workers.learn.gaussian_regression import Regression
from workers.learn.method import run
from workers.learn.problems.design import design
from workers.learn.problems.layout import Per
from workers.learn.problems.linear import LinearProblem
from workers.learn.problems.linear_data import Examples, L2Term, LinearData, linear_problem

CPU = torch.device("cpu")


def numbers(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def first_case() -> tuple[np.ndarray, np.ndarray]:
    """E1 to E5: 40 rows, 10 features, noise 0.5."""
    draws = np.random.RandomState(0)
    features, w = draws.randn(40, 10), draws.randn(10) * 0.5
    return features, features @ w + 0.5 * draws.randn(40)


def wide_case(d: int) -> tuple[np.ndarray, np.ndarray]:
    """E13: 20 rows, more features."""
    draws = np.random.RandomState(1)
    features = draws.randn(20, d) * np.sqrt(10 / d)
    return features, features @ (0.5 * draws.randn(d)) + 0.1 * draws.randn(20)


def diabetes() -> tuple[np.ndarray, np.ndarray]:
    """E6 and E7: features and targets standardised."""
    x, y = load_diabetes(return_X_y=True)
    return (x - x.mean(0)) / x.std(0), (y - y.mean()) / y.std()


def regression(x: np.ndarray, y: np.ndarray) -> Regression:
    return Regression(design(x, dtype=torch.float64, device=CPU), torch.as_tensor(y).reshape(len(y), -1), None)


def evidence_problem(
    x: object, y: np.ndarray, per: Per = Per.MODEL, *, intercept: bool = False, initial: float = 0.1, **term: object
) -> LinearProblem:
    return linear_problem(
        LinearData(Examples(x, y)),
        loss="squared",
        terms=[L2Term("l2", initial, per, **term)],
        intercept=intercept,
        dtype=torch.float64,
        device=CPU,
    )


def finished(method, problem, *, most: int = 3000, seed: int = 0):
    """Run to the end and return the last state and all points."""
    trajectory = list(run(method, problem, method.init(problem, seed=seed), max_steps=most))
    return trajectory[-1][0], [point for _, point in trajectory]
