"""The way that the hyperparameters of a self-tuning network went: what it has learned, beside its weights."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final, final

import torch
from torch import Tensor

_MOST: Final = 200
"""Rows that are kept, an even number: of twice as many steps every second one is."""


@final
@dataclass(frozen=True, eq=False)
class Schedule:
    """Hyperparameters at evenly spaced steps and at the last one, as many as a state can carry along.

    It is in the state because nothing else outlives an interruption, and which steps are kept depends on their
    number alone: so a run that was interrupted ends with the same schedule as one that was not.
    """

    steps: int
    """Points so far."""
    every: int
    """From one kept step to the next: a power of two."""
    values: Tensor
    """Natural values at the steps 0, every, 2 every, …, [m, h], float64."""
    last: Tensor
    """The same at the last step, [h]."""

    @staticmethod
    def empty(size: int) -> "Schedule":
        """Return the schedule of h = `size` hyperparameters before the first step."""
        values = torch.zeros(0, size, dtype=torch.float64)
        return Schedule(0, 1, values, values.new_zeros(size))

    def joined(self, hyperparameters: Mapping[str, Tensor]) -> "Schedule":
        """Return the schedule with the natural values of one more point, by name in the order of the space."""
        # A run that moves from the CPU to a GPU takes all tensors of its state there, these with them.
        last = torch.cat([value.detach().reshape(-1) for value in hyperparameters.values()]).to(self.values)
        longer = replace(self, steps=self.steps + 1, last=last)
        if self.steps % self.every:
            return longer
        values, every = self.values, self.every
        if values.shape[0] == _MOST:  # this step is the `_MOST`-th multiple of `every`, hence one of twice that
            values, every = values[::2], 2 * every
        return replace(longer, values=torch.cat([values, last[None]]), every=every)

    def points(self) -> list[tuple[int, list[float]]]:
        """Return the kept steps and their values [h], at most 201; the last step always is the last of them."""
        kept = list(zip(range(0, self.steps, self.every), self.values.tolist(), strict=True))
        if self.steps and (self.steps - 1) % self.every:
            kept.append((self.steps - 1, self.last.tolist()))
        return kept
