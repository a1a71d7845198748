"""Networks from a specification: the problem, how it is trained, and the method."""

from collections.abc import Sequence
from typing import Final, assert_never, cast

import numpy as np

from service.spec import methods as specs
from service.spec.job import JobSpec
from service.spec.linear import CGSolver, NeumannSolver
from service.spec.models import MLP, Activation, Normalization
from service.spec.regularizers import L2
from service.spec.training import AdamOptimizer, OptimizerSpec, SGDOptimizer, TrainingSchedule
from workers.build.granularity import per_of
from workers.build.linear import loss_name
from workers.build.methods import build_outer
from workers.build.names import strength_names
from workers.build.precision import build_dtype
from workers.build.searches import build_search
from workers.build.solvers import build_solver
from workers.data.errors import BadData
from workers.data.load import LoadedData
from workers.learn.methods.implicit_online import ImplicitOnline
from workers.learn.models import mlp as networks
from workers.learn.models.network import Network
from workers.learn.outer.quasi_newton import QuasiNewton
from workers.learn.problems.linear_data import Examples, L2Term
from workers.learn.problems.network import NetworkProblem
from workers.learn.problems.network_data import network_problem
from workers.learn.training import optimizers
from workers.learn.training.schedule import AbstractSchedule, Constant, Cosine
from workers.learn.training.trainer import NetworkTrainer
from workers.learn.training.training import Training
from workers.study import AnyMethod

_USUAL_DAMPING: Final = 1e-3


def build_network(spec: JobSpec, model: MLP, data: LoadedData, *, device: str) -> NetworkProblem:
    """Return the problem that a job poses on its data, with all arrays on `device`.

    Raises:
        LearnError: the data does not fit the model.
    """
    parts = data.parts

    def make(inputs: int, outputs: int) -> Network:
        return networks.mlp(
            model.widths,
            activation=_activation(model.activation),
            normalization=_normalization(model.normalization),
            inputs=inputs,
            outputs=outputs,
        )

    return network_problem(
        make,
        train=_examples(data, parts.train),
        valid=None if parts.valid is None else _examples(data, parts.valid),
        test=None if parts.test is None else _examples(data, parts.test),
        loss=loss_name(spec.loss),
        terms=build_network_terms(spec),
        batch_size=min(model.batch_size, len(parts.train)),
        dtype=build_dtype(spec),
        device=device,
        classes=None if data.class_names is None else len(data.class_names),
    )


def build_network_terms(spec: JobSpec) -> list[L2Term]:
    """Return the penalties, named as the trajectory and the result name them."""
    terms = []
    for name, regularizer in zip(strength_names(spec), spec.regularizers, strict=True):
        if not isinstance(regularizer, L2):
            continue
        strength, per = regularizer.strength, per_of(regularizer.strength.per)
        if strength.fixed is not None:
            terms.append(L2Term(name, strength.fixed, per, fixed=True, biases=regularizer.biases))
        else:
            terms.append(
                L2Term(name, strength.init, per, low=strength.low, high=strength.high, biases=regularizer.biases)
            )
    return terms


def build_training(model: MLP, *, steps: int) -> Training:
    """Return how a network is trained; a schedule that falls has fallen after `steps`."""
    schedule: AbstractSchedule
    match model.schedule:
        case TrainingSchedule.CONSTANT:
            schedule = Constant()
        case TrainingSchedule.COSINE:
            schedule = Cosine(total=steps)
        case _:
            assert_never(model.schedule)
    return Training(_optimizer(model.optimizer), schedule)


def build_trainer(model: MLP, problem: NetworkProblem) -> NetworkTrainer:
    """Return one training from scratch: a trial of a search, and each training that checks an answer."""
    steps = model.epochs * problem.steps_per_epoch
    return NetworkTrainer(build_training(model, steps=steps), steps)


def build_network_method(spec: JobSpec, model: MLP, problem: NetworkProblem) -> AnyMethod:
    """Return the method of a job on a network."""
    method = spec.method
    match method:
        case specs.Implicit():
            inner_steps = 50 if method.inner_steps is None else method.inner_steps
            burn_in = problem.steps_per_epoch if method.burn_in is None else method.burn_in
            steps = max(spec.budget.outer_steps * inner_steps, burn_in)
            outer = build_outer(method.step)
            assert not isinstance(outer, QuasiNewton)  # noqa: S101 (the specification has seen to it)
            return cast(
                "AnyMethod",
                ImplicitOnline(
                    training=build_training(model, steps=steps),
                    solver=build_solver(method.solver, problem.network.size),
                    damping=_damping(method),
                    outer=outer,
                    inner_steps=inner_steps,
                    burn_in=burn_in,
                ),
            )
        case specs.Grid() | specs.RandomSearch() | specs.TPE():
            return build_search(method, build_trainer(model, problem))
        case specs.HOAG() | specs.MAID():
            raise BadData(f"method {method.kind!r} needs a model that is solved to a tolerance")
        case _:
            assert_never(method)


def _damping(method: specs.Implicit) -> float:
    # Solvers without a damping of their own get the usual one: the Hessian of a network is not definite.
    return method.solver.damping if isinstance(method.solver, CGSolver | NeumannSolver) else _USUAL_DAMPING


def _optimizer(spec: OptimizerSpec) -> optimizers.AbstractOptimizer:
    match spec:
        case AdamOptimizer():
            return optimizers.Adam(spec.learning_rate)
        case SGDOptimizer():
            return optimizers.SGD(spec.learning_rate, spec.momentum, spec.nesterov)
        case _:
            assert_never(spec)


def _activation(kind: Activation) -> networks.Activation:
    return networks.Activation(kind.value)


def _normalization(kind: Normalization) -> networks.Normalization:
    return networks.Normalization(kind.value)


def _examples(data: LoadedData, rows: Sequence[int] | np.ndarray) -> Examples:
    return Examples(data.x[rows], data.y[rows])
