"""Uploaded weights, and which part of a network starts from them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from service.given_weights import MEAN, SCALE, STATISTICS
from service.spec.models import ModelSpec, Transfer
from service.spec.regularizers import L2, L2SP
from workers.build.granularity import per_of
from workers.data.errors import BadData
from workers.data.scaling import Scaler
from workers.learn.models.groups import Groups, groups
from workers.learn.models.network import Network
from workers.learn.models.transfer import split_from_head


@dataclass(frozen=True, eq=False)
class GivenWeights:
    """What a file of weights holds."""

    tensors: Mapping[str, Tensor]
    """Parameters by name, on the CPU; without statistics of normalizations, which are taken anew."""
    scaler: Scaler | None
    """What features were scaled by when these weights were trained, if the file knows."""


def read_weights(path: Path) -> GivenWeights:
    """Read a file that was checked when it was uploaded.

    Raises:
        BadData: it cannot be read, or its scale is none.
    """
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise BadData("The weights could not be read: upload them again.") from error
    mean, scale = tensors.pop(MEAN, None), tensors.pop(SCALE, None)
    scaler = None
    if mean is not None and scale is not None:
        scaler = Scaler(mean.double().numpy(), scale.double().numpy())
        if not np.isfinite(scaler.mean).all() or not np.isfinite(scaler.scale).all() or (scaler.scale <= 0).any():
            raise BadData(f"{MEAN!r} and {SCALE!r} of the weights must be finite, and every scale positive.")
    return GivenWeights({name: each for name, each in tensors.items() if not name.endswith(STATISTICS)}, scaler)


def penalised(model: ModelSpec, network: Network, regularizer: L2 | L2SP) -> Groups:
    """Return the groups of a penalty: of weights that start from others, those of the backbone or of the head."""
    per, biases = per_of(regularizer.strength.per), regularizer.biases
    if not isinstance(model, Transfer) or model.backbone is None:
        return groups(network, per, biases=biases)
    parts = split_from_head(network, head=model.fresh_layers)
    return parts.backbone(per, biases=biases) if isinstance(regularizer, L2SP) else parts.head(per, biases=biases)
