"""What a job without validation rows will take."""

from typing import Final

from service.estimates.base import DENSE_FLOPS, PROCESS_BYTES, VECTORS, Estimate, itemsize, points
from service.spec.hyperparameters import Granularity
from service.spec.job import JobSpec
from service.spec.methods import ELBo, Posterior
from service.spec.models import CNN, RFFGP, Network
from service.task import Task

_CANDIDATES: Final = 4
_STEPS: Final = 6000
_USUAL_BATCH: Final = 128
_STEP_SECONDS: Final = 3e-4
_CONVOLUTION: Final = 8.0
"""Multiplications of a weight for each row, where it is used at many places of an image."""


def estimate_rff_gp(spec: JobSpec, model: RFFGP, task: Task) -> Estimate:
    """Count what is to be learned and guess what that takes."""
    scales = task.width if model.lengthscales is Granularity.FEATURE else 1
    weights = (model.features + 1) * task.outputs + scales + 1
    rows = task.rows.train + task.rows.valid
    at_once = rows if _is_exact(spec) else min(rows, model.batch_size)
    memory = PROCESS_BYTES + VECTORS * weights * itemsize(spec) + (rows + task.rows.test) * task.width * 24
    memory += 6 * at_once * model.features * 8
    return Estimate(
        strengths=1,
        weights=weights,
        rows=task.rows,
        folds=None,
        features=task.width,
        outputs=task.outputs,
        memory_bytes=memory,
        seconds=0.0,
        trajectory_points=points(spec, 1),
    )


def elbo_seconds(spec: JobSpec, figures: Estimate) -> float:
    """Guess how long `elbo` takes, on a processor; good to a factor of five."""
    assert isinstance(spec.method, ELBo)  # noqa: S101 (whoever calls has looked)
    rows, width = figures.rows.train + figures.rows.valid, figures.features
    checks = 1.0 + 2.0 * min(figures.strengths, 5) if spec.verify else 0.0
    if not spec.trains_by_steps:
        wide = min(spec.model.features if isinstance(spec.model, RFFGP) else width, rows)
        steps = spec.budget.outer_steps * (1.0 + checks)
        each = float(wide) ** 3 / 3.0 + (2.0 * rows * wide**2 if isinstance(spec.model, RFFGP) else 0.0)
        return round(1.0 + (steps * each + 2.0 * rows * wide**2) / DENSE_FLOPS, 1)
    candidates = _CANDIDATES if spec.method.learning_rates is None else len(spec.method.learning_rates)
    steps = _STEPS if spec.method.training_steps is None else spec.method.training_steps
    batch = min(spec.model.batch_size if isinstance(spec.model, Network | RFFGP) else _USUAL_BATCH, rows)
    places = _CONVOLUTION if isinstance(spec.model, CNN) else 1.0
    work = 6.0 * batch * places * (width * spec.model.features if isinstance(spec.model, RFFGP) else figures.weights)
    return round(1.0 + (candidates + checks) * steps * (_STEP_SECONDS + work / DENSE_FLOPS), 1)


def _is_exact(spec: JobSpec) -> bool:
    return isinstance(spec.method, ELBo) and spec.method.posterior is Posterior.EXACT
