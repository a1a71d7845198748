"""What numbers a job is computed in."""

from typing import assert_never

import torch

from service.spec.job import JobSpec, Precision
from service.spec.models import NETWORKS


def build_dtype(spec: JobSpec) -> torch.dtype:
    """Return the type of all numbers; `auto` is float64 for convex models and float32 for networks."""
    match spec.resources.precision:
        case Precision.FLOAT32:
            return torch.float32
        case Precision.FLOAT64:
            return torch.float64
        case Precision.AUTO:
            return torch.float32 if isinstance(spec.model, NETWORKS) else torch.float64
        case _ as precision:
            assert_never(precision)
