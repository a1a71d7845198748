"""Gaussian numbers for all weights at every step, at a fraction of the price of drawing them."""

from functools import lru_cache
from typing import Final

import numpy as np
import torch
from torch import Tensor

from workers.learn.noises.draws import Draws, NoiseStream

_STEPS: Final = 32
"""Steps that share a pool."""

_POOL: Final = 4
"""Length of a pool, in vectors."""

_SPARE: Final = 4096
"""Places at least where a vector may begin, where it is short."""


def weight_noise(size: int, *, seed: int, step: int, like: Tensor) -> Tensor:
    """Return the standard normal numbers of a training step, [size], a function of (seed, step); not to be written to.

    Drawing a normal number on a CPU takes as long as what a small network does with the weight. So 32 steps share a
    pool of four times as many numbers as there are weights, and each takes a stretch of it from a random place: any
    weight's noise is standard normal and independent of that of the other weights in its step, and what two steps have
    in common belongs to different weights.

    Source: the shared noise table of Salimans et al. (2017), Evolution strategies, section 2.1, renewed as it wears.
    """
    pool, starts = _pool(size, seed, step // _STEPS, like.dtype, like.device)
    start = starts[step % _STEPS]
    return pool[start : start + size]


def selection_noise(size: int, *, seed: int, sample: int, like: Tensor) -> Tensor:
    """Return the numbers, [size], of one of the samples that candidates are compared by: the same for all of them."""
    return Draws(NoiseStream.SELECTION, seed=seed, step=sample, device=like.device).normal((size,), like)


@lru_cache(maxsize=2)
def _pool(size: int, seed: int, block: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, tuple[int, ...]]:
    """Return the numbers of a block of steps, and where in it each step begins."""
    length = max(_POOL * size, size + _SPARE)
    draws = Draws(NoiseStream.WEIGHTS, seed=seed, step=block, device=device)
    places = np.random.default_rng([seed, int(NoiseStream.WEIGHTS), block, 1])
    starts = places.integers(0, length - size + 1, size=_STEPS).tolist()
    return draws.normal((length,), torch.empty(0, dtype=dtype, device=device)), tuple(starts)
