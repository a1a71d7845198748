"""Random numbers that are a function of (seed, stream, step)."""

from enum import IntEnum
from typing import final

import numpy as np
import torch
from torch import Tensor


class NoiseStream(IntEnum):
    """Draws that must not resemble each other although they share seed and step."""

    TRAINING = 11
    RESPONSE = 12
    PERTURBATION = 13
    VALIDATION = 14
    WEIGHTS = 15
    SELECTION = 16


@final
class Draws:
    """The random numbers of one step, in the order in which they are asked for.

    They are made on the device that they are for: on the CPU the same in every run, and so on each kind of GPU.
    """

    def __init__(self, stream: NoiseStream, *, seed: int, step: int, device: torch.device) -> None:
        mixed = np.random.SeedSequence([seed, int(stream), step]).generate_state(2, np.uint32)
        self._generator = torch.Generator(device).manual_seed(int(mixed[0]) << 31 ^ int(mixed[1]))

    def uniform(self, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """Return numbers from [0, 1) of the dtype of `like`."""
        return torch.rand(shape, generator=self._generator, dtype=like.dtype, device=like.device)

    def signed(self, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """Return numbers from [−1, 1) of the dtype of `like`."""
        return self.uniform(shape, like).mul_(2.0).sub_(1.0)

    def normal(self, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """Return standard normal numbers of the dtype of `like`."""
        return torch.randn(shape, generator=self._generator, dtype=like.dtype, device=like.device)
