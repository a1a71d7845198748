"""What is to be solved: two losses that share a parameter vector."""

from abc import ABC, abstractmethod
from enum import StrEnum
from typing import final

from torch import Tensor

from workers.learn.hyperparameters import Hyper, HyperparameterSpace
from workers.learn.oracle import AbstractOracle


class Part(StrEnum):
    """A part of the data."""

    TRAIN = "train"
    VALID = "valid"
    TEST = "test"


class AbstractBilevelProblem(ABC):
    """Minimise outer(w*(raw), raw) over raw, where w*(raw) minimises inner(·, raw).

    Authors write `inner_loss` and `outer_loss` with named hyperparameters in their own domain, as in the papers;
    methods call `inner` and `outer` with `raw` [h], or rather the `oracle`, which knows their derivatives.
    """

    @property
    @abstractmethod
    def space(self) -> HyperparameterSpace:
        """The hyperparameters that are learned."""

    @abstractmethod
    def initial_weights(self, seed: int) -> Tensor:
        """Return the starting `w`, [p]; its dtype and device are those of the whole run."""

    @abstractmethod
    def inner_loss(self, w: Tensor, hyper: Hyper) -> Tensor:
        """Return the regularized training loss, a scalar."""

    @abstractmethod
    def outer_loss(self, w: Tensor, hyper: Hyper) -> Tensor:
        """Return the validation loss, a scalar."""

    @abstractmethod
    def oracle(self) -> AbstractOracle:
        """Return the derivatives: `AutogradOracle(self)` unless closed forms are known."""

    @abstractmethod
    def parts(self) -> frozenset[Part]:
        """Return the parts of the data that `evaluate` takes."""

    @abstractmethod
    def evaluate(self, w: Tensor, part: Part) -> dict[str, float]:
        """Return metrics on a part of the data, without penalties; `loss` is always among them.

        Raises:
            LearnError: this problem has no such part.
        """

    @abstractmethod
    def named_weights(self, w: Tensor) -> dict[str, Tensor]:
        """Return the parameters by name and in their natural shapes."""

    @final
    def inner(self, w: Tensor, raw: Tensor) -> Tensor:
        """Return `inner_loss` at raw hyperparameters [h]."""
        return self.inner_loss(w, self.space.constrain(raw))

    @final
    def outer(self, w: Tensor, raw: Tensor) -> Tensor:
        """Return `outer_loss` at raw hyperparameters [h]."""
        return self.outer_loss(w, self.space.constrain(raw))
