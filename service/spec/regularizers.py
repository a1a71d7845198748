"""Regularizers whose strengths can be learned."""

from typing import Literal

from pydantic import Field

from service.spec.base import Spec
from service.spec.hyperparameters import Strength


class L2(Spec):
    """Weight decay: adds ½ Σ_j λ_g(j) w_j² to the mean training loss, where g(j) is the group of weight j.

    With C of scikit-learn's LogisticRegression, λ = 1 / (C n) for n training rows.
    Source: Hoerl & Kennard (1970), "Ridge regression".
    """

    kind: Literal["l2"] = "l2"
    strength: Strength = Strength()
    biases: bool = Field(default=False, description="Penalise the intercepts too.")


RegularizerSpec = L2
