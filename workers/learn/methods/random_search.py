"""Random search."""

from dataclasses import dataclass
from typing import ClassVar, TypeVar, final

import numpy as np
import torch

from workers.learn.method import AbstractMethod, Answer, TrajectoryPoint
from workers.learn.methods.search import Box, SearchState, conduct
from workers.learn.problem import AbstractBilevelProblem
from workers.learn.trainer import AbstractTrainer

P = TypeVar("P", bound=AbstractBilevelProblem)


@final
@dataclass(frozen=True)
class RandomSearch(AbstractMethod[P, SearchState]):
    """Train at hyperparameters that are uniform in the raw box: strengths log-uniform, each by itself.

    The k-th trial is a function of the seed and of k alone: a longer search begins with the shorter one.

    Source: Bergstra & Bengio (2012).
    """

    state_type: ClassVar[type] = SearchState

    trainer: AbstractTrainer[P]

    def init(self, problem: P, *, seed: int) -> SearchState:
        """See `AbstractMethod.init`."""
        Box.of(problem, seed=seed)
        return SearchState.start(seed)

    def step(self, problem: P, state: SearchState) -> tuple[SearchState, TrajectoryPoint]:
        """See `AbstractMethod.step`."""
        box = Box.of(problem, seed=state.seed)
        drawn = np.random.default_rng([state.seed, state.step]).random(problem.space.size)
        return conduct(problem, self.trainer, state, box.at(problem, torch.as_tensor(drawn)))

    def answer(self, problem: P, state: SearchState) -> Answer:  # noqa: ARG002
        """See `AbstractMethod.answer`."""
        return state.answer()
