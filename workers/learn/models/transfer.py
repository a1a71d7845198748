"""Networks that start from weights that were trained elsewhere."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from workers.learn.errors import LearnError
from workers.learn.models.groups import Groups, groups
from workers.learn.models.network import Network
from workers.learn.problems.layout import Per


@dataclass(frozen=True, eq=False)
class Transferred:
    """A network that starts from given weights, and what of it is new."""

    network: Network
    is_given: tuple[bool, ...]
    """Of each slot: whether it starts from given weights, as the backbone does; the head starts afresh."""

    def backbone(self, per: Per, *, biases: bool) -> Groups:
        """Return the groups of a penalty on what was given.

        Raises:
            LearnError: see `groups`.
        """
        return _only(groups(self.network, per, biases=biases), self.network, self.is_given)

    def head(self, per: Per, *, biases: bool) -> Groups:
        """Return the groups of a penalty on what is new.

        Raises:
            LearnError: see `groups`.
        """
        return _only(groups(self.network, per, biases=biases), self.network, tuple(not one for one in self.is_given))


def split_from_head(network: Network, *, head: int) -> Transferred:
    """Return a network with what of it is new: its last layers.

    Args:
        network: all of it.
        head: how many of the last layers start afresh, at least 1.

    Raises:
        LearnError: there are not that many layers, or no backbone would be left.
    """
    layers = max(slot.layer for slot in network.slots) + 1
    if not 1 <= head < layers:
        raise LearnError(f"1 to {layers - 1} of the network's {layers} layers can start afresh; asked for {head}")
    return Transferred(network, tuple(slot.layer < layers - head for slot in network.slots))


def transferred(network: Network, given: Mapping[str, Tensor], *, head: int, drawn: bool, like: Tensor) -> Transferred:
    """Return a network whose backbone starts from given weights, with L2 around them or around zero.

    With `drawn`, `w` counts from the given weights: an L2 penalty on it is L2-SP, ½ λ ‖w − w₀‖², for every method that
    knows L2. The head counts from zero in any case. Normalization statistics among what is given are passed over: they
    are taken anew from the training rows.

    Args:
        network: as it would be from scratch.
        given: parameters by the names that the network gives them; those of the head are not looked at.
        head: how many of the last layers start afresh, at least 1.
        drawn: whether penalties draw the backbone to the given weights instead of to zero.
        like: has the dtype and device of the run.

    Raises:
        LearnError: a parameter of the backbone is missing, is not finite or has another shape; or there are others.

    Source: L2-SP: Li, Grandvalet & Davoine (2018), Explicit inductive bias for transfer learning, equation (2).
    """
    is_given = split_from_head(network, head=head).is_given
    names = {slot.name for slot in network.slots}
    unknown = sorted(set(given) - names - set(network.buffer_shapes) - _counters(given))
    if unknown:
        raise LearnError(f"the network has no parameters {unknown}; it has {sorted(names)}")
    parts, slots = [], []
    for slot, from_file in zip(network.slots, is_given, strict=True):
        if not from_file:
            parts.append(torch.zeros(torch.Size(slot.shape).numel(), dtype=torch.float64))
            slots.append(slot)
            continue
        if slot.name not in given:
            raise LearnError(f"the given weights lack {slot.name}, of shape {slot.shape}")
        tensor = given[slot.name].detach().cpu().double()
        if tuple(tensor.shape) != slot.shape:
            raise LearnError(f"{slot.name} has shape {tuple(tensor.shape)} in the given weights; expected {slot.shape}")
        if not bool(torch.isfinite(tensor).all()):
            raise LearnError(f"{slot.name} has values in the given weights that are not finite")
        parts.append(tensor.reshape(-1))
        slots.append(replace(slot, mean=0.0, std=0.0))
    start = torch.cat(parts).to(dtype=like.dtype, device=like.device)
    return Transferred(replace(network, slots=tuple(slots), start=start, origin=start if drawn else None), is_given)


def _counters(given: Mapping[str, Tensor]) -> set[str]:
    """Return the names of the counters that torch's own normalizations save."""
    return {name for name in given if name.endswith("num_batches_tracked")}


def _only(found: Groups, network: Network, wanted: tuple[bool, ...]) -> Groups:
    """Return the groups with weights in wanted slots, numbered anew; all other weights are in none."""
    mask = torch.cat([torch.full((n,), one) for n, one in zip(network.sizes, wanted, strict=True)])
    size = torch.Size(found.shape).numel()
    kept = torch.unique(found.of[mask & (found.of < size)])
    if kept.numel() == 0:
        raise LearnError("no weights of this part have a penalty")
    numbers = torch.full((size + 1,), kept.numel())
    numbers[kept] = torch.arange(kept.numel())
    names = tuple(found.names[group] for group in kept.tolist()) if found.names else ()
    of = torch.where(mask, numbers[found.of], kept.numel())
    return Groups(of, () if found.shape == () else (kept.numel(),), names)
