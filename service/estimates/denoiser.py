"""What a job on a denoiser will take."""

from typing import Final

from service.estimates.base import PROCESS_BYTES, VECTORS, Estimate, evaluations, itemsize, points
from service.image_task import ImageTask
from service.spec.job import JobSpec
from service.spec.regularizers import TV, FieldOfExperts

_GRADIENTS_A_STEP: Final = 150

_PIXELS_A_SECOND: Final = 3e7
"""In one difference, filter tap or the like."""


def estimate_denoiser(spec: JobSpec, task: ImageTask) -> Estimate:
    """Count what is to be learned and guess what that takes."""
    strengths, taps, maps = 0, 0, 0
    for regularizer in spec.regularizers:
        strengths += sum(number.is_learned for number in regularizer.numbers)
        match regularizer:
            case TV():
                taps, maps = 4, 4
            case FieldOfExperts():
                # A weight, a smoothing and a filter each; the one smoothing of the specification is only their start.
                strengths += regularizer.filters * (2 + regularizer.size**2) - 1
                taps, maps = 2 * regularizer.filters * regularizer.size**2, 4 * regularizer.filters
            case _:
                pass
    weights = (task.rows.train + task.rows.valid) * task.pixels
    size = itemsize(spec)
    solves = evaluations(spec, strengths)
    return Estimate(
        strengths=strengths,
        weights=weights,
        rows=task.rows,
        folds=None,
        features=task.pixels,
        outputs=task.pixels,
        memory_bytes=PROCESS_BYTES + (VECTORS + maps) * weights * size,
        seconds=round(1.0 + solves * _GRADIENTS_A_STEP * weights * (4 + taps) / (_PIXELS_A_SECOND * 8), 1),
        trajectory_points=points(spec, strengths),
    )
