"""The derivatives of a problem whose inner loss has kinks: a smooth part and absolute values."""

from typing import final

import torch
from torch import Tensor

from workers.learn.hyperparameters import Hyper, HyperparameterSpace
from workers.learn.oracle import (
    AbstractMetric,
    AbstractOracle,
    Constants,
    Convexity,
    InnerValue,
    MatVec,
    OuterValue,
)
from workers.learn.regularizers.l1 import L1


@final
class SparseOracle(AbstractOracle):
    """Serves inner(w) = smooth(w) + Σ_j τ_j |w_j| with learned thresholds τ.

    Off the kinks a minimiser moves with the hyperparameters as if the weights that are zero were not there, as long
    as none of them sits on the edge of becoming active. So the implicit function theorem holds on the support
    S = {j : w_j ≠ 0}, and whoever solves with these derivatives solves there:

    - ∂_w inner is the subgradient of least norm: zero exactly at minimisers.
    - ∂²_{ww} inner acts as the smooth Hessian within S and as the identity beside it, ∂_w outer is cut to S, so that
      the adjoint is zero outside.
    - ∂²_{w raw} inner has sign(w_j) τ_j in the rows of S.

    The price of a solve is that of the smooth problem on S.

    Source: Bertrand et al. (2020), "Implicit differentiation of Lasso-type models", proposition 1.
    """

    def __init__(
        self,
        smooth: AbstractOracle,
        penalties: tuple[L1, ...],
        smooth_space: HyperparameterSpace,
        sparse_space: HyperparameterSpace,
    ) -> None:
        """Take the parts; `raw` is that of the smooth part and after it that of the penalties."""
        self._smooth = smooth
        self._penalties = penalties
        self._split = smooth_space.size
        self._space = sparse_space

    def thresholds(self, raw: Tensor, w: Tensor) -> Tensor:
        """Return τ ≥ 0, [p]."""
        hyper = self._space.constrain(raw[self._split :])
        return torch.stack([penalty.thresholds(hyper, w) for penalty in self._penalties]).sum(0)

    def smooth_part(self, w: Tensor, raw: Tensor) -> InnerValue:
        """Return the inner loss without the absolute values, and its gradient."""
        return self._smooth.inner(w, raw[: self._split])

    def inner(self, w: Tensor, raw: Tensor) -> InnerValue:
        """See `AbstractOracle.inner`; the gradient is the subgradient of least norm."""
        at = self.smooth_part(w, raw)
        thresholds = self.thresholds(raw, w)
        return InnerValue(at.value + torch.dot(thresholds, w.abs()), least_subgradient(w, at.gradient, thresholds))

    def outer(self, w: Tensor, raw: Tensor) -> OuterValue:
        """See `AbstractOracle.outer`."""
        at = self._smooth.outer(w, raw[: self._split])
        direct = torch.cat([at.raw_gradient, torch.zeros_like(raw[self._split :])])
        return OuterValue(at.value, torch.where(self._support(w, raw), at.gradient, 0.0), direct)

    def hvp(self, w: Tensor, raw: Tensor) -> MatVec:
        """See `AbstractOracle.hvp`."""
        product, support = self._smooth.hvp(w, raw[: self._split]), self._support(w, raw)

        def restricted(v: Tensor) -> Tensor:
            return torch.where(support, product(torch.where(support, v, 0.0)), v)

        return restricted

    def cross(self, w: Tensor, raw: Tensor, q: Tensor) -> Tensor:
        """See `AbstractOracle.cross`."""
        signed = w.sign() * q
        sums = [part for penalty in self._penalties for part in penalty.collect(signed)]
        smooth = self._smooth.cross(w, raw[: self._split], torch.where(self._support(w, raw), q, 0.0))
        return torch.cat([smooth, self._space.pullback(raw[self._split :], sums)])

    def cross_forward(self, w: Tensor, raw: Tensor, direction: Tensor) -> Tensor:
        """See `AbstractOracle.cross_forward`."""
        rates: Hyper = self._space.pushforward(raw[self._split :], direction[self._split :])
        change = torch.stack([penalty.spread(rates, w) for penalty in self._penalties]).sum(0) * w.sign()
        smooth = self._smooth.cross_forward(w, raw[: self._split], direction[: self._split])
        return torch.where(self._support(w, raw), smooth + change, 0.0)

    def metric(self, raw: Tensor, w: Tensor | None) -> AbstractMetric | None:  # noqa: ARG002 (there is none)
        """Return None: absolute values are simple in their own coordinates only."""
        return None

    def constants(self, raw: Tensor) -> Constants | None:  # noqa: ARG002 (there are none)
        """Return None: derivatives jump where the support changes."""
        return None

    def convexity(self, w: Tensor, raw: Tensor) -> Convexity | None:  # noqa: ARG002 (there is none)
        """Return None: the support of the minimiser is not known beforehand."""
        return None

    def cross_norm(self, w: Tensor, raw: Tensor) -> float | None:  # noqa: ARG002 (no use without constants)
        """Return None."""
        return None

    def _support(self, w: Tensor, raw: Tensor) -> Tensor:
        # A weight without a kink belongs to it even when it happens to be zero.
        return (w != 0.0) | (self.thresholds(raw, w) == 0.0)


def least_subgradient(w: Tensor, gradient: Tensor, thresholds: Tensor) -> Tensor:
    """Return the element of ∂(smooth + Σ τ|·|)(w) of least norm, [p], from the gradient of the smooth part."""
    at_zero = gradient.sign() * (gradient.abs() - thresholds).clamp_min(0.0)
    return torch.where(w == 0.0, at_zero, gradient + thresholds * w.sign())
