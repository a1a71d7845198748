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
