"""Bayesian optimization by tree-structured Parzen estimators."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, TypeVar, final

import numpy as np
import torch
from torch import Tensor

from workers.learn.cost import Cost
from workers.learn.method import AbstractMethod, Answer, TrajectoryPoint
from workers.learn.methods.search import Box, SearchState, conduct
from workers.learn.problem import AbstractBilevelProblem
from workers.learn.trainer import AbstractTrainer

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

P = TypeVar("P", bound=AbstractBilevelProblem)


@dataclass(frozen=True)
class TPEState:
    """All that changes during a search that learns from all that it has seen."""

    search: SearchState
    fractions: Tensor
    """Where each trial was, as fractions of the box, [step, h], float64 on the CPU."""
    values: Tensor
    """Outer loss of each, [step], float64 on the CPU; not finite where it failed."""

    @property
    def step(self) -> int:
        """See `State.step`."""
        return self.search.step

    @property
    def cost(self) -> Cost:
        """See `State.cost`."""
        return self.search.cost


@final
@dataclass(frozen=True)
class TPE(AbstractMethod[P, TPEState]):
    """Optuna's multivariate TPE sampler in the raw box, one trial a step.

    Optuna keeps nothing between steps: its study is built anew from the state, and its sampler is seeded from the
    seed and the step. So a resumed search is the same search; it is another one than a single `study.optimize` of
    the same seed, whose sampler goes on drawing from one stream.

    Failed trials are handed on as pruned ones, which count among the worst, so that the search avoids them.

    Source: Bergstra et al. (2011); Akiba et al. (2019).
    """

    state_type: ClassVar[type] = TPEState

    trainer: AbstractTrainer[P]
    startup_trials: int = 10
    """Random trials before the first that is modelled."""

    def init(self, problem: P, *, seed: int) -> TPEState:
        """See `AbstractMethod.init`."""
        box = Box.of(problem, seed=seed)
        return TPEState(SearchState.start(seed), box.low.new_zeros((0, box.low.numel())), box.low.new_zeros(0))

    def step(self, problem: P, state: TPEState) -> tuple[TPEState, TrajectoryPoint]:
        """See `AbstractMethod.step`."""
        box = Box.of(problem, seed=state.search.seed)
        fractions = self._suggest(state)
        search, point = conduct(problem, self.trainer, state.search, box.at(problem, fractions))
        value = math.nan if point.valid_loss is None or not math.isfinite(point.train_loss) else point.valid_loss
        after = TPEState(
            search=search,
            fractions=torch.cat([state.fractions, fractions[None]]),
            values=torch.cat([state.values, state.values.new_tensor([value])]),
        )
        return after, point

    def answer(self, problem: P, state: TPEState) -> Answer:  # noqa: ARG002
        """See `AbstractMethod.answer`."""
        return state.search.answer()

    def _suggest(self, state: TPEState) -> Tensor:
        """Return where to try next, [h]."""
        import optuna  # its import takes a third of a second, which only its own jobs pay

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        entropy = np.random.SeedSequence([state.search.seed, state.step])
        sampler = optuna.samplers.TPESampler(
            n_startup_trials=self.startup_trials, seed=int(entropy.generate_state(1)[0])
        )
        study = optuna.create_study(sampler=sampler, direction="minimize")
        names = [f"{i}" for i in range(state.fractions.shape[1])]
        unit = optuna.distributions.FloatDistribution(0.0, 1.0)
        space: dict[str, optuna.distributions.BaseDistribution] = dict.fromkeys(names, unit)

        def past(place: list[float], value: float) -> "FrozenTrial":
            failed = not math.isfinite(value)
            return optuna.trial.create_trial(
                state=optuna.trial.TrialState.PRUNED if failed else optuna.trial.TrialState.COMPLETE,
                value=None if failed else value,
                params=dict(zip(names, place, strict=True)),
                distributions=space,
            )

        trials = zip(state.fractions.tolist(), state.values.tolist(), strict=True)
        study.add_trials([past(place, value) for place, value in trials])
        chosen = study.ask(fixed_distributions=space).params
        return state.fractions.new_tensor([chosen[name] for name in names])
