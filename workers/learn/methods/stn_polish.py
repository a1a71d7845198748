"""What follows a self-tuning network: implicit differentiation of the strengths that have derivatives.

A fitted response is biased by the perturbations that it is fitted under, however well it is; a hypergradient is not.
"""

from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor

from workers.learn.errors import LearnError
from workers.learn.hyperparameters import Hyper
from workers.learn.method import Answer, TrajectoryPoint
from workers.learn.methods.implicit import Implicit, ImplicitState
from workers.learn.methods.implicit_online import ImplicitOnline, OnlineState
from workers.learn.methods.stn_state import STNState
from workers.learn.problems.network import NetworkProblem
from workers.learn.regularizers.base import AbstractDiagonalRegularizer
from workers.learn.regularizers.l2 import L2

PolishState = OnlineState | ImplicitState


@final
@dataclass(frozen=True, eq=False)
class Polish:
    """Implicit differentiation from where a self-tuning network ended, with the strengths of noises as they are."""

    method: ImplicitOnline | Implicit
    """The one for networks in training; or, for models that are linear in their weights and see no noise, the exact."""
    steps: int

    def check(self, problem: NetworkProblem) -> None:
        """Raise LearnError if the method is not for such a problem."""
        if isinstance(self.method, Implicit) and (problem.noises or len(problem.chain.maps) > 1):
            raise LearnError("exact implicit differentiation is for linear models without noise; take ImplicitOnline")

    def has_work(self, problem: NetworkProblem) -> bool:
        """Return whether there is a learned strength that training has derivatives in."""
        return self.steps > 0 and any(rule.hyperparameters() for rule in problem.regularizers)

    def start(self, problem: NetworkProblem, state: STNState, at: Answer) -> PolishState:
        """Return the state before the first step, at the answer of a self-tuning network."""
        narrowed = self._narrowed(problem, at.raw)
        match self.method:
            case Implicit():
                return self.method.init(narrowed, seed=state.seed)
            case ImplicitOnline():
                start = self.method.init(narrowed, seed=state.seed)
                moments = self.method.training.optimizer.start(at.weights)
                # Batches and noise go on from here, and no burn-in begins.
                training = replace(state.training, w=at.weights, moments=moments, average=at.weights)
                return replace(start, training=training)

    def step(
        self, problem: NetworkProblem, state: PolishState, at: Answer
    ) -> tuple[PolishState, TrajectoryPoint, dict[str, Tensor]]:
        """Return the next state, its point, and the natural values of everything at the point.

        Args:
            problem: the whole one.
            state: of the polishing.
            at: where it began.
        """
        narrowed = self._narrowed(problem, at.raw)
        match self.method, state:
            case Implicit(), ImplicitState():
                after: PolishState
                after, point = self.method.step(narrowed, state)
            case ImplicitOnline(), OnlineState():
                after, point = self.method.step(narrowed, state)
            case _:
                raise LearnError("the state is of another way to polish")
        values = problem.space.constrain(at.raw.detach().double().cpu())
        return after, point, {**values, **point.hyperparameters}

    def answer(self, problem: NetworkProblem, state: PolishState, at: Answer) -> Answer | None:
        """Return the best that was found; None before the first step."""
        if state.best is None:
            return None
        free = sum(block.size for rule in problem.regularizers for block in rule.hyperparameters())
        return Answer(torch.cat([state.best.raw, at.raw[free:]]), state.best.weights)

    def _narrowed(self, problem: NetworkProblem, raw: Tensor) -> NetworkProblem:
        hyper = problem.space.constrain(raw.detach().double().cpu())
        return replace(
            problem,
            regularizers=tuple(_starting_at(rule, hyper) for rule in problem.regularizers),
            noises=problem.noises.fixed_at(hyper),
        )


def _starting_at(rule: AbstractDiagonalRegularizer, hyper: Hyper) -> AbstractDiagonalRegularizer:
    if not isinstance(rule, L2) or rule.fixed:
        return rule
    # Where the box is closed, rounding must not step over its border.
    return replace(rule, initial=hyper[rule.name].clamp(rule.low, rule.high))
