"""Whether uploaded weights are those of a backbone: judged by names and shapes in their record, no file is read."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from service.network_sizes import LayerSize
from service.records import ColumnRecord, ColumnType, DatasetRecord
from service.task import Refusal

MEAN, SCALE = "mean", "scale"
"""What the weights' own features were scaled by, as a job writes them into its weights.safetensors."""

STATISTICS: Final = (".norm.running_mean", ".norm.running_var", ".norm.num_batches_tracked")
"""Ends of names of what a normalization measures: such tensors are passed over, it is measured anew."""

_POINTER: Final = "/model/weights"
_MOST: Final = 8
"""Refusals of one file: a backbone of another kind would have one for each tensor."""

Shapes = Mapping[str, tuple[int, ...]]


def weights_refusals(
    layers: Sequence[LayerSize], weights: DatasetRecord | None, *, fresh_layers: int, width: int
) -> list[Refusal]:
    """Return why a backbone cannot start from these weights.

    Args:
        layers: of the whole network, the head included.
        weights: the record of the dataset that `model.weights` names; None if there is none.
        fresh_layers: how many of the last layers are the head, whose weights are not looked at.
        width: d, features of a row.
    """
    if weights is None:
        return [Refusal(_POINTER, "there is no such dataset: GET /v1/datasets lists those there are")]
    if weights.format != "safetensors":
        return [Refusal(_POINTER, "this dataset holds no weights: upload a file of format 'safetensors'")]
    found = {column.name: column for column in weights.columns}
    refusals = [
        *_unfit(found, _parameters(layers[: len(layers) - fresh_layers])),
        *_unfit(found, _scaling(found, width)),
        *_unknown(found, layers),
    ]
    return refusals[:_MOST]


def _parameters(layers: Sequence[LayerSize]) -> Shapes:
    """Return names and shapes of what is trained, as the networks of the workers name them."""
    shapes: dict[str, tuple[int, ...]] = {}
    for number, layer in enumerate(layers):
        outputs = layer.shape[:1]
        shapes[f"{number}.linear.weight"] = layer.shape
        shapes[f"{number}.linear.bias"] = outputs
        if layer.normalization:
            shapes[f"{number}.norm.weight"] = shapes[f"{number}.norm.bias"] = outputs
    return shapes


def _scaling(found: Mapping[str, ColumnRecord], width: int) -> Shapes:
    return dict.fromkeys((MEAN, SCALE), (width,)) if MEAN in found or SCALE in found else {}


def _unfit(found: Mapping[str, ColumnRecord], needed: Shapes) -> Iterator[Refusal]:
    for name, shape in needed.items():
        tensor = found.get(name)
        if tensor is None:
            yield Refusal(_POINTER, f"the weights lack {name!r}, of shape {list(shape)}")
        elif tensor.shape != shape:
            detail = f"{name!r} has shape {list(tensor.shape)} in the weights, and this model needs {list(shape)}"
            yield Refusal(_POINTER, detail)
        elif tensor.type is not ColumnType.NUMBER:
            yield Refusal(_POINTER, f"{name!r} holds values of type {tensor.type.value}: floats are needed")
        elif tensor.missing:
            yield Refusal(_POINTER, f"{name!r} has {tensor.missing:,} values that are not finite")


def _unknown(found: Mapping[str, ColumnRecord], layers: Sequence[LayerSize]) -> Iterator[Refusal]:
    known = {MEAN, SCALE, *_parameters(layers)}
    for number, layer in enumerate(layers):
        if layer.normalization:
            known |= {f"{number}{end}" for end in STATISTICS}
    if others := sorted(set(found) - known):
        listed = ", ".join(repr(name) for name in others[:_MOST]) + (" and others" if len(others) > _MOST else "")
        yield Refusal(_POINTER, f"the weights hold {listed}, and this model has no such parameters")
