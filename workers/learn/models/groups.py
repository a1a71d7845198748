"""Which parameters of a network share a strength."""

from dataclasses import dataclass

import torch
from torch import Tensor

from workers.learn.errors import LearnError
from workers.learn.models.network import Network, Role
from workers.learn.problems.layout import Per


@dataclass(frozen=True, eq=False)
class Groups:
    """A partition of a network's parameters, with those that no strength is for."""

    of: Tensor
    """[p]: the group of each parameter, and the number of groups for those without."""
    shape: tuple[int, ...]
    """Of the strengths: () for one for the model, (size,) for several."""
    names: tuple[str, ...]
    """What each group is: a layer's number, a tensor's name; empty for one strength and for one each parameter."""


def groups(network: Network, per: Per, *, biases: bool) -> Groups:
    """Return the groups of an L2 penalty.

    Biases and the parameters of normalizations are left out unless `biases`, those of kernels always. A layer is a
    linear map with its bias and its normalization.

    Raises:
        LearnError: networks have no strengths per feature or class.
    """
    taken = [slot.role is Role.WEIGHT or (biases and slot.role is not Role.KERNEL) for slot in network.slots]
    of: list[Tensor] = []
    names: tuple[str, ...] = ()
    match per:
        case Per.MODEL:
            numbers, size = [0] * len(taken), 1
        case Per.LAYER:
            numbers = [slot.layer for slot in network.slots]
            size = max(numbers) + 1
            names = tuple(str(layer) for layer in range(size))
        case Per.TENSOR:
            numbers = [sum(taken[:place]) for place in range(len(taken))]
            size = sum(taken)
            names = tuple(slot.name for slot, is_taken in zip(network.slots, taken, strict=True) if is_taken)
        case Per.PARAMETER:
            size = sum(n for n, is_taken in zip(network.sizes, taken, strict=True) if is_taken)
            start = 0
            for n, is_taken in zip(network.sizes, taken, strict=True):
                of.append(torch.arange(start, start + n) if is_taken else torch.full((n,), size))
                start += n * is_taken
            return Groups(torch.cat(of), (size,), ())
        case Per.FEATURE | Per.CLASS:
            raise LearnError(f"networks have no strengths per {per}: take model, layer, tensor or parameter")
    for number, n, is_taken in zip(numbers, network.sizes, taken, strict=True):
        of.append(torch.full((n,), number if is_taken else size))
    return Groups(torch.cat(of), () if per is Per.MODEL else (size,), names)
