"""A problem seen in other coordinates of its parameters."""

from typing import final

from torch import Tensor

from workers.learn.oracle import (
    AbstractMetric,
    AbstractOracle,
    Constants,
    Convexity,
    InnerValue,
    MatVec,
    OuterValue,
)


@final
class WhitenedOracle(AbstractOracle):
    """The losses as functions of u, where w = S u.

    S stays as it is while `raw` is differentiated, so hypergradients are those of the original problem: any solver
    of it, unchanged, becomes a preconditioned one. Norms of gradients and of residuals are those of u: with
    S Sᵀ ≈ H⁻¹, half the square of a gradient's norm is the excess of the loss.
    """

    def __init__(self, oracle: AbstractOracle, metric: AbstractMetric) -> None:
        self._oracle = oracle
        self._metric = metric
        self._last: tuple[Tensor, int, Tensor] | None = None

    def inner(self, w: Tensor, raw: Tensor) -> InnerValue:
        """See `AbstractOracle.inner`."""
        at = self._oracle.inner(self.original(w), raw)
        return InnerValue(at.value, self._metric.transpose(at.gradient))

    def outer(self, w: Tensor, raw: Tensor) -> OuterValue:
        """See `AbstractOracle.outer`."""
        at = self._oracle.outer(self.original(w), raw)
        return OuterValue(at.value, self._metric.transpose(at.gradient), at.raw_gradient)

    def hvp(self, w: Tensor, raw: Tensor) -> MatVec:
        """See `AbstractOracle.hvp`."""
        product = self._oracle.hvp(self.original(w), raw)
        return lambda v: self._metric.transpose(product(self._metric.forward(v)))

    def cross(self, w: Tensor, raw: Tensor, q: Tensor) -> Tensor:
        """See `AbstractOracle.cross`."""
        return self._oracle.cross(self.original(w), raw, self._metric.forward(q))

    def cross_forward(self, w: Tensor, raw: Tensor, direction: Tensor) -> Tensor:
        """See `AbstractOracle.cross_forward`."""
        return self._metric.transpose(self._oracle.cross_forward(self.original(w), raw, direction))

    def metric(self, raw: Tensor, w: Tensor | None) -> AbstractMetric | None:  # noqa: ARG002 (it has been used)
        """See `AbstractOracle.metric`."""
        return None

    def constants(self, raw: Tensor) -> Constants | None:  # noqa: ARG002 (they hold in the other coordinates)
        """See `AbstractOracle.constants`."""
        return None

    def convexity(self, w: Tensor, raw: Tensor) -> Convexity | None:  # noqa: ARG002 (they hold in the other coordinates)
        """See `AbstractOracle.convexity`."""
        return None

    def cross_norm(self, w: Tensor, raw: Tensor) -> float | None:  # noqa: ARG002 (they hold in the other coordinates)
        """See `AbstractOracle.cross_norm`."""
        return None

    def original(self, u: Tensor) -> Tensor:
        """Return w = S u: the same tensor when asked again about the last u, for the oracle's memory."""
        if self._last is None or self._last[0] is not u or self._last[1] != u._version:
            self._last = (u, u._version, self._metric.forward(u))
        return self._last[2]
