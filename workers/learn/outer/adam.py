"""Adam within a box."""

import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from workers.learn.outer.box import blocked


@dataclass(frozen=True)
class AdamState:
    """Number of updates and the two moments, [h]."""

    count: int
    first: Tensor
    second: Tensor

    @staticmethod
    def zeros(raw: Tensor) -> "AdamState":
        """Return the state before the first update."""
        return AdamState(0, torch.zeros_like(raw), torch.zeros_like(raw))


@final
@dataclass(frozen=True)
class Adam:
    """Steps of about `rate` in raw hyperparameters, whatever the scale of the gradient.

    Source: Kingma & Ba (2015), algorithm 1. Beyond it: coordinates that reach a bound lose their momentum, lest
    it keep them there after the gradient has turned; and steps may shorten (`settling`), since steps of one length go
    round a minimum for ever, the more so where weights follow the strengths with a delay.
    """

    rate: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-12
    settling: float = math.inf
    """Updates after which `rate` has fallen by √2, going on like 1/√t (Robbins & Monro 1951); infinite: never."""

    def update(
        self, state: AdamState, raw: Tensor, gradient: Tensor, low: Tensor, high: Tensor
    ) -> tuple[AdamState, Tensor]:
        """Return the next state and the next raw hyperparameters, [h], inside the box."""
        count = state.count + 1
        first = self.beta1 * state.first + (1.0 - self.beta1) * gradient
        second = self.beta2 * state.second + (1.0 - self.beta2) * gradient.square()
        size = (second / (1.0 - self.beta2**count)).sqrt() + self.epsilon
        rate = self.rate / math.sqrt(1.0 + state.count / self.settling)
        moved = raw - rate * (first / (1.0 - self.beta1**count)) / size
        inside = torch.minimum(torch.maximum(moved, low), high)
        first = torch.where(blocked(inside, gradient, low, high) | (moved != inside), 0.0, first)
        return AdamState(count, first, second), inside
