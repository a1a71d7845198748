"""What a job on a linear model will take."""

from typing import Final

from service.estimates.base import (
    DENSE_FLOPS,
    PROCESS_BYTES,
    SPARSE_FLOPS,
    VECTORS,
    Estimate,
    evaluations,
    itemsize,
    points,
)
from service.records import DatasetRecord
from service.spec.hyperparameters import Granularity
from service.spec.job import JobSpec
from service.spec.linear import DirectSolver
from service.spec.methods import solver_of
from service.spec.models import LinearModel
from service.spec.regularizers import L1, L2
from service.task import Task

_OUTPUT_ARRAYS: Final = 12
"""Arrays [rows, models, outputs] alive at once."""

_LARGEST_BLOCK: Final = 2048
"""Features up to which the training keeps a factorised d × d matrix for each model and output."""

_GRADIENTS_A_STEP: Final = 30


def estimate_linear(spec: JobSpec, model: LinearModel, dataset: DatasetRecord, task: Task) -> Estimate:
    """Count what is to be learned and guess what that takes."""
    models = task.folds or 1
    penalties = [regularizer for regularizer in spec.regularizers if isinstance(regularizer, L2 | L1)]
    weights = models * (task.width * task.outputs + _intercepts(model, penalties, task))
    strengths = sum(
        linear_strengths(regularizer, task, intercept=model.intercept)
        for regularizer in penalties
        if regularizer.strength.is_learned
    )
    rows = task.rows.train + task.rows.valid + task.rows.test
    entries = dataset.nonzeros or 0 if dataset.is_sparse else rows * task.width
    size = itemsize(spec)
    outputs = rows * models * task.outputs
    memory = PROCESS_BYTES + VECTORS * weights * size + _OUTPUT_ARRAYS * outputs * size
    # What is read, the parts cut from it, and the solver's own copy (sparse: from both sides, with indices).
    memory += entries * (16 + 12 + 2 * (size + 8)) if dataset.is_sparse else entries * (16 + size)
    if task.width <= _LARGEST_BLOCK:
        memory += 3 * size * models * task.outputs * task.width**2
    if isinstance(solver_of(spec.method), DirectSolver):
        memory += 3 * size * weights**2
    solves = evaluations(spec, strengths)
    speed = SPARSE_FLOPS if dataset.is_sparse else DENSE_FLOPS
    flops = solves * _GRADIENTS_A_STEP * 4.0 * entries * models * task.outputs
    return Estimate(
        strengths=strengths,
        weights=weights,
        rows=task.rows,
        folds=task.folds,
        features=task.width,
        outputs=task.outputs,
        memory_bytes=memory,
        seconds=round(1.0 + 0.02 * solves + flops / speed, 1),
        trajectory_points=points(spec, strengths),
    )


def linear_strengths(regularizer: L2 | L1, task: Task, *, intercept: bool) -> int:
    """How many strengths a penalty has; folds share them."""
    d, c = task.width, task.outputs
    biases = intercept and isinstance(regularizer, L2) and regularizer.biases
    match regularizer.strength.per:
        case Granularity.FEATURE:
            return d + biases
        case Granularity.CLASS:
            return c
        case Granularity.PARAMETER:
            return d * c + c * biases
        case Granularity.MODEL | Granularity.LAYER | Granularity.TENSOR:
            return 1


def _intercepts(model: LinearModel, penalties: list[L2 | L1], task: Task) -> int:
    """Of one model. Softmax intercepts that nobody penalises are confined to sum zero: one less than classes."""
    if not model.intercept:
        return 0
    is_penalised = any(isinstance(penalty, L2) and penalty.biases for penalty in penalties)
    return task.outputs if task.outputs == 1 or is_penalised else task.outputs - 1
