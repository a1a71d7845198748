"""First-order training on flat vectors.

No optimizer here decays weights. A penalty is part of the loss, where its strength can be learned; decay beside it, or
AdamW's, which is the gradient of no loss, would move the weights off the minimiser that hypergradients speak of.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Moments:
    """What an optimizer remembers: updates made, and running averages of gradients, each of the weights' shape."""

    count: int
    first: Tensor
    """Velocity of SGD, first moment of Adam."""
    second: Tensor | None
    """Second moment; None where there is none."""

    def copied(self) -> "Moments":
        """Return the same in memory of its own."""
        return Moments(self.count, self.first.clone(), None if self.second is None else self.second.clone())


class AbstractOptimizer(ABC):
    """A rule that turns gradients into steps.

    Elementwise, so that it takes one model's weights [p] as well as those of k models [k, p].
    """

    @property
    @abstractmethod
    def rate(self) -> float:
        """The learning rate before any schedule."""

    @abstractmethod
    def start(self, w: Tensor) -> Moments:
        """Return the memory before the first step."""

    @abstractmethod
    def update_(self, moments: Moments, w: Tensor, gradient: Tensor, *, rate: float) -> Moments:
        """Step, in place: overwrite the weights and the memory's tensors, use up the gradient.

        New memory for each step would cost more than the arithmetic. Who calls owns all three; `Training.advance`,
        which makes copies first, is the pure function.
        """


@final
@dataclass(frozen=True)
class SGD(AbstractOptimizer):
    """v ← μ v + g; w ← w − α v, or with Nesterov's look-ahead w ← w − α (g + μ v).

    Source: Sutskever et al. (2013), in the form of `torch.optim.SGD`.
    """

    learning_rate: float
    momentum: float = 0.0
    nesterov: bool = False

    @property
    def rate(self) -> float:
        """See `AbstractOptimizer.rate`."""
        return self.learning_rate

    def start(self, w: Tensor) -> Moments:
        """See `AbstractOptimizer.start`."""
        return Moments(0, torch.zeros_like(w), None)

    def update_(self, moments: Moments, w: Tensor, gradient: Tensor, *, rate: float) -> Moments:
        """See `AbstractOptimizer.update_`."""
        velocity = moments.first
        if self.momentum == 0.0:
            w.add_(gradient, alpha=-rate)
        elif self.nesterov:
            velocity.mul_(self.momentum).add_(gradient)
            w.add_(gradient.add_(velocity, alpha=self.momentum), alpha=-rate)
        else:
            w.add_(velocity.mul_(self.momentum).add_(gradient), alpha=-rate)
        return Moments(moments.count + 1, velocity, None)


@final
@dataclass(frozen=True)
class Adam(AbstractOptimizer):
    """Steps along the first moment, scaled by the root of the second.

    Source: Kingma & Ba (2015), algorithm 1.
    """

    learning_rate: float
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8

    @property
    def rate(self) -> float:
        """See `AbstractOptimizer.rate`."""
        return self.learning_rate

    def start(self, w: Tensor) -> Moments:
        """See `AbstractOptimizer.start`."""
        return Moments(0, torch.zeros_like(w), torch.zeros_like(w))

    def update_(self, moments: Moments, w: Tensor, gradient: Tensor, *, rate: float) -> Moments:
        """See `AbstractOptimizer.update_`."""
        first, second, count = moments.first, moments.second, moments.count + 1
        assert second is not None  # noqa: S101 (by `start`)
        first.lerp_(gradient, 1.0 - self.beta1)
        second.mul_(self.beta2).addcmul_(gradient, gradient, value=1.0 - self.beta2)
        size = torch.sqrt(second, out=gradient).div_((1.0 - self.beta2**count) ** 0.5).add_(self.epsilon)
        w.addcdiv_(first, size, value=-rate / (1.0 - self.beta1**count))
        return Moments(count, first, second)
