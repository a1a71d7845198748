"""Models that can be trained, and losses that they can be trained with."""

from enum import StrEnum
from typing import Literal

from pydantic import Field

from service.spec.base import Spec


class Loss(StrEnum):
    """A loss, always the mean over rows.

    `cross_entropy`: −log of the predicted probability of the true class; softmax for three or more classes, logistic
    for two. `squared_error`: half the squared difference, ½(ŷ − y)².
    """

    CROSS_ENTROPY = "cross_entropy"
    SQUARED_ERROR = "squared_error"


class LinearModel(Spec):
    """A linear model: logits or prediction = X w + b, on dense or sparse features.

    With `cross_entropy` this is logistic (two classes) or softmax regression, with `squared_error` linear
    regression. Convex, hence every answer can be checked to any accuracy.
    """

    kind: Literal["linear"] = "linear"
    intercept: bool = Field(default=True, description="Learn b; it is never penalised unless a penalty says so.")


ModelSpec = LinearModel
