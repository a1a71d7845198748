"""Jobs whose training is noisy, from the specification to the result."""

import json

import pytest

from service.admission import admit
from service.builtin import BUILTIN_DATASETS
from service.spec.job import JobSpec
from workers.learn.method import run
from workers.learn.problems.network import NetworkProblem
from workers.workshop import begin_study

DIGITS = BUILTIN_DATASETS["builtin:digits"]
EVERYTHING = [
    {"kind": "l2", "strength": {"per": "layer"}},
    {"kind": "dropout", "strength": {"per": "layer"}},
    {"kind": "input_dropout"},
    {"kind": "label_smoothing"},
    {"kind": "input_noise"},
]
IMAGES = [*EVERYTHING, {"kind": "augmentation"}, {"kind": "cutout", "length": {"init": 2, "high": 4}}]
MLP = {"kind": "mlp", "widths": [12, 8], "epochs": 1}
CNN = {"kind": "cnn", "image": [8, 8], "channels": [4], "widths": [8], "epochs": 1}
NAMES = {
    "l2", "dropout", "input_dropout", "label_smoothing", "input_noise", "augmentation.translation",
    "augmentation.brightness", "augmentation.contrast", "cutout.length", "cutout.holes",
}  # fmt: skip


@pytest.mark.parametrize(
    ("model", "regularizers"),
    [(MLP, EVERYTHING), (CNN, IMAGES), ({"kind": "linear"}, [EVERYTHING[0] | {"strength": {}}, *EVERYTHING[2:]])],
    ids=["mlp", "cnn", "linear"],
)
@pytest.mark.parametrize("variant", ["classic", "centered"])
def test_everything_is_tuned_at_once(model: dict[str, object], regularizers: list[object], variant: str) -> None:
    spec = JobSpec.model_validate(
        {
            "data": {"dataset": "builtin:digits"},
            "model": model,
            "regularizers": regularizers,
            "method": {"kind": "stn", "variant": variant, "warm_up": 5},
            "budget": {"outer_steps": 3},
            "verify": model["kind"] != "linear",  # it has many cheap passes to train by
        }
    )
    admission = admit(spec, DIGITS)
    study = begin_study(spec, DIGITS, None, device="cpu")
    problem = study.problem
    assert isinstance(problem, NetworkProblem)
    assert admission.estimate is not None
    assert admission.estimate.strengths == problem.space.size
    assert admission.estimate.weights == problem.network.size
    state = study.method.init(problem, seed=0)
    trajectory = list(run(study.method, problem, state, max_steps=3))
    moved = trajectory[-1][1].hyperparameters["input_dropout"] - trajectory[0][1].hyperparameters["input_dropout"]
    assert float(moved.abs()) > 0
    conclusion = study.conclude(trajectory[-1][0])
    result = conclusion.result(wall_seconds=1.0, peak_memory_bytes=1, files=[])
    json.dumps(result, allow_nan=False)
    assert set(result["hyperparameters"]) == {name for name in NAMES if f"'{name.split('.')[0]}'" in str(regularizers)}


def test_constants_are_kept() -> None:
    spec = JobSpec.model_validate(
        {
            "data": {"dataset": "builtin:digits"},
            "model": CNN,
            "regularizers": [
                {"kind": "l2"},
                {"kind": "dropout", "strength": {"fixed": 0.0}},
                {"kind": "cutout", "length": {"fixed": 2}, "holes": {"fixed": 1}},
                {"kind": "augmentation", "translation": {"fixed": 0.1}, "brightness": None, "contrast": None},
            ],
            "method": {"kind": "stn"},
        }
    )
    assert admit(spec, DIGITS).is_admitted
    assert begin_study(spec, DIGITS, None, device="cpu").problem.space.names == ("l2",)


@pytest.mark.parametrize(
    ("model", "pointer"),
    [
        ({"kind": "cnn"}, "/model/image"),
        ({"kind": "cnn", "image": [7, 8]}, "/model/image"),
        ({"kind": "cnn", "image": [8, 8], "channels": [4, 4, 4, 4]}, "/model/pool"),
    ],
)
def test_rows_that_are_no_images_are_refused(model: dict[str, object], pointer: str) -> None:
    spec = JobSpec.model_validate({"data": {"dataset": "builtin:digits"}, "model": model})
    assert [refusal.pointer for refusal in admit(spec, DIGITS).refusals] == [pointer]


def test_a_search_takes_noises_too() -> None:
    spec = JobSpec.model_validate(
        {
            "data": {"dataset": "builtin:digits"},
            "model": MLP,
            "regularizers": [{"kind": "dropout"}, {"kind": "label_smoothing"}],
            "method": {"kind": "random"},
            "budget": {"outer_steps": 2},
            "verify": False,
        }
    )
    study = begin_study(spec, DIGITS, None, device="cpu")
    state = study.method.init(study.problem, seed=0)
    points = [point for _, point in run(study.method, study.problem, state, max_steps=2)]
    assert len({float(point.hyperparameters["dropout"]) for point in points}) == 2
