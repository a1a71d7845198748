"""What a job on a network will take."""

from itertools import pairwise
from typing import Final

from service.estimates.base import DENSE_FLOPS, PROCESS_BYTES, Estimate, itemsize, points
from service.spec.hyperparameters import Granularity
from service.spec.job import JobSpec
from service.spec.linear import DirectSolver, NeumannSolver, NystromSolver
from service.spec.methods import Implicit, solver_of
from service.spec.models import MLP, Normalization
from service.spec.regularizers import L2
from service.task import Task

_VECTORS: Final = 24
"""Vectors of the weights' length that are alive at once: moments, gradients, checkpoints, the linear solve."""

_PRODUCT: Final = 4.0
"""Training steps that a Hessian product takes the time of, on a batch that is larger."""

_SEEDS: Final = 3
"""Trainings from scratch at each strength that is checked."""


def estimate_mlp(spec: JobSpec, model: MLP, task: Task) -> Estimate:
    """Count what is to be learned and guess what that takes."""
    widths = [task.width, *model.widths, task.outputs]
    matrices = [before * after for before, after in pairwise(widths)]
    normalized = 2 * sum(model.widths) if model.normalization is not Normalization.NONE else 0
    weights = sum(matrices) + sum(widths[1:]) + normalized
    strengths = sum(
        mlp_strengths(regularizer, model, task)
        for regularizer in spec.regularizers
        if isinstance(regularizer, L2) and regularizer.strength.is_learned
    )
    rows = task.rows.train + task.rows.valid + task.rows.test
    size = itemsize(spec)
    solver = solver_of(spec.method)
    memory = PROCESS_BYTES + _VECTORS * weights * size + rows * task.width * (16 + size)
    memory += 8 * min(task.rows.valid, 10_000) * sum(widths) * size
    if isinstance(solver, NystromSolver):
        memory += 2 * solver.rank * weights * size
    if isinstance(solver, DirectSolver):
        memory += 3 * size * weights**2
    batch = min(model.batch_size, task.rows.train)
    batches = -(-task.rows.train // batch)
    training = float(model.epochs * batches)
    steps = points(spec, strengths)
    trainings = float(_SEEDS * (1 + 2 * min(strengths, 5))) if spec.verify else 0.0
    if isinstance(spec.method, Implicit):
        products = solver.terms if isinstance(solver, NeumannSolver) else 20
        between = (spec.method.inner_steps or 1) + _PRODUCT * products + task.rows.valid / batch
        burn_in = batches if spec.method.burn_in is None else spec.method.burn_in
        batches_run = trainings * training + steps * between + burn_in
    else:
        batches_run = (trainings + steps) * training
    return Estimate(
        strengths=strengths,
        weights=weights,
        rows=task.rows,
        folds=None,
        features=task.width,
        outputs=task.outputs,
        memory_bytes=memory,
        seconds=round(1.0 + batches_run * (3e-4 + 6.0 * batch * sum(matrices) / DENSE_FLOPS), 1),
        trajectory_points=steps,
    )


def mlp_strengths(regularizer: L2, model: MLP, task: Task) -> int:
    """How many strengths a penalty has: of matrices, and with `biases` of all that is trained."""
    widths = [task.width, *model.widths, task.outputs]
    normalized = model.widths if model.normalization is not Normalization.NONE else []
    match regularizer.strength.per:
        case Granularity.LAYER:
            return len(widths) - 1
        case Granularity.TENSOR:
            matrices = len(widths) - 1
            return 2 * matrices + 2 * len(normalized) if regularizer.biases else matrices
        case Granularity.PARAMETER:
            matrices = sum(before * after for before, after in pairwise(widths))
            return matrices + (sum(widths[1:]) + 2 * sum(normalized)) * regularizer.biases
        case Granularity.MODEL | Granularity.FEATURE | Granularity.CLASS:
            return 1
