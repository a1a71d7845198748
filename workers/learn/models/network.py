"""Any `torch.nn.Module` as a pure function of flat vectors."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import final

import torch
from torch import Tensor, nn
from torch.func import functional_call

from workers.learn.errors import LearnError


class Role(StrEnum):
    """What a parameter is for; it decides what a penalty leaves out."""

    WEIGHT = "weight"
    BIAS = "bias"
    NORMALIZATION = "normalization"
    KERNEL = "kernel"
    """Of a feature map; no penalty is ever for it."""


@dataclass(frozen=True)
class Slot:
    """One parameter of a module: where it belongs and how it starts."""

    name: str
    shape: tuple[int, ...]
    layer: int
    role: Role
    mean: float
    std: float
    """Of the independent Gaussian numbers that it starts with; 0 for a constant."""


@final
@dataclass(frozen=True, eq=False)
class Network:
    """A module without values of its own: parameters are handed in as `w` [p], normalization statistics as [b].

    The forward pass is a pure function. What a module would write into its buffers goes into copies that are handed
    back, so that nothing that looks at a network (a validation pass, the products of a linear solve) can change it.
    """

    module: nn.Module
    """On the meta device and in training mode; never called with values of its own, never changed."""
    slots: tuple[Slot, ...]
    inputs: int
    outputs: int
    origin: Tensor | None = None
    """[p], of the run's dtype and device: what `w` counts from, so that penalties on it draw there; None for zero."""
    start: Tensor | None = None
    """[p]: added to what the slots say of the start; None for nothing."""

    def __post_init__(self) -> None:
        found = [(name, tuple(parameter.shape)) for name, parameter in self.module.named_parameters()]
        if found != [(slot.name, slot.shape) for slot in self.slots]:
            raise LearnError(f"the slots do not describe the module, whose parameters are {found}")
        if not self.module.training:
            raise LearnError("a network's module is described in training mode")

    @cached_property
    def sizes(self) -> list[int]:
        """Numbers of each parameter."""
        return [torch.Size(slot.shape).numel() for slot in self.slots]

    @property
    def size(self) -> int:
        """p, the length of `w`."""
        return sum(self.sizes)

    @cached_property
    def buffer_shapes(self) -> dict[str, torch.Size]:
        """Shapes of the buffers, by name."""
        return {name: buffer.shape for name, buffer in self.module.named_buffers()}

    @property
    def buffer_size(self) -> int:
        """b, the number of normalization statistics; 0 for a network without."""
        return sum(shape.numel() for shape in self.buffer_shapes.values())

    def initial(self, seed: int, *, like: Tensor) -> Tensor:
        """Return starting parameters, [p], of the dtype and device of `like`: the same on every device."""
        generator = torch.Generator().manual_seed(seed)
        parts = [
            slot.mean + slot.std * torch.randn(size, generator=generator, dtype=torch.float64)
            if slot.std > 0
            else torch.full((size,), slot.mean, dtype=torch.float64)
            for slot, size in zip(self.slots, self.sizes, strict=True)
        ]
        w = torch.cat(parts).to(dtype=like.dtype, device=like.device)
        w = w if self.start is None else w + self.start.to(w)
        return w if self.origin is None else w - self.origin.to(w)

    def initial_buffers(self, *, like: Tensor) -> Tensor:
        """Return statistics before anything was seen, [b]: mean 0 and variance 1."""
        parts = [
            torch.full((shape.numel(),), float(name.endswith("running_var")))
            for name, shape in self.buffer_shapes.items()
        ]
        return (torch.cat(parts) if parts else torch.zeros(0)).to(dtype=like.dtype, device=like.device)

    def split(self, w: Tensor) -> list[Tensor]:
        """Return the parameters, each in its shape: views of `w` [p], or of origin + w."""
        return self.split_direction(w if self.origin is None else w + self.origin.to(w))

    def split_direction(self, v: Tensor) -> list[Tensor]:
        """Return a change of the parameters, each in its shape: views of `v` [p], which has no origin."""
        return [part.view(slot.shape) for slot, part in zip(self.slots, torch.split(v, self.sizes), strict=True)]

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """Return the flat vector, [p], of a tensor for each parameter."""
        return torch.cat([part.reshape(-1) for part in parts])

    def named(self, w: Tensor, buffers: Tensor) -> dict[str, Tensor]:
        """Return parameters and statistics by the names that the module gives them."""
        return {**self._parameters(self.split(w)), **self._buffers(buffers)}

    def evaluated(self, parameters: Sequence[Tensor], buffers: Tensor, x: Tensor) -> Tensor:
        """Return the outputs, [n, c], of rows x [n, d] with normalization by the given statistics."""
        given = {**self._parameters(parameters), **self._buffers(buffers)}
        outputs: Tensor = functional_call(self._evaluating, given, (x,), strict=True)
        return outputs

    def trained(self, parameters: Sequence[Tensor], buffers: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the outputs, [n, c], with normalization by the rows' own statistics; and the updated ones, [b]."""
        if not self.buffer_shapes:
            outputs: Tensor = functional_call(self.module, self._parameters(parameters), (x,), strict=True)
            return outputs, buffers
        # Memory of their own, one by one: under vmap an update of views of one vector would be lost.
        fresh = {name: part.clone() for name, part in self._buffers(buffers).items()}
        outputs = functional_call(self.module, {**self._parameters(parameters), **fresh}, (x,), strict=True)
        return outputs, torch.cat([part.reshape(-1) for part in fresh.values()])

    def statistics(self, w: Tensor, x: Tensor) -> Tensor:
        """Return the statistics of the rows x [n, d] themselves, [b]: what averaging over training steps estimates.

        Source: Wu & Johnson (2021), "Rethinking 'batch' in BatchNorm", section 3.
        """
        buffers = self.initial_buffers(like=w)
        if buffers.numel() == 0:
            return buffers
        with torch.no_grad():
            functional_call(self._measuring, {**self._parameters(self.split(w)), **self._buffers(buffers)}, (x,))
        return buffers

    @cached_property
    def _evaluating(self) -> nn.Module:
        return copy.deepcopy(self.module).eval()

    @cached_property
    def _measuring(self) -> nn.Module:
        module = copy.deepcopy(self.module)
        for part in module.modules():
            if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
                part.momentum = 1.0
        return module

    def _parameters(self, parameters: Sequence[Tensor]) -> dict[str, Tensor]:
        return {slot.name: part for slot, part in zip(self.slots, parameters, strict=True)}

    def _buffers(self, buffers: Tensor) -> dict[str, Tensor]:
        shapes = self.buffer_shapes
        parts = torch.split(buffers, [shape.numel() for shape in shapes.values()]) if shapes else ()
        return {name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}
