"""Penalties on images, with the closed forms that an oracle of them is made of."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from workers.learn.errors import LearnError
from workers.learn.hyperparameters import Hyper, Hyperparameter
from workers.learn.transforms import AbstractTransform, Exp


@dataclass(frozen=True, eq=False)
class Quantity:
    """A number, or an array of numbers, of a penalty: learned within a box, or fixed."""

    name: str
    initial: float | Tensor
    """Its value at the start, one for all or an array of `shape`: or for ever, if fixed."""
    shape: tuple[int, ...] = ()
    transform: AbstractTransform = Exp()  # noqa: RUF009 (it is immutable)
    low: float | None = None
    high: float | None = None
    fixed: bool = False

    def hyperparameter(self) -> Hyperparameter:
        """Return it as something to be learned."""
        return Hyperparameter(self.name, self.initial, self.shape, self.transform, self.low, self.high)

    def value(self, hyper: Hyper, like: Tensor) -> Tensor:
        """Return its present value, of `shape`, with the dtype and device of `like`."""
        if not self.fixed:
            return hyper[self.name]
        return torch.as_tensor(self.initial).to(dtype=like.dtype, device=like.device).expand(self.shape)

    def rate(self, rates: Hyper, like: Tensor) -> Tensor:
        """Return its rate of change, of `shape`: zero if it is fixed."""
        return like.new_zeros(self.shape) if self.fixed else rates[self.name]


@dataclass(frozen=True)
class ImageBounds:
    """Proven bounds of R on one image, for all images of that size, with hyperparameters in raw coordinates.

    `curvature` ≥ ‖∂²R‖; `curvature_lipschitz` and `cross_lipschitz` are Lipschitz constants of ∂²R and of
    ∂²R/∂x∂raw; infinite where there is none.
    """

    curvature: float
    curvature_lipschitz: float
    cross_lipschitz: float


class AbstractImageRegularizer(ABC):
    """A convex, twice differentiable penalty R(x; hyper) on images x, [n, c, h, w], summed over all of them.

    Channels are penalised each by itself. Nothing here but `__call__` is meant for autograd.
    """

    @abstractmethod
    def quantities(self) -> tuple[Quantity, ...]:
        """Return what the penalty depends on, learned or fixed."""

    @abstractmethod
    def __call__(self, x: Tensor, hyper: Hyper) -> Tensor:
        """Return R, a scalar; differentiable in `x` and in the hyperparameters."""

    @abstractmethod
    def value_and_gradient(self, x: Tensor, hyper: Hyper) -> tuple[Tensor, Tensor]:
        """Return R and ∂R/∂x, of the shape of `x`."""

    @abstractmethod
    def curvature(self, x: Tensor, hyper: Hyper) -> Callable[[Tensor], Tensor]:
        """Return v ↦ ∂²R(x) v, both of the shape of `x`."""

    @abstractmethod
    def cross(self, x: Tensor, hyper: Hyper, q: Tensor) -> Mapping[str, Tensor]:
        """Return ∂⟨∂R/∂x, q⟩/∂a for every quantity a, learned or not, by name; `q` has the shape of `x`."""

    @abstractmethod
    def cross_forward(self, x: Tensor, hyper: Hyper, rates: Hyper) -> Tensor:
        """Return the rate of change of ∂R/∂x when the learned quantities change at `rates`."""

    @abstractmethod
    def bounds(self, hyper: Hyper, like: Tensor) -> ImageBounds:
        """Return proven bounds for images of the size of `like`."""

    @abstractmethod
    def cross_norm(self, x: Tensor, hyper: Hyper) -> float:
        """Return an upper bound of the spectral norm of ∂²R/∂x∂raw at `x`."""


def learned(regularizer: AbstractImageRegularizer) -> tuple[Quantity, ...]:
    """Return the quantities that are not fixed.

    Raises:
        LearnError: all of them are.
    """
    found = tuple(quantity for quantity in regularizer.quantities() if not quantity.fixed)
    if not found:
        raise LearnError("there is nothing to learn: every quantity of the penalty is fixed")
    return found
