"""Proven constants of linear problems."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from workers.learn.losses.base import AbstractLoss
from workers.learn.oracle import Constants
from workers.learn.problems.layout import Layout

if TYPE_CHECKING:
    from workers.learn.problems.linear import Rows

_LARGEST_GRAM = 4096


def linear_constants(
    layout: Layout, loss: AbstractLoss, diagonal: Tensor, train: "Rows", valid: "Rows"
) -> Constants | None:
    """Return constants at the penalties' diagonal D [p], or None if an intercept is not penalised.

    μ = min D; L = c₂ σ²  + max D with σ² ≥ λ_max(Xᵀ diag(a) X) and c₂ the bound of ∂²ℓ/∂z²; the Hessian is
    Lipschitz with c₃ max‖x‖ σ². Without a penalty on the intercept nothing but the data would bound μ from below.

    Source: bounds as in Böhning (1992) for softmax; the rest by the chain rule.
    """
    if float(diagonal.min()) <= 0.0:
        return None
    inner = _largest_eigenvalue(train, layout)
    outer = _largest_eigenvalue(valid, layout) / layout.models
    shift = 0.0 if layout.basis is None else 1.0
    longest = float((train.design.row_norms().square().max() + shift).sqrt())
    return Constants(
        strong_convexity=float(diagonal.min()),
        smoothness=loss.curvature_bound * inner + float(diagonal.max()),
        hessian_lipschitz=loss.curvature_lipschitz * longest * inner,
        cross_lipschitz=float(diagonal.max()),
        outer_smoothness=loss.curvature_bound * outer,
        outer_is_convex=True,
    )


def _largest_eigenvalue(rows: "Rows", layout: Layout) -> float:
    """Return an upper bound, over models, of the largest eigenvalue of [X 1]ᵀ diag(a) [X 1]."""
    shift = 0.0 if layout.basis is None else 1.0
    squares = rows.design.row_norms().square() + shift  # [n]
    bound = float((rows.weights * squares[:, None]).sum(0).max())  # the trace
    if layout.features <= _LARGEST_GRAM and not rows.design.is_sparse:
        exact = float(torch.linalg.eigvalsh(rows.design.gram(rows.weights))[:, -1].max())
        # λ_max of a 2 × 2 block matrix ≤ the sum of those of its diagonal blocks; a margin for rounding.
        bound = min(bound, (exact + shift) * (1.0 + 1e-6))
    return bound
