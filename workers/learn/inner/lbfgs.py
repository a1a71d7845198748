"""Limited-memory BFGS."""

from dataclasses import dataclass
from typing import final

import numpy as np
import scipy.linalg
import torch
from torch import Tensor

from workers.learn.cost import Cost
from workers.learn.inner.base import AbstractInnerSolver, InnerSolution
from workers.learn.inner.line_search import Trial, wolfe
from workers.learn.oracle import AbstractOracle

_STALLED = 3


@final
@dataclass(frozen=True)
class LBFGS(AbstractInnerSolver):
    """Quasi-Newton steps from the last `memory` changes of the gradient.

    The direction comes from the compact form of the inverse, two products with tall matrices and triangular
    solves of the size of the memory, so that a step costs one gradient, as a rule, and one synchronisation with
    the device. When rounding leaves no step that lowers the loss, it stops and says that it did not converge.

    Source: Byrd, Nocedal, Schnabel (1994), theorem 2.2.
    """

    memory: int = 10
    max_iterations: int = 10_000
    first_step: float | None = None
    """Length of t in the very first step; None for min(1, 1/‖gradient‖). One fits preconditioned problems."""

    def solve(self, oracle: AbstractOracle, raw: Tensor, w0: Tensor, *, tol: float) -> InnerSolution:
        """See `AbstractInnerSolver.solve`."""
        at = oracle.inner(w0, raw)
        w, value, norm = w0, float(at.value), float(torch.linalg.vector_norm(at.gradient))
        pairs = Pairs.empty(w0, self.memory)
        gradients, iterations, stalled, restarted = 1, 0, 0, False
        precision = torch.finfo(w0.dtype).eps
        while norm > tol and iterations < self.max_iterations and np.isfinite(value):
            direction = pairs.direction(at.gradient)
            slope = float(torch.dot(direction, at.gradient))
            if not slope < 0.0:
                if not len(pairs):
                    break
                pairs = Pairs.empty(w0, self.memory)
                continue
            first = 1.0
            if not len(pairs):
                first = min(1.0, 1.0 / norm) if self.first_step is None else self.first_step
            here, along = w, direction

            def evaluate(t: float, here: Tensor = here, along: Tensor = along) -> Trial:
                there = here + t * along
                found = oracle.inner(there, raw)
                both = torch.stack([found.value, torch.dot(found.gradient, along)]).tolist()
                return Trial(t, both[0], both[1], found, there)

            start = Trial(0.0, value, slope, at, w)
            found, evaluations = wolfe(
                evaluate, start, first=first, armijo=1e-4, curvature=0.9, resolution=4 * precision * abs(value)
            )
            gradients += evaluations
            iterations += 1
            if found is None:
                if restarted or not len(pairs):
                    break
                pairs, restarted = Pairs.empty(w0, self.memory), True
                continue
            restarted = False
            pairs = pairs.add(found.w - w, found.at.gradient - at.gradient)
            before, (w, at) = norm, (found.w, found.at)
            norm = float(torch.linalg.vector_norm(at.gradient))
            # Neither the loss nor the gradient moves: the precision of the numbers is used up.
            still = abs(value - found.value) <= precision * abs(value) and norm > 0.9 * before
            stalled = stalled + 1 if still else 0
            value = found.value
            if stalled >= _STALLED:
                break
        return InnerSolution(w, value, at.gradient, norm, iterations, norm <= tol, Cost(iterations, gradients, 0, 0))


@dataclass(frozen=True)
class Pairs:
    """Steps s and changes of the gradient y, newest last, with their inner products on the host."""

    s: Tensor
    y: Tensor
    sy: np.ndarray
    """s_iᵀ y_j, [m, m]."""
    yy: np.ndarray
    memory: int

    @staticmethod
    def empty(like: Tensor, memory: int) -> "Pairs":
        """Return no pairs, for vectors like `like`."""
        none = like.new_zeros((0, like.shape[0]))
        return Pairs(none, none, np.zeros((0, 0)), np.zeros((0, 0)), memory)

    def __len__(self) -> int:
        return self.s.shape[0]

    def add(self, s: Tensor, y: Tensor) -> "Pairs":
        """Return the pairs with one more and, if full, without the oldest; a pair of no curvature is left out."""
        drop = 1 if len(self) == self.memory else 0
        new_s = torch.cat([self.s[drop:], s[None]])
        new_y = torch.cat([self.y[drop:], y[None]])
        products = torch.stack([new_s @ y, new_y @ s, new_y @ y]).cpu().double().numpy()
        ss = float(torch.dot(s, s))
        if not products[0, -1] > 1e-14 * np.sqrt(ss * products[2, -1]):
            return self
        m = len(self) - drop
        sy, yy = np.empty((m + 1, m + 1)), np.empty((m + 1, m + 1))
        sy[:m, :m], yy[:m, :m] = self.sy[drop:, drop:], self.yy[drop:, drop:]
        sy[:, m], sy[m, :] = products[0], products[1]
        yy[:, m] = yy[m, :] = products[2]
        return Pairs(new_s, new_y, sy, yy, self.memory)

    def direction(self, gradient: Tensor) -> Tensor:
        """Return −H g, with H the inverse that the pairs tell of; −g without any."""
        if not len(self):
            return -gradient
        gamma = self.sy[-1, -1] / self.yy[-1, -1]
        sg, yg = torch.stack([self.s @ gradient, self.y @ gradient]).cpu().double().numpy()
        upper = np.triu(self.sy)
        u = scipy.linalg.solve_triangular(upper, sg, lower=False)
        middle = np.diag(np.diag(self.sy)) + gamma * self.yy
        of_s = scipy.linalg.solve_triangular(upper, middle @ u - gamma * yg, lower=False, trans="T")
        coefficients = torch.as_tensor(np.stack([of_s, -gamma * u]), dtype=self.s.dtype, device=self.s.device)
        change: Tensor = gamma * gradient + coefficients[0] @ self.s + coefficients[1] @ self.y
        return -change
