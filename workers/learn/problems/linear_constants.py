"""Proven constants of linear problems."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from workers.learn.cost import Cost
from workers.learn.losses.base import AbstractLoss
from workers.learn.oracle import Constants, Convexity
from workers.learn.problems.layout import Layout

if TYPE_CHECKING:
    from workers.learn.problems.linear import Rows

_LARGEST_GRAM = 4096
_ROUNDING = 1e-6
"""Relative margin for eigenvalues that are computed rather than known."""


@dataclass(frozen=True)
class DataBounds:
    """What the constants owe to the data, computed once."""

    layout: Layout
    loss: AbstractLoss
    inner: float
    """σ² ≥ λ_max([X 1]ᵀ diag(a) [X 1]) over the training rows, the largest over models."""
    outer: float
    """The same over the validation rows, divided by the number of models."""
    longest: float
    """Largest norm of a row of [X 1]."""
    mean: float
    """Largest norm over models of the mean row Xᵀ a."""

    @staticmethod
    def of(layout: Layout, loss: AbstractLoss, train: "Rows", valid: "Rows") -> "DataBounds":
        """Return the bounds of training and validation rows."""
        shift = 0.0 if layout.basis is None else 1.0
        means = torch.linalg.vector_norm(train.design.transposed_times(train.weights), dim=0)
        return DataBounds(
            layout,
            loss,
            _largest_eigenvalue(train, layout),
            _largest_eigenvalue(valid, layout) / layout.models,
            float((train.design.row_norms().square().max() + shift).sqrt()),
            float(means.max()),
        )

    def constants(self, diagonal: Tensor) -> Constants:
        """Return constants at the penalties' diagonal D [p].

        μ = min D; L = c₂ σ² + max D with c₂ the bound of ∂²ℓ/∂z²; the Hessian is Lipschitz with c₃ max‖x‖ σ².
        An intercept that nobody penalises is held by the data alone: for the squared loss that is a bound for all
        `w` (see `_with_intercept`), for others there is none but zero, and `convexity` has one for each `w`.

        Source: bounds as in Böhning (1992) for softmax; the rest by the chain rule.
        """
        least, c2, c3 = float(diagonal.min()), self.loss.curvature_bound, self.loss.curvature_lipschitz
        if least <= 0.0 and c3 == 0.0:
            least = _with_intercept(self._least_of_weights(diagonal), c2, self.mean)
        return Constants(
            strong_convexity=max(least, 0.0),
            smoothness=c2 * self.inner + float(diagonal.max()),
            hessian_lipschitz=c3 * self.longest * self.inner,
            cross_lipschitz=float(diagonal.max()),
            outer_smoothness=c2 * self.outer,
            outer_is_convex=True,
        )

    def convexity(self, diagonal: Tensor, product: Callable[[Tensor], Tensor]) -> Convexity | None:
        """Return the convexity at the `w` of a Hessian product `product`; None if a coefficient has no penalty.

        The losses are self-concordant in the sense of Bach (2010): along a change of the outputs by u the second
        derivative ℓ'' falls no faster than e^{−c|u|}, so the Hessian no faster than e^{−R r} with R = c max‖x‖.
        """
        known = self.constants(diagonal).strong_convexity
        if known > 0.0:
            return Convexity(known, self._self_concordance, holds_everywhere=True)
        least, layout = self._least_of_weights(diagonal), self.layout
        if least <= 0.0:
            return None
        columns = []
        for j in range(layout.intercepts):
            unit = torch.zeros_like(diagonal)
            unit[layout.coefficients :].view(layout.models, layout.intercepts)[:, j] = 1.0
            columns.append(product(unit))
        edges, corners = zip(*(layout.split(column) for column in columns), strict=True)
        corner = torch.stack(corners, dim=-1)  # B of each model, [k, m, m]
        edge = torch.stack(edges, dim=-1)  # E of each model, from [d, k c, m] to [k, d c, m]
        edge = edge.view(layout.features, layout.models, layout.outputs, -1).transpose(0, 1).flatten(1, 2)
        held = torch.linalg.eigvalsh(corner)[:, 0] * (1.0 - _ROUNDING)
        if bool((held <= 0.0).any()):  # probabilities of 0 and 1 to working precision
            return None
        tilt = torch.linalg.matrix_norm(torch.linalg.solve(corner, edge.mT), 2) * (1.0 + _ROUNDING)
        bounds = [_with_intercept(least, b, t) for b, t in zip(held.tolist(), tilt.tolist(), strict=True)]
        # A product with an intercept needs X from one side only.
        cost = Cost(hessian_vector_products=math.ceil(layout.intercepts / 2))
        return Convexity(min(bounds), self._self_concordance, holds_everywhere=False, cost=cost)

    @property
    def _self_concordance(self) -> float:
        return self.loss.self_concordance * self.longest

    def _least_of_weights(self, diagonal: Tensor) -> float:
        return float(diagonal[: self.layout.coefficients].min()) if self.layout.coefficients else math.inf


def _with_intercept(weights: float, held: float, tilt: float) -> float:
    """Return a lower bound of the Hessian where the coefficients are penalised and the intercepts are not.

    H = [[A + D, E], [Eᵀ, B]], and A ⪰ E B⁻¹ Eᵀ since the loss is convex. So uᵀDu + ‖v + B⁻¹Eᵀu‖²_B bounds the
    form at (u, v) from below, and that is at least the smaller eigenvalue of
    [[λ + β t², β t], [β t, β]], with λ = min D, β = λ_min(B) and t = ‖B⁻¹Eᵀ‖.
    """
    trace, determinant = weights + held * (1.0 + tilt * tilt), weights * held
    return 2.0 * determinant / (trace + math.sqrt(max(trace * trace - 4.0 * determinant, 0.0))) * (1.0 - 1e-12)


def _largest_eigenvalue(rows: "Rows", layout: Layout) -> float:
    """Return an upper bound, over models, of the largest eigenvalue of [X 1]ᵀ diag(a) [X 1]."""
    shift = 0.0 if layout.basis is None else 1.0
    squares = rows.design.row_norms().square() + shift  # [n]
    bound = float((rows.weights * squares[:, None]).sum(0).max())  # the trace
    if layout.features <= _LARGEST_GRAM and not rows.design.is_sparse:
        exact = float(torch.linalg.eigvalsh(rows.design.gram(rows.weights))[:, -1].max())
        # λ_max of a 2 × 2 block matrix ≤ the sum of those of its diagonal blocks; a margin for rounding.
        bound = min(bound, (exact + shift) * (1.0 + _ROUNDING))
    return bound
