"""Sums over groups of weights, and values of groups spread over weights, for several models at once."""

from dataclasses import dataclass
from functools import cached_property
from typing import Final, final

import torch
from torch import Tensor

_MOST_RUNS: Final = 256
_CHUNK: Final = 2**16


@final
@dataclass(frozen=True, eq=False)
class Partition:
    """Which weights form a group. Sums are taken in float64, whatever the weights are.

    Groups of layers and tensors are stretches of the flat vector, which are taken as slices: ten times as fast as an
    index for each weight.
    """

    of: Tensor
    """g, [p]; `size` for weights of no group."""
    size: int

    @cached_property
    def counts(self) -> Tensor:
        """Weights of each group, [g], float64."""
        return torch.bincount(self.of, minlength=self.size + 1)[: self.size].double()

    @cached_property
    def members(self) -> int:
        """Weights that are in a group."""
        return int((self.of < self.size).sum())

    @cached_property
    def runs(self) -> tuple[tuple[int, int, int], ...] | None:
        """Start, stop and group of each stretch of one group, or of none; None where there are too many."""
        changes = torch.nonzero(self.of[1:] != self.of[:-1]).squeeze(1) + 1
        if changes.numel() >= _MOST_RUNS:
            return None
        ends = [0, *changes.tolist(), self.of.numel()]
        groups = self.of[torch.tensor(ends[:-1], device=self.of.device)].tolist()
        return tuple(zip(ends[:-1], ends[1:], groups, strict=True))

    def squares(self, values: Tensor) -> Tensor:
        """Return Σ v² of each group, [k, g], for values [k, p]."""
        return self._sums(values, is_square=True)

    def total(self, values: Tensor) -> Tensor:
        """Return Σ v of each group, [k, g], for values [k, p]."""
        return self._sums(values, is_square=False)

    def spread(self, values: Tensor, *, outside: float) -> Tensor:
        """Return the value of each weight's group, [k, p], of values [k, g]; a number for weights of no group."""
        rest = torch.full_like(values[:, :1], outside)
        return torch.cat([values, rest], dim=1)[:, self.of]

    def add_scaled_(self, target: Tensor, values: Tensor, factors: Tensor) -> None:
        """Add values [k, p] times the factor of each weight's group, [k, g], to a target [k, p], in place."""
        factors = factors.to(target.dtype)
        if self.runs is None:
            target.addcmul_(values, self.spread(factors, outside=0.0))
            return
        for start, stop, group in self.runs:
            if group < self.size:
                target[:, start:stop].addcmul_(values[:, start:stop], factors[:, group : group + 1])

    def silence_(self, values: Tensor) -> Tensor:
        """Return values [p] with zeros at weights of no group, in place."""
        if self.runs is None:
            return values.mul_(self.of < self.size)
        for start, stop, group in self.runs:
            if group == self.size:
                values[start:stop] = 0.0
        return values

    def _sums(self, values: Tensor, *, is_square: bool) -> Tensor:
        sums = torch.zeros(values.shape[0], self.size + 1, dtype=torch.float64, device=values.device)
        if self.runs is None:
            wide = values.double()
            return sums.index_add_(1, self.of, wide.square() if is_square else wide)[:, : self.size]
        for start, stop, group in self.runs:
            if group == self.size:
                continue
            # In pieces that stay in the cache: a float64 copy of millions of weights costs more than its sum.
            for piece in torch.split(values[:, start:stop], _CHUNK, dim=1):
                wide = piece.double()
                sums[:, group] += (wide * wide if is_square else wide).sum(1)
        return sums[:, : self.size]
