"""What a job will take, before it runs: counts are exact, bytes and seconds are rough."""

from dataclasses import dataclass
from typing import Final

from service.dealing import Share
from service.spec.job import JobSpec, Precision
from service.spec.methods import TPE, Grid, RandomSearch
from service.spec.models import NETWORKS

PROCESS_BYTES: Final = 600 * 2**20
"""A process that has imported torch and scikit-learn, without data."""

VECTORS: Final = 60
"""Vectors of the weights' length that are alive at once: pairs of L-BFGS, iterates of CG, checkpoints."""

DENSE_FLOPS: Final = 4e9
SPARSE_FLOPS: Final = 4e8
"""Of a processor core or two, in products with the data."""

USUAL_STEPS: Final = 25
"""Outer steps that a convex problem takes to its default tolerance, as a rule."""


@dataclass(frozen=True)
class Estimate:
    """What a job will take."""

    strengths: int
    """Learned hyperparameters."""
    weights: int
    """Trained at once: of all folds together; of a denoiser, pixels of all images."""
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


def itemsize(spec: JobSpec) -> int:
    """Bytes of a number."""
    match spec.resources.precision:
        case Precision.FLOAT32:
            return 4
        case Precision.FLOAT64:
            return 8
        case Precision.AUTO:
            return 4 if isinstance(spec.model, NETWORKS) else 8


def points(spec: JobSpec, strengths: int) -> int:
    """Trajectory points that a job reports at most."""
    if isinstance(spec.method, Grid):
        return min(spec.budget.outer_steps, int(spec.method.points**strengths))
    return spec.budget.outer_steps


def evaluations(spec: JobSpec, strengths: int) -> int:
    """How often a model that is solved to a tolerance is solved, as a rule."""
    steps = points(spec, strengths)
    if not isinstance(spec.method, Grid | RandomSearch | TPE):
        steps = min(steps, USUAL_STEPS)
    return steps + (2 + 2 * min(strengths, 5) if spec.verify else 0)
