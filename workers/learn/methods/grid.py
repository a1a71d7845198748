"""A grid, walked so that every trial is next to the one before it."""

import math
from dataclasses import dataclass
from typing import ClassVar, Final, TypeVar, final

import torch
from torch import Tensor

from workers.learn.errors import LearnError
from workers.learn.method import AbstractMethod, Answer, Status, TrajectoryPoint
from workers.learn.methods.search import Box, SearchState, conduct
from workers.learn.problem import AbstractBilevelProblem
from workers.learn.trainer import AbstractTrainer

P = TypeVar("P", bound=AbstractBilevelProblem)

_MOST_TRIALS: Final = 10**9


@final
@dataclass(frozen=True)
class Grid(AbstractMethod[P, SearchState]):
    """Train at every point of the product of `points` values of each hyperparameter, evenly spaced in `raw`.

    For a strength that is a logarithmic grid over its box, both ends included. The walk starts at the strongest
    values, where training is easiest, and goes to and fro (a reflected Gray code): successive points differ in one
    hyperparameter by one place, so that a convex trainer that starts from the last weights computes regularization
    paths. It ends with the last point.

    Source: the order is that of the pathwise algorithms of Friedman, Hastie & Tibshirani (2010); the code that of
    Knuth, The Art of Computer Programming 4A, 7.2.1.1, algorithm H.
    """

    state_type: ClassVar[type] = SearchState

    trainer: AbstractTrainer[P]
    points: int

    def init(self, problem: P, *, seed: int) -> SearchState:
        """See `AbstractMethod.init`."""
        size = problem.space.size
        Box.of(problem, seed=seed)
        if self.points < 2:
            raise LearnError(f"a grid needs two points or more for each strength; found {self.points}")
        if size * math.log(self.points) > math.log(_MOST_TRIALS):
            raise LearnError(f"a grid of {self.points} points for each of {size} strengths never ends")
        return SearchState.start(seed)

    def step(self, problem: P, state: SearchState) -> tuple[SearchState, TrajectoryPoint]:
        """See `AbstractMethod.step`."""
        box = Box.of(problem, seed=state.seed)
        # Where the box has no extent there is one point, not so many equal ones.
        counts = [self.points if width > 0.0 else 1 for width in (box.high - box.low).tolist()]
        raw = box.at(problem, _fractions(state.step, counts))
        is_last = state.step + 1 >= math.prod(counts)
        return conduct(problem, self.trainer, state, raw, status=Status.CONVERGED if is_last else Status.RUNNING)

    def answer(self, problem: P, state: SearchState) -> Answer:  # noqa: ARG002
        """See `AbstractMethod.answer`."""
        return state.answer()


def _fractions(k: int, counts: list[int]) -> Tensor:
    """Return how far from low (0) to high (1) each hyperparameter is at the k-th point of the walk, [h]."""
    fractions = []
    for count in reversed(counts):
        k, digit = divmod(k, count)
        # A digit runs backwards whenever the number to its left is odd.
        place = count - 1 - digit if k % 2 else digit
        fractions.append(1.0 - place / (count - 1) if count > 1 else 1.0)
    return torch.tensor(fractions[::-1], dtype=torch.float64)
