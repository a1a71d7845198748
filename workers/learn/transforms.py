"""Maps between an unconstrained number and the domain that a hyperparameter lives in."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor


class AbstractTransform(ABC):
    """A smooth increasing map from the real line onto an open interval, elementwise."""

    @abstractmethod
    def __call__(self, raw: Tensor) -> Tensor:
        """Return the natural value of `raw`, of the same shape."""

    @abstractmethod
    def inverse(self, value: Tensor) -> Tensor:
        """Return the raw value of `value`; ±∞ on the border of the domain, NaN outside it."""

    @abstractmethod
    def derivative(self, raw: Tensor) -> Tensor:
        """Return d value / d raw at `raw`, of the same shape."""


@dataclass(frozen=True)
class Identity(AbstractTransform):
    """The whole real line: value = raw."""

    def __call__(self, raw: Tensor) -> Tensor:
        """See `AbstractTransform.__call__`."""
        return raw

    def inverse(self, value: Tensor) -> Tensor:
        """See `AbstractTransform.inverse`."""
        return value

    def derivative(self, raw: Tensor) -> Tensor:
        """See `AbstractTransform.derivative`."""
        return torch.ones_like(raw)


@dataclass(frozen=True)
class Exp(AbstractTransform):
    """Positive numbers: value = exp(raw), so that steps are multiplicative, as strengths want."""

    def __call__(self, raw: Tensor) -> Tensor:
        """See `AbstractTransform.__call__`."""
        return raw.exp()

    def inverse(self, value: Tensor) -> Tensor:
        """See `AbstractTransform.inverse`."""
        return value.log()

    def derivative(self, raw: Tensor) -> Tensor:
        """See `AbstractTransform.derivative`."""
        return raw.exp()


@dataclass(frozen=True)
class Interval(AbstractTransform):
    """Numbers between `low` and `high`: value = low + (high − low) σ(raw)."""

    low: float = 0.0
    high: float = 1.0

    def __call__(self, raw: Tensor) -> Tensor:
        """See `AbstractTransform.__call__`."""
        return self.low + (self.high - self.low) * torch.sigmoid(raw)

    def inverse(self, value: Tensor) -> Tensor:
        """See `AbstractTransform.inverse`."""
        return torch.logit((value - self.low) / (self.high - self.low))

    def derivative(self, raw: Tensor) -> Tensor:
        """See `AbstractTransform.derivative`."""
        at = torch.sigmoid(raw)
        return (self.high - self.low) * at * (1.0 - at)


@dataclass(frozen=True)
class Softplus(AbstractTransform):
    """Numbers above `low`: value = low + log(1 + exp(raw)), which is nearly linear where it is large."""

    low: float = 0.0

    def __call__(self, raw: Tensor) -> Tensor:
        """See `AbstractTransform.__call__`."""
        return self.low + torch.logaddexp(raw, torch.zeros_like(raw))

    def inverse(self, value: Tensor) -> Tensor:
        """See `AbstractTransform.inverse`."""
        above = value - self.low
        # log(exp(x) − 1) would overflow for large x and lose all digits for small ones.
        return above + torch.log(-torch.expm1(-above))

    def derivative(self, raw: Tensor) -> Tensor:
        """See `AbstractTransform.derivative`."""
        return torch.sigmoid(raw)


@dataclass(frozen=True)
class Whole(AbstractTransform):
    """Whole numbers from `low` to `high`: the floor of an interval that each of them has an equal part of.

    Not smooth: its derivative is zero, so that only methods can learn it that look at how a model responds to raw.
    A whole number stands for the middle of its part, and `high` is reached like any other.
    """

    low: int
    high: int

    def __call__(self, raw: Tensor) -> Tensor:
        """See `AbstractTransform.__call__`."""
        # A sigmoid that rounds to one would reach high + 1.
        return torch.floor(self._interval(raw)).clamp(max=float(self.high))

    def inverse(self, value: Tensor) -> Tensor:
        """See `AbstractTransform.inverse`; values between whole numbers are rounded down."""
        return self._interval.inverse(torch.floor(value) + 0.5)

    def derivative(self, raw: Tensor) -> Tensor:
        """See `AbstractTransform.derivative`."""
        return torch.zeros_like(raw)

    @property
    def _interval(self) -> Interval:
        return Interval(float(self.low), float(self.high + 1))
