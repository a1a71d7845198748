"""Plain convolutional networks."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from workers.learn.errors import LearnError
from workers.learn.models.image_shape import ImageShape
from workers.learn.models.mlp import Activation, Normalization
from workers.learn.models.network import Network, Role, Slot

_ACTIVATIONS: dict[Activation, type[nn.Module]] = {
    Activation.RELU: nn.ReLU,
    Activation.TANH: nn.Tanh,
    Activation.GELU: nn.GELU,
    Activation.SILU: nn.SiLU,
}


@final
@dataclass(frozen=True)
class Block:
    """One convolution: how many channels come out, from how large a neighbourhood, pooled by how much."""

    channels: int
    kernel: int = 3
    """Side of the square; odd, so that the image keeps its size."""
    pool: int = 1
    """Side of the squares of which the largest value is kept; 1 for none."""


@final
class ToPlanes(nn.Module):
    """Turns rows [n, h w c] into planes [n, c, h, w]."""

    def __init__(self, shape: ImageShape) -> None:
        super().__init__()
        self._shape = shape

    def forward(self, x: Tensor) -> Tensor:
        """Return the planes."""
        return self._shape.planes(x)


def cnn(
    blocks: Sequence[Block],
    widths: Sequence[int],
    *,
    shape: ImageShape,
    activation: Activation,
    normalization: Normalization,
    outputs: int,
) -> Network:
    """Return a CNN: convolution, normalization, activation and pooling for each block, then dense layers.

    Starts like an MLP does (`mlp`), with the numbers that go into one output as fan-in. Parameters are called
    `0.linear.weight`, `0.norm.weight`, …, by the number of their layer, convolutions and dense layers alike.

    Args:
        blocks: the convolutions.
        widths: units of each hidden dense layer, without normalization; none for a linear map from the last block.
        shape: of the images that rows hold.
        activation: after each layer but the last.
        normalization: of the convolutions; none or batch.
        outputs: c.

    Raises:
        LearnError: settings that make no network.

    Source: the start of He et al. (2015), section 2.2.
    """
    if normalization is Normalization.LAYER:
        raise LearnError("convolutions are normalised by batch or not at all")
    sides = [shape.height, shape.width]
    gain = 1.0 if activation is Activation.TANH else 2.0
    layers: OrderedDict[str, nn.Module] = OrderedDict(image=ToPlanes(shape))
    slots: list[Slot] = []
    before = shape.channels
    for layer, block in enumerate(blocks):
        if block.channels < 1 or block.kernel < 1 or block.kernel % 2 == 0 or block.pool < 1:
            raise LearnError(f"block {layer}: channels and pool must be positive and kernel odd; found {block}")
        parts: OrderedDict[str, nn.Module] = OrderedDict()
        with torch.device("meta"):
            parts["linear"] = nn.Conv2d(before, block.channels, block.kernel, padding=block.kernel // 2)
        std = (gain / (before * block.kernel**2)) ** 0.5
        slots += _slots(layer, (block.channels, before, block.kernel, block.kernel), std)
        if normalization is Normalization.BATCH:
            with torch.device("meta"):
                norm = nn.BatchNorm2d(block.channels)
            norm.num_batches_tracked = None  # a counter that only averages without momentum would need
            parts["norm"] = norm
            slots += [
                Slot(f"{layer}.norm.weight", (block.channels,), layer, Role.NORMALIZATION, 1.0, 0.0),
                Slot(f"{layer}.norm.bias", (block.channels,), layer, Role.NORMALIZATION, 0.0, 0.0),
            ]
        parts["activation"] = _ACTIVATIONS[activation]()
        if block.pool > 1:
            parts["pool"] = nn.MaxPool2d(block.pool)
        layers[str(layer)] = nn.Sequential(parts)
        before = block.channels
        sides = [side // block.pool for side in sides]
        if min(sides) < 1:
            raise LearnError(f"block {layer} pools {shape.height} x {shape.width} images down to nothing")
    layers["flat"] = nn.Flatten()
    before *= sides[0] * sides[1]
    sizes = [*widths, outputs]
    if min(sizes) < 1:
        raise LearnError(f"every width of a network must be positive; found {sizes}")
    for layer, after in enumerate(sizes, len(blocks)):
        is_last = layer == len(blocks) + len(widths)
        with torch.device("meta"):
            dense: OrderedDict[str, nn.Module] = OrderedDict(linear=nn.Linear(before, after))
        if not is_last:
            dense["activation"] = _ACTIVATIONS[activation]()
        slots += _slots(layer, (after, before), ((1.0 if is_last else gain) / before) ** 0.5)
        layers[str(layer)] = nn.Sequential(dense)
        before = after
    return Network(nn.Sequential(layers), tuple(slots), shape.size, outputs)


def _slots(layer: int, shape: tuple[int, ...], std: float) -> list[Slot]:
    return [
        Slot(f"{layer}.linear.weight", shape, layer, Role.WEIGHT, 0.0, std),
        Slot(f"{layer}.linear.bias", shape[:1], layer, Role.BIAS, 0.0, 0.0),
    ]
