"""Regularizers that act by chance: what they have in common."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Self, final

import torch
from torch import Tensor

from workers.learn.errors import LearnError
from workers.learn.hyperparameters import Hyper, Hyperparameter, HyperparameterSpace
from workers.learn.noises.draws import Draws
from workers.learn.transforms import AbstractTransform

RowHyper = Hyper
"""Natural values by name with a first axis for the examples: [m, *shape], where m is n, or 1 for all alike."""


@final
@dataclass(frozen=True, eq=False)
class Strength:
    """One strength of a noise, learned or fixed. `low` and `high` bound what is learned, inside its domain."""

    name: str
    initial: float | Tensor
    """Its natural value at the start, or for ever if fixed."""
    transform: AbstractTransform
    shape: tuple[int, ...] = ()
    low: float | None = None
    high: float | None = None
    fixed: bool = False

    def __post_init__(self) -> None:
        Hyperparameter(self.name, self.initial, self.shape, self.transform, self.low, self.high)

    def hyperparameters(self) -> tuple[Hyperparameter, ...]:
        """Return what is to be learned; nothing if the strength is fixed."""
        if self.fixed:
            return ()
        return (Hyperparameter(self.name, self.initial, self.shape, self.transform, self.low, self.high),)

    def rows(self, hyper: RowHyper, like: Tensor) -> Tensor:
        """Return the values, [m, *shape], without a graph and of the dtype and device of `like`."""
        if not self.fixed:
            return hyper[self.name].detach()
        return torch.as_tensor(self.initial).to(dtype=like.dtype, device=like.device).expand(self.shape)[None]

    def fixed_at(self, hyper: Hyper) -> "Strength":
        """Return the strength fixed at what `hyper` says, or where it is fixed already."""
        return self if self.fixed else replace(self, initial=hyper[self.name].detach().double().cpu(), fixed=True)


class AbstractNoise(ABC):
    """A regularizer that changes training rows at random, each example on its own, and nothing else anywhere.

    Strengths come as a value for each example. A noise never hands on derivatives in them: drawing a mask has none.
    """

    @property
    @abstractmethod
    def strengths(self) -> tuple[Strength, ...]:
        """What says how strong it is."""

    @abstractmethod
    def fixed_at(self, hyper: Hyper) -> Self:
        """Return the noise with strengths fixed at natural values by name."""

    @final
    def hyperparameters(self) -> tuple[Hyperparameter, ...]:
        """Return what is to be learned."""
        return tuple(block for strength in self.strengths for block in strength.hyperparameters())


class AbstractInputNoise(AbstractNoise):
    """A noise on the features."""

    @abstractmethod
    def __call__(self, x: Tensor, hyper: RowHyper, draws: Draws) -> Tensor:
        """Return rows, [n, d], of the rows x [n, d]; x itself is left as it is."""

    @abstractmethod
    def check(self, features: int) -> None:
        """Raise LearnError if it cannot act on rows of so many features."""


def row_values(space: HyperparameterSpace, raw: Tensor) -> dict[str, Tensor]:
    """Return natural values by name, [m, *shape], of a raw vector for each example, [m, h]; differentiable."""
    if raw.ndim != 2 or raw.shape[1] != space.size:
        raise LearnError(f"raw hyperparameters of examples have shape {tuple(raw.shape)}; expected (m, {space.size})")
    parts = torch.split(raw, [block.size for block in space.blocks], dim=1)
    return {
        block.name: block.transform(part).reshape(raw.shape[0], *block.shape)
        for block, part in zip(space.blocks, parts, strict=True)
    }


def column(values: Tensor, like: Tensor) -> Tensor:
    """Return values [m] as [m, 1, …] that broadcast against `like` [n, …]."""
    return values.reshape(-1, *(1,) * (like.ndim - 1))


__all__ = ["AbstractInputNoise", "AbstractNoise", "RowHyper", "Strength", "column", "row_values"]
