"""Penalties on a parameter vector, with strengths that can be learned."""

from abc import ABC, abstractmethod

from torch import Tensor

from workers.learn.hyperparameters import Hyper, Hyperparameter


class AbstractRegularizer(ABC):
    """A penalty R(w, strengths): a sum over parameters, added to the mean training loss."""

    @abstractmethod
    def hyperparameters(self) -> tuple[Hyperparameter, ...]:
        """Return what is to be learned; nothing if the strength is fixed."""

    @abstractmethod
    def __call__(self, w: Tensor, hyper: Hyper) -> Tensor:
        """Return the penalty, a scalar; differentiable in `w` [p] and in the strengths."""


class AbstractDiagonalRegularizer(AbstractRegularizer):
    """A quadratic penalty ½ Σ_j D_j w_j² whose diagonal D is linear in the strengths."""

    @abstractmethod
    def diagonal(self, hyper: Hyper, w: Tensor) -> Tensor:
        """Return D, [p], of the dtype and device of `w` [p]."""

    @abstractmethod
    def spread(self, direction: Hyper, w: Tensor) -> Tensor:
        """Return the change of D, [p], when the learned strengths change by `direction`."""

    @abstractmethod
    def collect(self, v: Tensor) -> tuple[Tensor, ...]:
        """Return the transpose of `spread` at `v` [p], one tensor for each of `hyperparameters()`."""
