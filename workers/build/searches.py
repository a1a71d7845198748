"""Searches from a specification: they take any trainer."""

from typing import Final, TypeVar, assert_never, cast

from service.spec import methods as specs
from workers.learn.inner.reduced_newton import ReducedNewton
from workers.learn.methods.grid import Grid
from workers.learn.methods.random_search import RandomSearch
from workers.learn.methods.tpe import TPE
from workers.learn.problem import AbstractBilevelProblem
from workers.learn.trainer import AbstractTrainer, ConvexTrainer
from workers.study import AnyMethod

P = TypeVar("P", bound=AbstractBilevelProblem)

SearchSpec = specs.Grid | specs.RandomSearch | specs.TPE

_BEST_ACCURACY: Final = 1e-10
"""Beyond it, double precision ends a training rather than its tolerance."""


def build_search(method: SearchSpec, trainer: AbstractTrainer[P]) -> AnyMethod:
    """Return the search of a job whose models `trainer` trains."""
    match method:
        case specs.Grid():
            # A search takes one kind of problem and of state; whoever iterates hands back what it was handed.
            return cast("AnyMethod", Grid(trainer, points=method.points))
        case specs.RandomSearch():
            return cast("AnyMethod", RandomSearch(trainer))
        case specs.TPE():
            return cast("AnyMethod", TPE(trainer, startup_trials=method.startup_trials))
        case _:
            assert_never(method)


def build_convex_trainer(*, tolerance: float, has_kinks: bool) -> ConvexTrainer:
    """Return the training of trials that are to be compared to a relative `tolerance`: ten times as accurate.

    With absolute values in the loss (`has_kinks`) it is a reduced Newton method.
    """
    accuracy = max(tolerance / 10, _BEST_ACCURACY)
    return ConvexTrainer(accuracy, inner=ReducedNewton()) if has_kinks else ConvexTrainer(accuracy)
