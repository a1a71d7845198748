"""What has a strength of its own, as `learn` calls it."""

from typing import assert_never

from service.spec.hyperparameters import Granularity
from workers.learn.problems.layout import Per


def per_of(granularity: Granularity) -> Per:
    """Return what `learn` calls a granularity. Which a model takes, the specification has seen to."""
    match granularity:
        case Granularity.MODEL:
            return Per.MODEL
        case Granularity.LAYER:
            return Per.LAYER
        case Granularity.TENSOR:
            return Per.TENSOR
        case Granularity.FEATURE:
            return Per.FEATURE
        case Granularity.CLASS:
            return Per.CLASS
        case Granularity.PARAMETER:
            return Per.PARAMETER
        case _:
            assert_never(granularity)
