"""Which rows a step sees: a function of (seed, step), so that nothing about it need be remembered."""

from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Batch:
    """Rows x [n, d] and their targets y: [n] class numbers or numbers, or [n, c] numbers."""

    x: Tensor
    y: Tensor

    @property
    def rows(self) -> int:
        """How many there are, n."""
        return self.x.shape[0]

    def take(self, indices: Tensor) -> "Batch":
        """Return some of the rows, or k batches of them for indices [k, n]."""
        return Batch(self.x[indices], self.y[indices])


class Stream(IntEnum):
    """Draws that must not resemble each other although they share seed and step."""

    EPOCH = 1
    INNER = 2
    OUTER = 3
    STATISTICS = 4


def training_indices(rows: int, size: int, *, seed: int, step: int, device: torch.device) -> Tensor | None:
    """Return the rows of training step `step`, [size]; None for all of them.

    Each epoch goes through a permutation of its own; what is left at its end, fewer rows than a batch, is not seen
    in that epoch.
    """
    if size >= rows:
        return None
    per_epoch = rows // size
    place = step % per_epoch
    return _permutation(rows, seed, step // per_epoch, device)[place * size : (place + 1) * size]


def random_indices(
    rows: int, size: int, *, stream: Stream, seed: int, step: int, device: torch.device
) -> Tensor | None:
    """Return `size` different rows out of `rows`, drawn for one step; None for all of them."""
    if size >= rows:
        return None
    draws = np.random.default_rng([seed, int(stream), step])
    return torch.as_tensor(draws.choice(rows, size, replace=False, shuffle=False), device=device)


@lru_cache(maxsize=8)
def _permutation(rows: int, seed: int, epoch: int, device: torch.device) -> Tensor:
    # Drawn on the CPU, and so the same for every device; kept, as an epoch asks for it step after step.
    draws = np.random.default_rng([seed, int(Stream.EPOCH), epoch])
    return torch.as_tensor(draws.permutation(rows), device=device)
