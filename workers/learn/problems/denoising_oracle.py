"""The derivatives of denoising problems in closed form."""

from typing import final

import torch
from torch import Tensor

from workers.learn.hyperparameters import HyperparameterSpace
from workers.learn.oracle import AbstractMetric, AbstractOracle, Constants, Convexity, InnerValue, MatVec, OuterValue
from workers.learn.regularizers.image import AbstractImageRegularizer


@final
class DenoisingOracle(AbstractOracle):
    """With y the noisy and t the true images, n of them:

    ∂ inner = (x − y + ∂R(x)) / n,   ∂² inner · v = (v + ∂²R(x) v) / n,   ∂ outer = (x − t) / n.

    Images do not touch each other: the Hessian is block-diagonal, and every bound for one image holds for all.
    """  # noqa: D415 (a formula ends it)

    def __init__(
        self, noisy: Tensor, truth: Tensor, regularizer: AbstractImageRegularizer, space: HyperparameterSpace
    ) -> None:
        self._noisy = noisy
        self._truth = truth
        self._regularizer = regularizer
        self._space = space

    def inner(self, w: Tensor, raw: Tensor) -> InnerValue:
        """See `AbstractOracle.inner`."""
        x = self._images(w)
        residual = x - self._noisy
        penalty, slope = self._regularizer.value_and_gradient(x, self._space.constrain(raw))
        value = 0.5 * residual.square().sum() + penalty
        return InnerValue(value / self._count, residual.add_(slope).div_(self._count).reshape(-1))

    def outer(self, w: Tensor, raw: Tensor) -> OuterValue:
        """See `AbstractOracle.outer`."""
        error = self._images(w) - self._truth
        value = 0.5 * error.square().sum() / self._count
        return OuterValue(value, error.div_(self._count).reshape(-1), torch.zeros_like(raw))

    def hvp(self, w: Tensor, raw: Tensor) -> MatVec:
        """See `AbstractOracle.hvp`."""
        curvature = self._regularizer.curvature(self._images(w), self._space.constrain(raw))

        def product(v: Tensor) -> Tensor:
            along = self._images(v)
            return curvature(along).add_(along).div_(self._count).reshape(-1)

        return product

    def cross(self, w: Tensor, raw: Tensor, q: Tensor) -> Tensor:
        """See `AbstractOracle.cross`."""
        parts = self._regularizer.cross(self._images(w), self._space.constrain(raw), self._images(q))
        return self._space.pullback(raw, [parts[name] for name in self._space.names]) / self._count

    def cross_forward(self, w: Tensor, raw: Tensor, direction: Tensor) -> Tensor:
        """See `AbstractOracle.cross_forward`."""
        rates = self._space.pushforward(raw, direction)
        change = self._regularizer.cross_forward(self._images(w), self._space.constrain(raw), rates)
        return change.reshape(-1) / self._count

    def cross_norm(self, w: Tensor, raw: Tensor) -> float | None:
        """See `AbstractOracle.cross_norm`."""
        return self._regularizer.cross_norm(self._images(w), self._space.constrain(raw)) / self._count

    def metric(self, raw: Tensor, w: Tensor | None) -> AbstractMetric | None:  # noqa: ARG002 (none is known)
        """See `AbstractOracle.metric`."""
        return None

    def constants(self, raw: Tensor) -> Constants | None:
        """Return μ = 1/n, L = (1 + ‖∂²R‖)/n and the rest, each a bound for one image over n.

        For h(w) = (1/n) Σ h_i(x_i) the Hessians' difference is block-diagonal with blocks within
        c ‖x_i − z_i‖ / n ≤ c ‖w − v‖ / n; the rows of the cross derivative that belong to image i depend on x_i
        alone, hence ‖ΔJ a‖² = Σ ‖ΔJ_i a‖² ≤ Σ (c ‖x_i − z_i‖ ‖a‖ / n)² = (c ‖w − v‖ ‖a‖ / n)².
        """
        of_one = self._regularizer.bounds(self._space.constrain(raw), self._noisy)
        return Constants(
            strong_convexity=1.0 / self._count,
            smoothness=(1.0 + of_one.curvature) / self._count,
            hessian_lipschitz=of_one.curvature_lipschitz / self._count,
            cross_lipschitz=of_one.cross_lipschitz / self._count,
            outer_smoothness=1.0 / self._count,
            outer_is_convex=True,
        )

    def convexity(self, w: Tensor, raw: Tensor) -> Convexity | None:  # noqa: ARG002 (nothing beyond `constants`)
        """See `AbstractOracle.convexity`."""
        return None

    @property
    def _count(self) -> int:
        return self._noisy.shape[0]

    def _images(self, w: Tensor) -> Tensor:
        return w.reshape(self._noisy.shape)
