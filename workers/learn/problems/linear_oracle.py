"""The derivatives of linear problems in closed form."""

from functools import cached_property
from typing import TYPE_CHECKING, final

import torch
from torch import Tensor

from workers.learn.hyperparameters import HyperparameterSpace
from workers.learn.losses.base import AbstractLoss, LossAt
from workers.learn.oracle import (
    AbstractMetric,
    AbstractOracle,
    Constants,
    Convexity,
    InnerValue,
    MatVec,
    OuterValue,
)
from workers.learn.problems.design import Design
from workers.learn.problems.layout import Layout
from workers.learn.problems.linear_constants import DataBounds
from workers.learn.problems.linear_metric import Curvature, linear_metric
from workers.learn.regularizers.base import AbstractDiagonalRegularizer

if TYPE_CHECKING:
    from workers.learn.problems.linear import Rows


@final
class LinearOracle(AbstractOracle):
    """With Z = X W + b, a the weights of the examples and D the diagonal of the penalties:

    ∂ inner = Xᵀ (a ∂ℓ/∂Z) + D w,   ∂² inner · v = Xᵀ (a ∂²ℓ/∂Z² (X V)) + D v,   Jᵀ q = (w ∘ q) summed by groups.

    Two products with X for a gradient or a Hessian product. The outputs at the last `w` are remembered, so that
    asking for the gradient, the operator and the outer loss at one point multiplies by each X once.
    """  # noqa: D415 (a formula ends it)

    def __init__(
        self,
        layout: Layout,
        loss: AbstractLoss,
        regularizers: tuple[AbstractDiagonalRegularizer, ...],
        space: HyperparameterSpace,
        train: "Rows",
        valid: "Rows",
    ) -> None:
        self._layout = layout
        self._loss = loss
        self._regularizers = regularizers
        self._space = space
        self._train = train
        self._valid = valid
        self._outputs: dict[int, _Remembered] = {}
        self._bound: Curvature | None = None
        self._curvature: Curvature | None = None

    def inner(self, w: Tensor, raw: Tensor) -> InnerValue:
        """See `AbstractOracle.inner`."""
        at = self._loss_at(w, self._train)
        diagonal = self._diagonal(raw, w)
        penalised = diagonal * w
        value = (at.value * self._train.weights).sum() + 0.5 * torch.dot(w, penalised)
        return InnerValue(value, self._pull(at.slope, self._train).add_(penalised))

    def outer(self, w: Tensor, raw: Tensor) -> OuterValue:
        """See `AbstractOracle.outer`."""
        at = self._loss_at(w, self._valid)
        models = self._layout.models
        value = (at.value * self._valid.weights).sum() / models
        return OuterValue(value, self._pull(at.slope, self._valid).div_(models), torch.zeros_like(raw))

    def hvp(self, w: Tensor, raw: Tensor) -> MatVec:
        """See `AbstractOracle.hvp`."""
        at = self._loss_at(w, self._train)
        diagonal = self._diagonal(raw, w)

        def product(v: Tensor) -> Tensor:
            return self._pull(at.curvature(self._push(v, self._train.design)), self._train) + diagonal * v

        return product

    def cross(self, w: Tensor, raw: Tensor, q: Tensor) -> Tensor:
        """See `AbstractOracle.cross`."""
        product = w * q
        sums = [part for regularizer in self._regularizers for part in regularizer.collect(product)]
        return self._space.pullback(raw, sums)

    def cross_forward(self, w: Tensor, raw: Tensor, direction: Tensor) -> Tensor:
        """See `AbstractOracle.cross_forward`."""
        rates = self._space.pushforward(raw, direction)
        spread = [regularizer.spread(rates, w) for regularizer in self._regularizers]
        return w * torch.stack(spread).sum(0) if spread else torch.zeros_like(w)

    def metric(self, raw: Tensor, w: Tensor | None) -> AbstractMetric | None:
        """See `AbstractOracle.metric`."""
        curvature = self._bound if w is None else self._curvature
        if curvature is None or not curvature.is_at(w):
            at = None if w is None else self._loss_at(w, self._train)
            curvature = Curvature.of(self._layout, self._loss, self._train, w, at)
            if w is None:
                self._bound = curvature
            else:
                self._curvature = curvature
        return linear_metric(self._layout, curvature, self._diagonal_alone(raw))

    def constants(self, raw: Tensor) -> Constants | None:
        """See `AbstractOracle.constants`."""
        return self._bounds.constants(self._diagonal_alone(raw))

    def convexity(self, w: Tensor, raw: Tensor) -> Convexity | None:
        """See `AbstractOracle.convexity`."""
        return self._bounds.convexity(self._diagonal_alone(raw), self.hvp(w, raw))

    def cross_norm(self, w: Tensor, raw: Tensor) -> float | None:
        """See `AbstractOracle.cross_norm`."""
        # JᵀJ has no negative entry, so none of its eigenvalues exceeds its largest row sum (Perron–Frobenius); where
        # every parameter has one strength it is diagonal and this the norm itself.
        sums = self.cross(w, raw, self.cross_forward(w, raw, torch.ones_like(raw)))
        return float(sums.max().sqrt())

    @cached_property
    def _bounds(self) -> DataBounds:
        return DataBounds.of(self._layout, self._loss, self._train, self._valid)

    def _diagonal_alone(self, raw: Tensor) -> Tensor:
        return self._diagonal(raw, self._train.weights.new_zeros(self._layout.size))

    def _diagonal(self, raw: Tensor, w: Tensor) -> Tensor:
        hyper = self._space.constrain(raw)
        parts = [regularizer.diagonal(hyper, w) for regularizer in self._regularizers]
        return torch.stack(parts).sum(0) if len(parts) > 1 else parts[0] if parts else torch.zeros_like(w)

    def _push(self, v: Tensor, design: Design) -> Tensor:
        """Return X V + b of a flat vector, [n, k, c]."""
        coefficients, coordinates = self._layout.split(v)
        z = (design.matrix @ coefficients).view(design.rows, self._layout.models, self._layout.outputs)
        return self._layout.add_intercepts(z, coordinates)

    def _pull(self, slope: Tensor, rows: "Rows") -> Tensor:
        """Return the transpose of `_push` at weighted slopes [n, k, c], [p]."""
        weighted = slope * rows.weights[..., None]
        coefficients = rows.design.transposed_times(weighted.view(rows.design.rows, -1))
        return self._layout.join(coefficients, weighted.sum(0))

    def _loss_at(self, w: Tensor, rows: "Rows") -> LossAt:
        # In folds, training and validation are the same rows with other weights: one forward pass for both.
        key = id(rows.design)
        known = self._outputs.get(key)
        if known is None or known.w is not w or known.version != w._version:
            at = self._loss.at(self._push(w, rows.design), rows.y)
            known = _Remembered(w, w._version, at)
            self._outputs[key] = known
        return known.at


class _Remembered:
    """A loss at one `w`, recognised by identity and by torch's count of changes in place."""

    def __init__(self, w: Tensor, version: int, at: LossAt) -> None:
        self.w = w
        self.version = version
        self.at = at
