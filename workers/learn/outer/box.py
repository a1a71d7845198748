"""What a box of bounds changes about gradients."""

import torch
from torch import Tensor


def projected_gradient(raw: Tensor, gradient: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Return raw − P(raw − gradient), [h]: zero exactly where no step inside the box lowers the objective."""
    return raw - torch.minimum(torch.maximum(raw - gradient, low), high)


def blocked(raw: Tensor, gradient: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Return which coordinates lie on a bound that the negative gradient points out of, [h] of bool."""
    return ((raw <= low) & (gradient >= 0)) | ((raw >= high) & (gradient <= 0))
