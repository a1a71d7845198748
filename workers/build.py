"""From a specification to objects of the mathematics: one exhaustive match a kind."""

from collections.abc import Sequence
from typing import assert_never

import numpy as np
import torch

from service.spec import methods as specs
from service.spec.hyperparameters import Granularity
from service.spec.job import JobSpec, Precision
from service.spec.linear import (
    CGSolver,
    DirectSolver,
    IdentitySolver,
    LinearSolverSpec,
    MINRESSolver,
    NeumannSolver,
    NystromSolver,
)
from service.spec.methods import AdamStep, OuterStepSpec, QuasiNewtonStep
from service.spec.models import Loss
from service.spec.regularizers import RegularizerSpec
from workers.data.load import LoadedData
from workers.learn.linear.base import AbstractLinearSolver
from workers.learn.linear.cg import CG
from workers.learn.linear.direct import Direct
from workers.learn.linear.identity import Identity
from workers.learn.linear.minres import MINRES
from workers.learn.linear.neumann import Neumann
from workers.learn.linear.nystrom import Nystrom
from workers.learn.methods.hoag import HOAG, Schedule
from workers.learn.methods.implicit import Implicit
from workers.learn.outer.adam import Adam
from workers.learn.outer.quasi_newton import QuasiNewton
from workers.learn.problems.layout import Per
from workers.learn.problems.linear import LinearProblem
from workers.learn.problems.linear_data import Examples, L2Term, LinearData, linear_problem


def build_problem(spec: JobSpec, data: LoadedData, *, device: str) -> LinearProblem:
    """Return the problem that a job poses on its data, with all arrays on `device`.

    Raises:
        LearnError: the data does not fit the model.
    """
    parts = data.parts
    rows = LinearData(
        train=_examples(data, parts.train),
        valid=None if parts.valid is None else _examples(data, parts.valid),
        test=None if parts.test is None else _examples(data, parts.test),
        fold=parts.fold,
    )
    return linear_problem(
        rows,
        loss=_loss(spec.loss),
        terms=build_terms(spec),
        intercept=spec.model.intercept,
        dtype=build_dtype(spec),
        device=device,
        classes=None if data.class_names is None else len(data.class_names),
    )


def build_terms(spec: JobSpec) -> list[L2Term]:
    """Return the penalties, named as the trajectory and the result name them.

    A regularizer's strengths are called by its kind; where a kind occurs again, `l2`, `l2_2`, `l2_3`, … in the
    order of the specification.
    """
    return [
        # Without an intercept there is no bias that could have a strength of its own.
        _term(name, part, biases=part.biases and spec.model.intercept)
        for name, part in zip(strength_names(spec), spec.regularizers, strict=True)
    ]


def strength_names(spec: JobSpec) -> list[str]:
    """The name of each regularizer's strengths: see `build_terms`."""
    names: list[str] = []
    for place, regularizer in enumerate(spec.regularizers):
        before = sum(1 for earlier in spec.regularizers[:place] if earlier.kind == regularizer.kind)
        names.append(regularizer.kind if before == 0 else f"{regularizer.kind}_{before + 1}")
    return names


def build_method(spec: JobSpec, problem: LinearProblem) -> Implicit | HOAG:
    """Return the method of a job, with its settings for this problem."""
    method = spec.method
    match method:
        case specs.Implicit():
            return Implicit(
                solver=build_solver(method.solver, problem),
                outer=_outer(method.step),
                tolerance=spec.budget.tolerance,
            )
        case specs.HOAG():
            return HOAG(
                solver=build_solver(method.solver, problem),
                schedule=Schedule(method.schedule.value),
                first_tolerance=method.initial_tolerance,
                tolerance=spec.budget.tolerance,
            )
        case _:
            assert_never(method)


def build_solver(solver: LinearSolverSpec, problem: LinearProblem) -> AbstractLinearSolver:
    """Return the strategy for H q = g."""
    match solver:
        case DirectSolver():
            # How large is too large was decided when the job was admitted.
            return Direct(max_size=problem.layout.size)
        case CGSolver():
            return CG(max_steps=solver.max_iterations)
        case MINRESSolver():
            return MINRES(max_steps=solver.max_iterations)
        case NeumannSolver():
            return Neumann(terms=solver.terms, alpha=solver.step)
        case NystromSolver():
            return Nystrom(rank=solver.rank, rho=solver.damping)
        case IdentitySolver():
            return Identity()
        case _:
            assert_never(solver)


def build_dtype(spec: JobSpec) -> torch.dtype:
    """Return the type of all numbers; `auto` is float64, as every model so far is convex."""
    match spec.resources.precision:
        case Precision.FLOAT32:
            return torch.float32
        case Precision.FLOAT64 | Precision.AUTO:
            return torch.float64
        case _ as precision:
            assert_never(precision)


def _examples(data: LoadedData, rows: Sequence[int] | np.ndarray) -> Examples:
    return Examples(data.x[rows], data.y[rows])


def _loss(loss: Loss) -> str:
    match loss:
        case Loss.CROSS_ENTROPY:
            return "cross_entropy"
        case Loss.SQUARED_ERROR:
            return "squared"
        case _:
            assert_never(loss)


def _term(name: str, regularizer: RegularizerSpec, *, biases: bool) -> L2Term:
    strength, per = regularizer.strength, _per(regularizer.strength.per)
    if strength.fixed is not None:
        return L2Term(name, strength.fixed, per, fixed=True, biases=biases)
    return L2Term(name, strength.init, per, low=strength.low, high=strength.high, biases=biases)


def _per(granularity: Granularity) -> Per:
    match granularity:
        case Granularity.MODEL:
            return Per.MODEL
        case Granularity.FEATURE:
            return Per.FEATURE
        case Granularity.CLASS:
            return Per.CLASS
        case Granularity.PARAMETER:
            return Per.PARAMETER
        case _:
            assert_never(granularity)


def _outer(step: OuterStepSpec) -> QuasiNewton | Adam:
    match step:
        case QuasiNewtonStep():
            return QuasiNewton(memory=step.memory)
        case AdamStep():
            return Adam(rate=step.learning_rate)
        case _:
            assert_never(step)
