"""What is true of a set of strengths, found outside of every clock and counter."""

import math

import numpy as np
import torch
from linear_cases import Case
from linear_rivals import strengths
from scipy import optimize
from torch import Tensor

from workers.learn.hypergradient import hypergradient
from workers.learn.inner.lbfgs import LBFGS
from workers.learn.linear import CG
from workers.learn.oracle import AbstractMetric
from workers.learn.problem import Part
from workers.learn.problems.linear import LinearProblem
from workers.learn.whitened_oracle import WhitenedOracle

_INNER = 1e-6
"""Gradient that is left of a training, relative to that at w = 0, both in coordinates of the metric."""
_ADJOINT = 1e-6
"""Residual that is left of an adjoint, relative to its right-hand side."""


class Judge:
    """True outer losses and hypergradients of a problem: every training is solved tightly.

    In the coordinates of the problem's metric, which makes it quick and leaves the solution as it is.
    """

    def __init__(self, problem: LinearProblem) -> None:
        self.problem = problem
        self._oracle = problem.oracle()
        self._zero = problem.initial_weights(0)
        self._w, self._adjoint = self._zero, self._zero
        self._known: dict[bytes, tuple[float, float]] = {}
        self.best: tuple[float, Tensor] = (math.inf, torch.zeros(0))

    def losses(self, raw: Tensor) -> tuple[float, float]:
        """Return the validation and the test loss of the weights that the strengths lead to."""
        key = raw.numpy().tobytes()
        if key not in self._known:
            self._train(raw)
            valid = float(self._oracle.outer(self._w, raw).value)
            self._known[key] = valid, self.problem.evaluate(self._w, Part.TEST)["loss"]
            if valid < self.best[0]:
                self.best = valid, raw.clone()
        return self._known[key]

    def hypergradient(self, raw: Tensor) -> tuple[float, Tensor]:
        """Return the validation loss and its derivative in the raw strengths."""
        self._train(raw)
        seen, metric = self._whitened(raw)
        u, q = metric.inverse(self._w), metric.inverse(self._adjoint)
        size = float(seen.outer(u, raw).gradient.norm())
        found = hypergradient(seen, u, raw, CG(), tol=_ADJOINT * size, adjoint0=q)
        self._adjoint = metric.forward(found.adjoint.x)
        return found.outer, found.value

    def _train(self, raw: Tensor) -> None:
        seen, metric = self._whitened(raw)
        tol = _INNER * float(seen.inner(self._zero, raw).gradient.norm())
        solution = LBFGS(memory=30, first_step=1.0).solve(seen, raw, metric.inverse(self._w), tol=tol)
        if not solution.converged:
            raise RuntimeError(f"the reference training stopped at a gradient of {solution.gradient_norm:.1e}")
        self._w = metric.forward(solution.w)

    def _whitened(self, raw: Tensor) -> tuple[WhitenedOracle, AbstractMetric]:
        metric = self._oracle.metric(raw, self._w)
        if metric is None:
            raise RuntimeError("linear problems offer a metric")
        return WhitenedOracle(self._oracle, metric), metric


def best_single(case: Case, judge: Judge) -> None:
    """Find the best of one strength: a grid over the box, then Brent's method around its best point.

    The grid ends where the loss has risen far above the best: what is weaker is dear and worse.
    """
    if case.effort.best is not None:
        judge.losses(torch.tensor([math.log(case.effort.best)], dtype=torch.float64))
        return
    grid = np.log(strengths(case, 30))
    losses: list[float] = []
    for x in grid:
        losses.append(judge.losses(torch.tensor([x], dtype=torch.float64))[0])
        if losses[-1] > 1.2 * min(losses):
            break
    best = int(np.argmin(losses))
    near = grid[max(0, best - 1) : best + 2]
    optimize.minimize_scalar(
        lambda x: judge.losses(torch.tensor([x], dtype=torch.float64))[0],
        bounds=(float(near.min()), float(near.max())),
        method="bounded",
        options={"xatol": 1e-3},
    )


def best_of_many(judge: Judge, start: Tensor, *, iterations: int) -> None:
    """Look for the best of many strengths: SciPy's L-BFGS-B on hypergradients of tight solves, in the box."""
    low, high = judge.problem.space.bounds(torch.float64, torch.device("cpu"))

    def evaluate(x: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = judge.hypergradient(torch.from_numpy(x.copy()))
        return value, gradient.numpy()

    found = optimize.minimize(
        evaluate,
        start.numpy(),
        jac=True,
        method="L-BFGS-B",
        bounds=list(zip(low.tolist(), high.tolist(), strict=True)),
        options={"maxiter": iterations, "maxfun": 2 * iterations, "ftol": 1e-10, "gtol": 1e-8},
    )
    judge.losses(torch.from_numpy(found.x))
