"""What a job will take, before it runs: counts are exact, bytes and seconds are rough."""

from dataclasses import dataclass
from typing import Final

from service.dealing import Share
from service.records import DatasetRecord
from service.spec.hyperparameters import Granularity
from service.spec.job import JobSpec, Precision
from service.spec.linear import DirectSolver
from service.spec.regularizers import RegularizerSpec
from service.task import Task

_PROCESS_BYTES: Final = 600 * 2**20
"""A process that has imported torch and scikit-learn, without data."""

_VECTORS: Final = 60
"""Vectors of the weights' length that are alive at once: pairs of L-BFGS, iterates of CG, checkpoints."""

_OUTPUT_ARRAYS: Final = 12
"""Arrays [rows, models, outputs] alive at once."""

_LARGEST_BLOCK: Final = 2048
"""Features up to which the training keeps a factorised d × d matrix for each model and output."""

_USUAL_STEPS: Final = 25
"""Outer steps that a convex problem takes to its default tolerance, as a rule."""

_GRADIENTS_A_STEP: Final = 30

_DENSE_FLOPS: Final = 4e9
_SPARSE_FLOPS: Final = 4e8
"""Of a processor core or two, in products with the data."""


@dataclass(frozen=True)
class Estimate:
    """What a job will take."""

    strengths: int
    """Learned hyperparameters."""
    weights: int
    """Trained at once: of all folds together."""
    rows: Share
    folds: int | None
    features: int
    outputs: int
    memory_bytes: int
    """Peak of the host's memory; rough."""
    seconds: float
    """On a processor; rough, good to a factor of five."""
    trajectory_points: int
    """At most."""


def estimate(spec: JobSpec, dataset: DatasetRecord, task: Task) -> Estimate:
    """Count what is to be learned and guess what that takes."""
    models = task.folds or 1
    weights = models * (task.width * task.outputs + _intercepts(spec, task))
    strengths = sum(
        strengths_of(regularizer, task, intercept=spec.model.intercept)
        for regularizer in spec.regularizers
        if regularizer.strength.is_learned
    )
    rows = task.rows.train + task.rows.valid + task.rows.test
    entries = dataset.nonzeros or 0 if dataset.is_sparse else rows * task.width
    itemsize = 4 if spec.resources.precision is Precision.FLOAT32 else 8
    outputs = rows * models * task.outputs
    memory = _PROCESS_BYTES + _VECTORS * weights * itemsize + _OUTPUT_ARRAYS * outputs * itemsize
    # What is read, the parts cut from it, and the solver's own copy (sparse: from both sides, with indices).
    memory += entries * (16 + 12 + 2 * (itemsize + 8)) if dataset.is_sparse else entries * (16 + itemsize)
    if task.width <= _LARGEST_BLOCK:
        memory += 3 * itemsize * models * task.outputs * task.width**2
    if isinstance(spec.method.solver, DirectSolver):
        memory += 3 * itemsize * weights**2
    steps = min(spec.budget.outer_steps, _USUAL_STEPS)
    evaluations = steps + (2 + 2 * min(strengths, 5) if spec.verify else 0)
    speed = _SPARSE_FLOPS if dataset.is_sparse else _DENSE_FLOPS
    flops = evaluations * _GRADIENTS_A_STEP * 4.0 * entries * models * task.outputs
    return Estimate(
        strengths=strengths,
        weights=weights,
        rows=task.rows,
        folds=task.folds,
        features=task.width,
        outputs=task.outputs,
        memory_bytes=memory,
        seconds=round(1.0 + 0.02 * evaluations + flops / speed, 1),
        trajectory_points=spec.budget.outer_steps,
    )


def strengths_of(regularizer: RegularizerSpec, task: Task, *, intercept: bool) -> int:
    """How many strengths a penalty has; folds share them."""
    d, c = task.width, task.outputs
    biases = intercept and regularizer.biases
    match regularizer.strength.per:
        case Granularity.MODEL:
            return 1
        case Granularity.FEATURE:
            return d + biases
        case Granularity.CLASS:
            return c
        case Granularity.PARAMETER:
            return d * c + c * biases


def _intercepts(spec: JobSpec, task: Task) -> int:
    """Of one model. Softmax intercepts that nobody penalises are confined to sum zero: one less than classes."""
    if not spec.model.intercept:
        return 0
    is_penalised = any(regularizer.biases for regularizer in spec.regularizers)
    return task.outputs if task.outputs == 1 or is_penalised else task.outputs - 1
