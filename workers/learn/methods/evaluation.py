"""What is known of one value of the hyperparameters once its inner problem is solved."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Evaluation:
    """One point at which the outer objective and its gradient are known."""

    raw: Tensor
    weights: Tensor
    adjoint: Tensor | None
    """q = H⁻¹ ∂_w outer, [p], of the original coordinates; None if the gradient was found without it."""
    tangent: Tensor | None
    """dw/draw = −H⁻¹ ∂²_{w raw} inner of a single hyperparameter, [p]; None likewise."""
    value: float
    """Outer loss at `weights`."""
    corrected: float
    """Outer loss less ⟨q, ∂_w inner⟩: what it would be at the exact minimiser, to second order."""
    gradient: Tensor
    error: float
    """|⟨q, ∂_w inner⟩|: first-order estimate of how much the inner residual changes the outer loss."""
    adjoint_norm: float
    """‖q‖ in the coordinates of the solves, or an estimate of it."""
    uncertainty: float
    """Estimated error of the gradient, from the residuals of both solves."""
