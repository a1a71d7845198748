"""Methods from a specification: one exhaustive match."""

from typing import TypeVar, assert_never, cast

from service.spec import methods as specs
from service.spec.job import JobSpec
from service.spec.linear import LinearSolverSpec
from service.spec.methods import AdamStep, OuterStepSpec, QuasiNewtonStep
from service.spec.models import Denoiser
from workers.build.searches import build_convex_trainer, build_search
from workers.build.solvers import build_solver
from workers.data.errors import BadData
from workers.learn.inner.lbfgs import LBFGS
from workers.learn.inner.reduced_newton import ReducedNewton
from workers.learn.linear.base import AbstractLinearSolver
from workers.learn.linear.margin import Margin
from workers.learn.method import AbstractMethod, State
from workers.learn.methods.hoag import HOAG, Schedule
from workers.learn.methods.implicit import Implicit
from workers.learn.methods.maid import MAID
from workers.learn.outer.adam import Adam
from workers.learn.outer.quasi_newton import QuasiNewton
from workers.learn.problem import AbstractBilevelProblem
from workers.study import AnyMethod

S = TypeVar("S", bound=State)

_RELAXATION = 1.7
"""Of `implicit` on images: see there."""


def build_method(spec: JobSpec, *, size: int, has_kinks: bool = False) -> AnyMethod:
    """Return the method of a job whose model is solved to a tolerance.

    Args:
        spec: the job.
        size: number of weights.
        has_kinks: whether absolute values of weights are in the training loss.
    """
    method = spec.method
    match method:
        case specs.Implicit():
            return _any(
                Implicit(
                    solver=_linear(method.solver, size, has_kinks=has_kinks),
                    inner=ReducedNewton() if has_kinks else LBFGS(first_step=1.0),
                    outer=build_outer(method.step),
                    smooth_path=not has_kinks,
                    relaxation=_RELAXATION if isinstance(spec.model, Denoiser) else 1.0,
                    tolerance=spec.budget.tolerance,
                )
            )
        case specs.HOAG():
            return _any(
                HOAG(
                    solver=_linear(method.solver, size, has_kinks=has_kinks),
                    inner=ReducedNewton() if has_kinks else LBFGS(),
                    schedule=Schedule(method.schedule.value),
                    first_tolerance=method.initial_tolerance,
                    tolerance=spec.budget.tolerance,
                )
            )
        case specs.MAID():
            return _any(MAID(initial_accuracy=method.initial_accuracy, tolerance=spec.budget.tolerance))
        case specs.STN() | specs.ELBo():
            raise BadData(f"method {method.kind!r} does not go by a validation loss of models that are solved")
        case specs.Grid() | specs.RandomSearch() | specs.TPE():
            return build_search(method, build_convex_trainer(tolerance=spec.budget.tolerance, has_kinks=has_kinks))
        case _:
            assert_never(method)


def build_outer(step: OuterStepSpec) -> QuasiNewton | Adam:
    """Return the step of the strengths."""
    match step:
        case QuasiNewtonStep():
            return QuasiNewton(memory=step.memory)
        case AdamStep():
            return Adam(rate=step.learning_rate)
        case _:
            assert_never(step)


def _linear(solver: LinearSolverSpec, size: int, *, has_kinks: bool) -> AbstractLinearSolver:
    # No metric brings a Hessian on a changing support near the identity, for which tolerances are meant.
    return Margin(build_solver(solver, size)) if has_kinks else build_solver(solver, size)


def _any(method: AbstractMethod[AbstractBilevelProblem, S]) -> AnyMethod:
    # A method takes one kind of state; whoever iterates hands back what it was handed.
    return cast("AnyMethod", method)
