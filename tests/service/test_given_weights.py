"""Weights that a backbone cannot start from are refused by their record, at the tensor that does not fit."""

from dataclasses import replace

import pytest

from service.admission import Admission, admit
from service.builtin import BUILTIN_DATASETS
from service.records import ColumnRecord, ColumnType, DatasetRecord
from service.spec.job import JobSpec

DIGITS = BUILTIN_DATASETS["builtin:digits"]
NUMBER = ColumnType.NUMBER

MLP = {"kind": "mlp", "widths": [7, 5], "normalization": "batch"}
CNN = {"kind": "cnn", "image": [8, 8], "channels": [3], "widths": [4]}

Shapes = dict[str, tuple[int, ...]]

MLP_SHAPES: Shapes = {
    "0.linear.weight": (7, 64),
    "0.linear.bias": (7,),
    "0.norm.weight": (7,),
    "0.norm.bias": (7,),
    "1.linear.weight": (5, 7),
    "1.linear.bias": (5,),
    "1.norm.weight": (5,),
    "1.norm.bias": (5,),
}
CNN_SHAPES: Shapes = {
    "0.linear.weight": (3, 1, 3, 3),
    "0.linear.bias": (3,),
    "1.linear.weight": (4, 3 * 4 * 4),
    "1.linear.bias": (4,),
}


def weights(shapes: Shapes, *, file_format: str = "safetensors") -> DatasetRecord:
    columns = tuple(ColumnRecord(name, NUMBER, shape, 0, None) for name, shape in shapes.items())
    return replace(DIGITS, id="ds_w", format=file_format, rows=0, columns=columns)


def ask(backbone: object, given: DatasetRecord | None, *, fresh_layers: int = 1, **parts: object) -> Admission:
    model = {"kind": "transfer", "backbone": backbone, "weights": "ds_w", "fresh_layers": fresh_layers}
    spec = JobSpec.model_validate({"data": {"dataset": DIGITS.id}, "model": model, **parts})
    return admit(spec, DIGITS, weights=given)


def refused(admission: Admission) -> list[str]:
    assert {refusal.pointer for refusal in admission.refusals} <= {"/model/weights"}
    return [refusal.detail for refusal in admission.refusals]


@pytest.mark.parametrize(("backbone", "shapes"), [(MLP, MLP_SHAPES), (CNN, CNN_SHAPES)], ids=["mlp", "cnn"])
def test_weights_of_the_backbone_are_admitted_with_or_without_those_of_another_head(
    backbone: object, shapes: Shapes
) -> None:
    assert ask(backbone, weights(shapes)).is_admitted
    own = {"2.linear.weight": (1000, 5), "2.linear.bias": (1000,), "mean": (64,), "scale": (64,)}
    assert ask(backbone, weights(shapes | own)).is_admitted


def test_statistics_and_counters_of_normalizations_are_passed_over() -> None:
    statistics = {"0.norm.running_mean": (7,), "0.norm.running_var": (7,), "1.norm.num_batches_tracked": ()}
    assert ask(MLP, weights(MLP_SHAPES | statistics)).is_admitted
    (detail,) = refused(ask({**MLP, "normalization": "none"}, weights({**MLP_SHAPES, **statistics})))
    assert "'0.norm.bias'" in detail


@pytest.mark.parametrize(("backbone", "shapes"), [(MLP, MLP_SHAPES), (CNN, CNN_SHAPES)], ids=["mlp", "cnn"])
def test_a_tensor_that_is_missing_or_has_another_shape_is_named(backbone: object, shapes: Shapes) -> None:
    for name, shape in shapes.items():
        (detail,) = refused(ask(backbone, weights({key: value for key, value in shapes.items() if key != name})))
        assert detail == f"the weights lack {name!r}, of shape {list(shape)}"
        other = (shape[0] + 1, *shape[1:])
        (detail,) = refused(ask(backbone, weights({**shapes, name: other})))
        assert detail == f"{name!r} has shape {list(other)} in the weights, and this model needs {list(shape)}"


def test_what_starts_afresh_need_not_be_there() -> None:
    first = {name: shape for name, shape in MLP_SHAPES.items() if name.startswith("0.")}
    assert len(refused(ask(MLP, weights(first)))) == 4
    assert ask(MLP, weights(first), fresh_layers=2).is_admitted


def test_values_that_are_no_weights_are_refused() -> None:
    good = weights(MLP_SHAPES)
    broken = replace(good, columns=(replace(good.columns[0], missing=3), *good.columns[1:]))
    assert refused(ask(MLP, broken)) == ["'0.linear.weight' has 3 values that are not finite"]
    whole = replace(good, columns=(replace(good.columns[0], type=ColumnType.INTEGER), *good.columns[1:]))
    assert refused(ask(MLP, whole)) == ["'0.linear.weight' holds values of type integer: floats are needed"]


def test_a_scale_of_other_features_is_refused() -> None:
    details = refused(ask(MLP, weights({**MLP_SHAPES, "mean": (63,)})))
    assert details == [
        "'mean' has shape [63] in the weights, and this model needs [64]",
        "the weights lack 'scale', of shape [64]",
    ]


def test_a_dataset_that_is_not_there_or_holds_no_weights_is_refused() -> None:
    assert "no such dataset" in refused(ask(MLP, None))[0]
    assert "holds no weights" in refused(ask(MLP, weights(MLP_SHAPES, file_format="npz")))[0]


def test_weights_of_something_else_are_refused_in_few_words() -> None:
    other = {f"encoder.layer.{i}.weight": (3, 3) for i in range(100)}
    details = refused(ask(MLP, weights(other)))
    assert len(details) == 8
    assert all(len(detail) < 500 for detail in details)


def test_an_image_that_does_not_fit_is_refused_where_the_backbone_says_it() -> None:
    admission = ask({**CNN, "image": [9, 9]}, weights(CNN_SHAPES))
    assert [refusal.pointer for refusal in admission.refusals] == ["/model/backbone/image"]


def test_strengths_and_weights_are_counted_part_by_part() -> None:
    per = {"per": "layer"}
    regularizers = [
        {"kind": "l2_sp", "strength": per},
        {"kind": "l2", "strength": {"per": "tensor"}, "biases": True},
    ]
    estimate = ask(MLP, weights(MLP_SHAPES), regularizers=regularizers).estimate
    assert estimate is not None
    assert estimate.strengths == 2 + 2  # a strength for each layer of the backbone; weight and bias of the head
    assert estimate.weights == 7 * 64 + 3 * 7 + 5 * 7 + 3 * 5 + 10 * 5 + 10


def test_a_head_alone_is_a_linear_map_of_features() -> None:
    spec = JobSpec.model_validate({"data": {"dataset": DIGITS.id}, "model": {"kind": "transfer"}})
    assert [regularizer.kind for regularizer in spec.regularizers] == ["l2"]
    estimate = admit(spec, DIGITS).estimate
    assert estimate is not None
    assert (estimate.strengths, estimate.weights) == (1, 65 * 10)


def test_weights_bring_a_penalty_for_each_part() -> None:
    model = {"kind": "transfer", "backbone": MLP, "weights": "ds_w"}
    spec = JobSpec.model_validate({"data": {"dataset": DIGITS.id}, "model": model})
    assert [regularizer.kind for regularizer in spec.regularizers] == ["l2_sp", "l2"]
    assert spec.weights_dataset == "ds_w"


@pytest.mark.parametrize(
    ("parts", "field", "says"),
    [
        ({"model": {"backbone": MLP}}, "model", "backbone and weights go together"),
        ({"model": {"weights": "ds_w"}}, "model", "backbone and weights go together"),
        ({"model": {"fresh_layers": 2}}, "model", "at most 0"),
        ({"model": {"backbone": MLP, "weights": "ds_w", "fresh_layers": 3}}, "model", "at most 2"),
        ({"regularizers": [{"kind": "l2_sp"}]}, "", "'l2_sp' is around given weights"),
        ({"regularizers": [{"kind": "l2"}, {"kind": "l2"}]}, "", "the head has a penalty already"),
        ({"regularizers": [{"kind": "l2", "strength": {"per": "parameter"}}]}, "", "no strengths per parameter"),
        ({"regularizers": [{"kind": "dropout"}]}, "", "cannot learn dropout"),
        ({"method": {"kind": "hoag"}}, "", "cannot learn"),
    ],
)
def test_what_does_not_go_together_is_refused(parts: dict[str, object], field: str, says: str) -> None:
    model = {"kind": "transfer", **dict(parts.pop("model", {}))}  # type: ignore[call-overload]
    with pytest.raises(ValueError, match=says):
        JobSpec.model_validate({"data": {"dataset": DIGITS.id}, "model": model, **parts})
