"""Networks from a specification: the problem, how it is trained, and the method."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Final, assert_never, cast

import numpy as np
import torch

from service.network_sizes import image_shape
from service.spec import methods as specs
from service.spec.hyperparameters import Granularity
from service.spec.job import JobSpec
from service.spec.linear import CGSolver, NeumannSolver
from service.spec.models import CNN, MLP, RFFGP, Activation, CNNLayers, LinearModel, Loss, MLPLayers, Transfer
from service.spec.regularizers import L2, L2SP
from service.spec.training import AdamOptimizer, OptimizerSpec, SGDOptimizer, TrainingSchedule
from service.task import Refusal
from workers.build.granularity import per_of
from workers.build.linear import loss_name
from workers.build.methods import build_outer
from workers.build.names import strength_names
from workers.build.noises import build_noises
from workers.build.precision import build_dtype
from workers.build.searches import build_search
from workers.build.solvers import build_solver
from workers.build.transfer import GivenWeights
from workers.data.errors import BadData
from workers.data.load import LoadedData
from workers.learn.linear.neumann import Neumann
from workers.learn.methods.implicit_online import ImplicitOnline
from workers.learn.methods.stn import STN
from workers.learn.methods.stn_polish import Polish
from workers.learn.methods.stn_state import Variant
from workers.learn.models import mlp as networks
from workers.learn.models.cnn import Block, cnn
from workers.learn.models.image_shape import ImageShape
from workers.learn.models.network import Network
from workers.learn.models.random_features import rff_gp
from workers.learn.outer.adam import Adam
from workers.learn.outer.quasi_newton import QuasiNewton
from workers.learn.problems.linear_data import Examples, L2Term
from workers.learn.problems.network import NetworkProblem
from workers.learn.problems.network_data import network_problem
from workers.learn.problems.transfer_data import from_weights
from workers.learn.training import optimizers
from workers.learn.training.schedule import AbstractSchedule, Constant, Cosine
from workers.learn.training.trainer import NetworkTrainer
from workers.learn.training.training import Training
from workers.study import AnyMethod

_USUAL_DAMPING: Final = 1e-3

_SETTLING: Final = 10.0
"""Weights follow strengths with a delay of about as many outer steps, so that steps of one length would go round."""

_USUAL_BATCH: Final = 128
_LINEAR_RATE: Final = 1e-2
_LINEAR_EPOCHS: Final = 40
"""How linear models are trained where the method is one for networks: their specification does not say."""


TrainedSpec = MLP | CNN | Transfer | LinearModel
"""What is trained by mini-batches: also a linear model, as a network without hidden layers, by `stn`."""

NetworkSpec = TrainedSpec | RFFGP
"""What is a network, however it is trained."""


def build_network(
    spec: JobSpec, model: NetworkSpec, data: LoadedData, given: GivenWeights | None, *, device: str
) -> NetworkProblem:
    """Return the problem that a job poses on its data, with all arrays on `device`.

    Args:
        spec: the job.
        model: its model.
        data: its data.
        given: the weights that the model starts from; None if it names none.
        device: `cpu` or `cuda`.

    Raises:
        LearnError: the data, or the weights, do not fit the model.
        BadData: rows are not the images that the model is for.
    """
    parts = data.parts
    layers = model.layers if isinstance(model, Transfer) else model
    image = _image(layers, data)
    dtype = build_dtype(spec)

    def make(inputs: int, outputs: int) -> Network:
        match layers:
            case CNNLayers():
                assert image is not None  # noqa: S101 (a CNN has one)
                return cnn(
                    [Block(channels, layers.kernel, layers.pool) for channels in layers.channels],
                    layers.widths,
                    shape=image,
                    activation=_activation(layers.activation),
                    normalization=networks.Normalization(layers.normalization.value),
                    outputs=outputs,
                )
            case MLPLayers():
                return networks.mlp(
                    layers.widths,
                    activation=_activation(layers.activation),
                    normalization=networks.Normalization(layers.normalization.value),
                    inputs=inputs,
                    outputs=outputs,
                )
            case LinearModel():
                relu, none = networks.Activation.RELU, networks.Normalization.NONE
                return networks.mlp([], activation=relu, normalization=none, inputs=inputs, outputs=outputs)
            case RFFGP():
                return _process(spec, layers, data, inputs, outputs, like=torch.zeros(0, dtype=dtype, device=device))
            case _:
                assert_never(layers)

    count = 1 + (len(layers.widths) if isinstance(layers, MLPLayers | CNNLayers) else 0)
    count += len(layers.channels) if isinstance(layers, CNNLayers) else 0
    terms = build_network_terms(spec)
    problem = network_problem(
        make,
        train=_examples(data, parts.train),
        valid=None if parts.valid is None else _examples(data, parts.valid),
        test=None if parts.test is None else _examples(data, parts.test),
        loss=loss_name(spec.loss),
        terms=[term for _, term in terms],
        batch_size=min(_USUAL_BATCH if isinstance(model, LinearModel) else model.batch_size, len(parts.train)),
        dtype=dtype,
        device=device,
        classes=None if data.class_names is None else len(data.class_names),
        noises=build_noises(spec, layers=count, image=image),
    )
    if given is None or not isinstance(model, Transfer):
        return problem
    backbone, head = (next((term for penalty, term in terms if isinstance(penalty, kind)), None) for kind in (L2SP, L2))
    return from_weights(
        problem, given.tensors, fresh_layers=model.fresh_layers, drawn=True, backbone=backbone, head=head
    )


def _process(
    spec: JobSpec, model: RFFGP, data: LoadedData, inputs: int, outputs: int, *, like: torch.Tensor
) -> Network:
    # In the units of the targets, steps of one size suit them all.
    y = data.y[data.parts.train]
    has_units = spec.loss is Loss.SQUARED_ERROR
    return rff_gp(
        inputs=inputs,
        outputs=outputs,
        features=model.features,
        per_feature=model.lengthscales is Granularity.FEATURE,
        lengthscale=model.initial_lengthscale or inputs**0.5,
        outputscale=max(float(y.std()), 1e-12) if has_units else 1.0,
        seed=spec.seed,
        like=like,
        level=float(y.mean()) if has_units else 0.0,
    )


def _image(layers: MLPLayers | CNNLayers | LinearModel | RFFGP, data: LoadedData) -> ImageShape | None:
    if not isinstance(layers, CNNLayers):
        return None
    shape = image_shape(layers, data.task)
    if isinstance(shape, Refusal):
        raise BadData(f"{shape.pointer}: {shape.detail}")
    return ImageShape(*shape)


def build_network_terms(spec: JobSpec) -> list[tuple[L2 | L2SP, L2Term]]:
    """Return the penalties, named as the trajectory and the result name them."""
    terms: list[tuple[L2 | L2SP, L2Term]] = []
    for name, regularizer in zip(strength_names(spec), spec.regularizers, strict=True):
        if not isinstance(regularizer, L2 | L2SP):
            continue
        strength, per, biases = regularizer.strength, per_of(regularizer.strength.per), regularizer.biases
        if strength.fixed is not None:
            term = L2Term(name, strength.fixed, per, fixed=True, biases=biases)
        else:
            term = L2Term(name, strength.init, per, low=strength.low, high=strength.high, biases=biases)
        terms.append((regularizer, term))
    return terms


def build_training(model: TrainedSpec, *, steps: int) -> Training:
    """Return how a network is trained; a schedule that falls has fallen after `steps`."""
    if isinstance(model, LinearModel):
        return Training(optimizers.Adam(_LINEAR_RATE), Cosine(total=steps))
    schedule: AbstractSchedule
    match model.schedule:
        case TrainingSchedule.CONSTANT:
            schedule = Constant()
        case TrainingSchedule.COSINE:
            schedule = Cosine(total=steps)
        case _:
            assert_never(model.schedule)
    return Training(_optimizer(model.optimizer), schedule)


def build_trainer(model: TrainedSpec, problem: NetworkProblem) -> NetworkTrainer:
    """Return one training from scratch: a trial of a search, and each training that checks an answer."""
    epochs = _LINEAR_EPOCHS if isinstance(model, LinearModel) else model.epochs
    steps = epochs * problem.steps_per_epoch
    return NetworkTrainer(build_training(model, steps=steps), steps)


def build_network_method(spec: JobSpec, model: TrainedSpec, problem: NetworkProblem) -> AnyMethod:
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
                    outer=replace(outer, settling=_SETTLING),
                    inner_steps=inner_steps,
                    burn_in=burn_in,
                ),
            )
        case specs.STN():
            return cast("AnyMethod", _self_tuning(spec, method, model, problem))
        case specs.Grid() | specs.RandomSearch() | specs.TPE():
            return build_search(method, build_trainer(model, problem))
        case specs.HOAG() | specs.MAID() | specs.ELBo():
            raise BadData(f"method {method.kind!r} does not train networks like this")
        case _:
            assert_never(method)


def _self_tuning(spec: JobSpec, method: specs.STN, model: TrainedSpec, problem: NetworkProblem) -> STN:
    # What is left of the steps after a twentieth of them is for the self-tuning itself.
    polish_steps = max(spec.budget.outer_steps // 20, 1) if method.polish and spec.budget.outer_steps > 1 else 0
    steps = spec.budget.outer_steps - polish_steps
    training = build_training(model, steps=max(steps, 1) * problem.steps_per_epoch)
    polish = ImplicitOnline(
        training=training,
        solver=Neumann(terms=10, alpha=None),
        outer=Adam(rate=method.learning_rate),
        burn_in=0,
    )
    return STN(
        training=training,
        response=training.optimizer,
        steps=steps,
        variant=Variant(method.variant.value),
        outer=Adam(rate=method.learning_rate),
        training_steps=method.training_steps,
        strength_steps=method.strength_steps,
        warm_up=method.warm_up,
        sigma=method.perturbation,
        learn_sigma=method.learn_perturbation,
        entropy=method.entropy,
        polish=Polish(polish, polish_steps) if polish_steps else None,
    )


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


def _examples(data: LoadedData, rows: Sequence[int] | np.ndarray) -> Examples:
    return Examples(data.x[rows], data.y[rows])
