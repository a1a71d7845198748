"""Changes of variables that take the geometry of the data out of linear problems."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, final

import torch
from torch import Tensor

from workers.learn.cost import Cost
from workers.learn.losses.base import AbstractLoss, LossAt
from workers.learn.oracle import AbstractMetric
from workers.learn.problems.layout import Layout

if TYPE_CHECKING:
    from workers.learn.problems.linear import Rows

_LARGEST_BLOCK = 2048
_LARGEST_BLOCKS = 2**25


@dataclass(frozen=True, eq=False)
class Curvature:
    """An approximation of the Hessian of the mean training losses, without penalties.

    Blocks: for each model one Xᵀ diag(a s) X, where s is the mean over outputs of the diagonal of ∂²ℓ/∂z², or
    its bound; the coupling of outputs is left out. A single output takes its intercept into the block; several
    keep theirs apart. Wide data has only the diagonal.
    """

    w: Tensor | None
    blocks: Tensor | None
    """[k, d, d] or, with the intercept of a single output, [k, d + 1, d + 1]."""
    diagonal: Tensor
    """[p]."""
    cost: Cost

    def is_at(self, w: Tensor | None) -> bool:
        """Whether this is the curvature at `w`."""
        return self.w is w

    @staticmethod
    def of(layout: Layout, loss: AbstractLoss, rows: "Rows", w: Tensor | None, at: LossAt | None) -> "Curvature":
        """Return the curvature at a loss, or the one that bounds it everywhere."""
        n, k, c = rows.design.rows, layout.models, layout.outputs
        bound = rows.weights.new_full((n, k, c), loss.curvature_bound)
        second = (bound if at is None else at.curvature_diagonal()) * rows.weights[..., None]
        shared = second.mean(-1)  # [n, k]
        if has_blocks(layout, rows):
            blocks = rows.design.gram(shared)
            if c == 1 and layout.basis is not None:
                edge = rows.design.transposed_times(shared).T[:, :, None]  # [k, d, 1]
                corner = shared.sum(0)[:, None, None]
                blocks = torch.cat([torch.cat([blocks, edge], dim=2), torch.cat([edge.mT, corner], dim=2)], dim=1)
            # A Hessian product passes 2 c times through the entries of X.
            equivalent = math.ceil(rows.design.gram_multiplications / (2 * c * max(rows.design.entries, 1)))
        else:
            blocks, equivalent = None, 1
        coefficients = rows.design.squares_times(second.view(n, k * c))
        sums = second.sum(0)
        if layout.basis is None:
            diagonal = coefficients.reshape(-1)
        else:
            diagonal = torch.cat([coefficients.reshape(-1), (sums @ layout.basis.square()).reshape(-1)])
        return Curvature(w, blocks, diagonal, Cost(hessian_vector_products=equivalent))


def has_blocks(layout: Layout, rows: "Rows") -> bool:
    """Whether the Gram matrix of the features is small enough to be made and factorised."""
    d = layout.features
    if d > _LARGEST_BLOCK or layout.models * layout.outputs * d * d > _LARGEST_BLOCKS:
        return False
    return not rows.design.is_sparse or rows.design.rows * d <= 2**27


def linear_metric(layout: Layout, curvature: Curvature, penalties: Tensor) -> AbstractMetric:
    """Return the metric of a curvature plus the diagonal of the penalties, [p]."""
    scale = (curvature.diagonal + penalties).clamp_min(torch.finfo(penalties.dtype).tiny).rsqrt()
    if curvature.blocks is None:
        return DiagonalMetric(scale, curvature.cost)
    d, k, c = layout.features, layout.models, layout.outputs
    of_weight = penalties[: layout.coefficients].view(d, k, c)
    joint = c == 1 and layout.basis is not None
    # Outputs whose penalties agree share a factor: one strength for the model or one for each feature.
    same = c == 1 or bool((of_weight == of_weight[..., :1]).all())
    added = (of_weight[..., :1] if same else of_weight).permute(1, 2, 0)  # [k, c or 1, d]
    if joint:
        added = torch.cat([added, penalties[layout.coefficients :].view(k, 1, 1)], dim=2)
    matrices = curvature.blocks[:, None] + torch.diag_embed(added)
    factor, failed = torch.linalg.cholesky_ex(matrices)
    if bool((failed != 0).any()):  # not positive definite in this precision: what is left is the diagonal
        return DiagonalMetric(scale, curvature.cost)
    return BlockMetric(layout, factor, scale[layout.coefficients :], joint, curvature.cost)


@final
@dataclass(frozen=True, eq=False)
class DiagonalMetric(AbstractMetric):
    """S = diag(scale)."""

    scale: Tensor
    spent: Cost

    @property
    def cost(self) -> Cost:
        """See `AbstractMetric.cost`."""
        return self.spent

    def forward(self, u: Tensor) -> Tensor:
        """See `AbstractMetric.forward`."""
        return self.scale * u

    def transpose(self, v: Tensor) -> Tensor:
        """See `AbstractMetric.transpose`."""
        return self.scale * v

    def inverse(self, w: Tensor) -> Tensor:
        """See `AbstractMetric.inverse`."""
        return w / self.scale


@final
@dataclass(frozen=True, eq=False)
class BlockMetric(AbstractMetric):
    """S = L⁻ᵀ for each block M = L Lᵀ; intercepts of several outputs are scaled by themselves."""

    layout: Layout
    factor: Tensor
    """L, [k, c or 1, d, d], one larger with the intercept inside."""
    bias_scale: Tensor
    joint: bool
    spent: Cost

    @property
    def cost(self) -> Cost:
        """See `AbstractMetric.cost`."""
        return self.spent

    def forward(self, u: Tensor) -> Tensor:
        """See `AbstractMetric.forward`."""
        return self._blockwise(u, self.bias_scale, self._solve_transposed)

    def transpose(self, v: Tensor) -> Tensor:
        """See `AbstractMetric.transpose`."""
        return self._blockwise(v, self.bias_scale, self._solve)

    def inverse(self, w: Tensor) -> Tensor:
        """See `AbstractMetric.inverse`."""
        return self._blockwise(w, 1.0 / self.bias_scale, self._times_transposed)

    def _solve_transposed(self, x: Tensor) -> Tensor:
        solved: Tensor = torch.linalg.solve_triangular(self.factor.mT, x, upper=True)
        return solved

    def _solve(self, x: Tensor) -> Tensor:
        solved: Tensor = torch.linalg.solve_triangular(self.factor, x, upper=False)
        return solved

    def _times_transposed(self, x: Tensor) -> Tensor:
        return self.factor.mT @ x

    def _blockwise(self, v: Tensor, bias_scale: Tensor, apply: Callable[[Tensor], Tensor]) -> Tensor:
        layout = self.layout
        d, k, c = layout.features, layout.models, layout.outputs
        x = v[: layout.coefficients].view(d, k, c).permute(1, 2, 0)  # [k, c, d]
        if self.joint:
            x = torch.cat([x, v[layout.coefficients :].view(k, 1, 1)], dim=2)
        # One factor for all outputs: they are the right-hand sides of one solve.
        shared = self.factor.shape[1] == 1
        y = apply(x.mT[:, None])[:, 0].mT if shared else apply(x[..., None])[..., 0]
        weight = y[..., :d].permute(2, 0, 1).reshape(-1)
        if self.joint:
            return torch.cat([weight, y[..., d].reshape(-1)])
        return torch.cat([weight, bias_scale * v[layout.coefficients :]])
