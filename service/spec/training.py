"""How a network is trained."""

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field

from service.spec.base import Spec

LearningRate = Annotated[float, Field(gt=0, le=100)]


class TrainingSchedule(StrEnum):
    """What becomes of the learning rate during a training: it stays, or falls to 0 along half a cosine."""

    CONSTANT = "constant"
    COSINE = "cosine"


class AdamOptimizer(Spec):
    """Adam; it decays no weights by itself: that is the penalty's part. Source: Kingma & Ba (2015)."""

    kind: Literal["adam"] = "adam"
    learning_rate: LearningRate = 1e-3


class SGDOptimizer(Spec):
    """Stochastic gradient descent with momentum. Source: Sutskever et al. (2013)."""

    kind: Literal["sgd"] = "sgd"
    learning_rate: LearningRate = 0.05
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    nesterov: bool = False


OptimizerSpec = Annotated[AdamOptimizer | SGDOptimizer, Field(discriminator="kind")]
