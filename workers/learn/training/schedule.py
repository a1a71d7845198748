"""What becomes of the learning rate while a network is trained."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final


class AbstractSchedule(ABC):
    """A factor of the learning rate for each step."""

    @abstractmethod
    def factor(self, step: int) -> float:
        """Return the factor of step 0, 1, 2, …; between 0 and 1."""


@final
@dataclass(frozen=True)
class Constant(AbstractSchedule):
    """The learning rate stays."""

    def factor(self, step: int) -> float:  # noqa: ARG002 (it is the same at every step)
        """See `AbstractSchedule.factor`."""
        return 1.0


@final
@dataclass(frozen=True)
class Cosine(AbstractSchedule):
    """½ (1 + cos(π t / total)), and 0 from `total` on.

    Source: Loshchilov & Hutter (2017), equation (5), without restarts.
    """

    total: int

    def factor(self, step: int) -> float:
        """See `AbstractSchedule.factor`."""
        return 0.5 * (1.0 + math.cos(math.pi * step / self.total)) if step < self.total else 0.0
