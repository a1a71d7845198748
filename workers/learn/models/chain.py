"""A network as the list of its steps, for whoever has to get in between them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, final

import torch
from torch import Tensor, nn
from torch.nn import functional

from workers.learn.errors import LearnError
from workers.learn.models.network import Network

LinearMap = Callable[["Stage", Tensor], Tensor]
"""What a linear map or a normalization makes of its input."""


class Between(Protocol):
    """What the output of a hidden layer is multiplied by before the next linear map."""

    def __call__(self, x: Tensor, layer: int) -> Tensor:
        """Return factors that broadcast against x, the output of hidden layer number `layer`."""


@final
@dataclass(frozen=True, eq=False)
class Stage:
    """One module of a chain that has no modules inside."""

    module: nn.Module
    layer: int
    """Number of linear maps before it, and of itself if it is one."""
    slots: tuple[int, ...]
    """Places of its weight and its bias among the network's parameters: none, one or two."""
    buffers: slice | None
    """Where its running means and then variances are in the flat statistics, if it has any."""

    @property
    def is_map(self) -> bool:
        """Whether it is a linear map."""
        return isinstance(self.module, nn.Linear | nn.Conv2d)

    @property
    def is_normalization(self) -> bool:
        """Whether it normalises."""
        return isinstance(self.module, nn.BatchNorm1d | nn.BatchNorm2d | nn.LayerNorm)

    def apply(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return the linear map of x with given weights."""
        match self.module:
            case nn.Linear():
                return functional.linear(x, weight, bias)
            case nn.Conv2d() as conv:
                return functional.conv2d(x, weight, bias, conv.stride, conv.padding, conv.dilation, conv.groups)
        raise LearnError(f"{type(self.module).__name__} is no linear map")

    def over_outputs(self, values: Tensor) -> Tensor:
        """Return values [m, outputs] in a shape that broadcasts against this map's outputs."""
        return values if isinstance(self.module, nn.Linear) else values[:, :, None, None]


@final
@dataclass(frozen=True, eq=False)
class Chain:
    """A network whose module is made of `nn.Sequential`s down to single steps.

    Steps are linear maps (`nn.Linear`, `nn.Conv2d`), normalizations (batch, layer) and anything without parameters
    that treats examples separately: activations, pooling, changes of shape.
    """

    network: Network
    stages: tuple[Stage, ...]

    @staticmethod
    def of(network: Network) -> "Chain":
        """Return a network as a chain.

        Raises:
            LearnError: it is none.
        """
        places = {slot.name: place for place, slot in enumerate(network.slots)}
        starts: dict[str, int] = {}
        start = 0
        for name, shape in network.buffer_shapes.items():
            starts[name] = start
            start += shape.numel()
        stages: list[Stage] = []
        layer = -1
        for name, module in _leaves("", network.module):
            if isinstance(module, nn.Linear | nn.Conv2d):
                layer += 1
                if isinstance(module, nn.Conv2d) and module.padding_mode != "zeros":
                    raise LearnError(f"{name}: padding by {module.padding_mode!r} is not supported; take 'zeros'")
            elif not isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.LayerNorm) and any(module.parameters()):
                raise LearnError(
                    f"{name}: a {type(module).__name__} has parameters; a chain is made of linear maps, convolutions, "
                    "batch and layer normalization"
                )
            slots = tuple(places[f"{name}.{part}"] for part, _ in module.named_parameters(recurse=False))
            buffers = None
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                at = starts[f"{name}.running_mean"]
                buffers = slice(at, at + 2 * module.num_features)
            stages.append(Stage(module, layer, slots, buffers))
        return Chain(network, tuple(stages))

    @cached_property
    def maps(self) -> tuple[Stage, ...]:
        """The linear maps, first to last."""
        return tuple(stage for stage in self.stages if stage.is_map)

    def forward(self, x: Tensor, linear: LinearMap, normalize: LinearMap, between: Between | None) -> Tensor:
        """Return the outputs, [n, c], of rows x [n, d].

        Args:
            x: the rows.
            linear: what each linear map does.
            normalize: what each normalization does.
            between: noise on hidden layers, if any.
        """
        for stage in self.stages:
            if stage.is_map:
                if between is not None and stage.layer > 0:
                    x = x * between(x, stage.layer - 1)
                x = linear(stage, x)
            else:
                x = normalize(stage, x) if stage.is_normalization else stage.module(x)
        return x


def plain(parameters: Sequence[Tensor]) -> LinearMap:
    """Return the linear maps with these weights, a tensor for each slot."""

    def linear(stage: Stage, x: Tensor) -> Tensor:
        weight, bias = weights_of(stage, parameters)
        return stage.apply(x, weight, bias)

    return linear


def by_batch(parameters: Sequence[Tensor], buffers: Tensor) -> LinearMap:
    """Return normalizations by the rows' own statistics, which they average into `buffers` [b], in place."""

    def normalize(stage: Stage, x: Tensor) -> Tensor:
        return _normalized(stage, x, parameters, buffers, is_training=True)

    return normalize


def by_statistics(parameters: Sequence[Tensor], buffers: Tensor) -> LinearMap:
    """Return normalizations by given statistics [b], which treat examples separately."""

    def normalize(stage: Stage, x: Tensor) -> Tensor:
        return _normalized(stage, x, parameters, buffers, is_training=False)

    return normalize


def scaled(stage: Stage, tangent: Tensor, parameters: Sequence[Tensor], buffers: Tensor) -> Tensor:
    """Return the derivative of a batch normalization by given statistics, which is affine, along a tangent."""
    norm = stage.module
    assert isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d)  # noqa: S101 (by whoever calls)
    assert stage.buffers is not None  # noqa: S101 (by `of`)
    mean, variance = buffers[stage.buffers].chunk(2)
    weight = parameters[stage.slots[0]] if stage.slots else None
    return functional.batch_norm(tangent, torch.zeros_like(mean), variance, weight, None, training=False, eps=norm.eps)


def weights_of(stage: Stage, parameters: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
    """Return the weight of a linear map and its bias, if it has one."""
    return parameters[stage.slots[0]], parameters[stage.slots[1]] if len(stage.slots) > 1 else None


def _normalized(stage: Stage, x: Tensor, parameters: Sequence[Tensor], buffers: Tensor, *, is_training: bool) -> Tensor:
    weight, bias = (parameters[slot] for slot in stage.slots) if stage.slots else (None, None)
    if isinstance(stage.module, nn.LayerNorm):
        return functional.layer_norm(x, stage.module.normalized_shape, weight, bias, stage.module.eps)
    norm = stage.module
    assert isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d)  # noqa: S101 (by `forward`)
    assert stage.buffers is not None  # noqa: S101 (by `of`)
    mean, variance = buffers[stage.buffers].chunk(2)
    momentum = 0.0 if norm.momentum is None else norm.momentum
    return functional.batch_norm(x, mean, variance, weight, bias, training=is_training, momentum=momentum, eps=norm.eps)


def _leaves(name: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    if isinstance(module, nn.Sequential):
        for part, child in module.named_children():
            yield from _leaves(f"{name}.{part}" if name else part, child)
    elif any(module.children()):
        raise LearnError(f"{name or 'the network'}: a {type(module).__name__} is no chain of steps")
    else:
        yield name, module
