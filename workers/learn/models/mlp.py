"""Multi-layer perceptrons."""

from collections import OrderedDict
from collections.abc import Sequence
from enum import StrEnum
from itertools import pairwise

import torch
from torch import nn

from workers.learn.errors import LearnError
from workers.learn.models.network import Network, Role, Slot


class Activation(StrEnum):
    """The non-linearity between layers."""

    RELU = "relu"
    TANH = "tanh"
    GELU = "gelu"
    SILU = "silu"


class Normalization(StrEnum):
    """What stands between a linear map and its activation."""

    NONE = "none"
    BATCH = "batch"
    LAYER = "layer"


_ACTIVATIONS: dict[Activation, type[nn.Module]] = {
    Activation.RELU: nn.ReLU,
    Activation.TANH: nn.Tanh,
    Activation.GELU: nn.GELU,
    Activation.SILU: nn.SiLU,
}


def mlp(
    widths: Sequence[int], *, activation: Activation, normalization: Normalization, inputs: int, outputs: int
) -> Network:
    """Return an MLP: linear map, normalization and activation for each hidden layer, then a linear map.

    Weights start Gaussian with variance g/fan-in, g = 2 where the activation halves the signal and 1 otherwise;
    biases start at zero. Parameters are called `0.linear.weight`, `0.linear.bias`, `0.norm.weight`, `0.norm.bias`,
    `1.linear.weight`, … by the number of their layer.

    Args:
        widths: units of each hidden layer; none for a linear model.
        activation: between layers.
        normalization: before each activation, with a learned scale and shift.
        inputs: d, features of a row.
        outputs: c, outputs of a row.

    Raises:
        LearnError: a width that is no positive number.

    Source: He et al. (2015), section 2.2, for the start.
    """
    sizes = [inputs, *widths, outputs]
    if min(sizes) < 1:
        raise LearnError(f"every width of a network must be positive; found {sizes}")
    gain = 1.0 if activation is Activation.TANH else 2.0
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    slots: list[Slot] = []
    last = len(sizes) - 2
    for layer, (before, after) in enumerate(pairwise(sizes)):
        parts: OrderedDict[str, nn.Module] = OrderedDict()
        with torch.device("meta"):
            parts["linear"] = nn.Linear(before, after)
        std = ((1.0 if layer == last else gain) / before) ** 0.5
        slots += [
            Slot(f"{layer}.linear.weight", (after, before), layer, Role.WEIGHT, 0.0, std),
            Slot(f"{layer}.linear.bias", (after,), layer, Role.BIAS, 0.0, 0.0),
        ]
        if layer < last:
            if normalization is not Normalization.NONE:
                parts["norm"] = _normalization(normalization, after)
                slots += [
                    Slot(f"{layer}.norm.weight", (after,), layer, Role.NORMALIZATION, 1.0, 0.0),
                    Slot(f"{layer}.norm.bias", (after,), layer, Role.NORMALIZATION, 0.0, 0.0),
                ]
            parts["activation"] = _ACTIVATIONS[activation]()
        layers[str(layer)] = nn.Sequential(parts)
    return Network(nn.Sequential(layers), tuple(slots), inputs, outputs)


def _normalization(kind: Normalization, width: int) -> nn.Module:
    with torch.device("meta"):
        if kind is Normalization.LAYER:
            return nn.LayerNorm(width)
        norm = nn.BatchNorm1d(width)
    # A counter that only averages without momentum would need.
    norm.num_batches_tracked = None
    return norm
