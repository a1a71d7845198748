"""Jobs without validation rows, from the specification to the result."""

import json
from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load as load_tensors

from service.admission import admit
from service.builtin import BUILTIN_DATASETS
from service.records import JsonObject
from service.spec.job import JobSpec
from workers.elbo_evidence import examine_elbo
from workers.learn.method import run
from workers.learn.problem import Part
from workers.studies.elbo import ElboStudy
from workers.workshop import begin_study

DIABETES = {"dataset": "builtin:diabetes"}
NUMBERS: dict[str, object] = {"data": DIABETES, "loss": "squared_error"}
CLASSES: dict[str, object] = {"data": {"dataset": "builtin:wine"}}
EXACT = {"kind": "elbo", "posterior": "exact"}
STEPS = {"kind": "elbo", "training_steps": 200}


def study_of(**body: object) -> tuple[JobSpec, ElboStudy]:
    spec = JobSpec.model_validate(body)
    record = BUILTIN_DATASETS[spec.data.dataset]
    assert admit(spec, record).is_admitted
    study = begin_study(spec, record, None, device="cpu")
    assert isinstance(study, ElboStudy)
    return spec, study


def finished(**body: object) -> tuple[JsonObject, dict[str, bytes]]:
    spec, study = study_of(**body)
    state = study.method.init(study.problem, seed=spec.seed)
    for after, _ in run(study.method, study.problem, state, max_steps=spec.budget.outer_steps):
        state = after
    conclusion = study.conclude(state)
    files = dict(conclusion.files())
    result = conclusion.result(wall_seconds=1.0, peak_memory_bytes=1, files=[])
    json.dumps(result, allow_nan=False)
    return result, files


@pytest.mark.parametrize(
    ("model", "posterior"),
    [
        ({"kind": "linear"}, "exact"),
        ({"kind": "linear"}, "isotropic"),
        ({"kind": "linear"}, "diagonal"),
        ({"kind": "rff_gp", "features": 60}, "exact"),
    ],
)
def test_closed_forms_are_learned_from_all_rows_and_checked(model: JsonObject, posterior: str) -> None:
    result, _ = finished(**NUMBERS, model=model, method={"kind": "elbo", "posterior": posterior})
    evidence = result["evidence"]
    assert evidence["verdict"] == "optimum"
    assert evidence["hypergradient_check"]["relative_error"] <= 1e-5
    here = evidence["objective_at_answer"]
    assert [one["factor"] for one in evidence["neighbours"]] == [0.5, 2.0]
    assert all(one["objective"] > here for one in evidence["neighbours"])
    assert result["model"]["posterior"]["objective"] == pytest.approx(here, rel=1e-6)
    assert result["model"]["trained_on"] == "train+valid"
    assert result["model"]["rows"] == 331
    assert set(result["metrics"]) == {"train", "test"}
    coverage = {one["level"]: one["covered"] for one in result["calibration"]["test"]["coverage"]}
    # 111 rows: three standard errors of a proportion.
    assert all(abs(covered - level) <= 3.0 * (level * (1 - level) / 111) ** 0.5 for level, covered in coverage.items())


def test_relevance_is_determined_feature_by_feature() -> None:
    per = {"kind": "l2", "strength": {"per": "feature", "high": 1e6}}
    result, _ = finished(**NUMBERS, method=EXACT, regularizers=[per], budget={"outer_steps": 500})
    found = dict(zip(result["hyperparameters"]["l2"]["names"], result["hyperparameters"]["l2"]["values"], strict=True))
    assert found["age"] > 1e3 > 1.0 > found["bmi"]
    assert result["evidence"]["verdict"] == "at_bound"


def test_another_optimum_is_told() -> None:
    model = {"kind": "rff_gp", "features": 60, "lengthscales": "feature"}
    result, _ = finished(**NUMBERS, model=model, method=EXACT)
    own = result["model"]["posterior"]
    assert len([name for name in own if name.startswith("lengthscale")]) == 10
    is_lower = result["evidence"]["objective_at_answer"] < own["objective"] - 1e-3
    assert (result["evidence"]["verdict"] == "descending") == is_lower


def test_a_run_that_was_cut_short_is_found_out() -> None:
    per = {"kind": "l2", "strength": {"per": "feature", "init": 1e-6}}
    result, _ = finished(**NUMBERS, method=EXACT, regularizers=[per], budget={"outer_steps": 1})
    assert result["evidence"]["verdict"] == "descending"


@pytest.mark.parametrize(
    "model",
    [
        {"kind": "linear"},
        {"kind": "mlp", "widths": [8]},
        {"kind": "rff_gp", "features": 30},
    ],
    ids=lambda model: model["kind"],
)
def test_classes_are_learned_by_steps(model: JsonObject) -> None:
    result, files = finished(**CLASSES, model=model, method=STEPS, budget={"outer_steps": 5})
    assert result["model"]["posterior"]["learning_rate"] in (0.1, 0.01, 0.001, 0.0001)
    assert result["evidence"]["verdict"] in ("optimum", "descending")
    assert result["evidence"]["hypergradient_check"] is None
    assert set(result["calibration"]) == {"test"}
    assert len(result["calibration"]["test"]["bins"]) == 15
    tensors = load_tensors(files["weights.safetensors"])
    assert ("frequencies" in tensors) == (model["kind"] == "rff_gp")


def test_the_weights_of_a_random_feature_process_predict() -> None:
    _, study = study_of(**NUMBERS, model={"kind": "rff_gp", "features": 40}, method=EXACT)
    state = study.method.init(study.problem, seed=0)
    for after, _ in run(study.method, study.problem, state, max_steps=20):
        state = after
    tensors = load_tensors(study.conclude(state).files()["weights.safetensors"])
    scale, height = (torch.nn.functional.softplus(tensors[f"raw_{name}"]) for name in ("lengthscale", "outputscale"))
    x = study.problem.rows_of(Part.TRAIN).x[:5]
    phi = height * (2.0 / 40) ** 0.5 * torch.cos((x / scale) @ tensors["frequencies"].T + tensors["phases"])
    weights = study.method.answer(study.problem, state).weights
    expected, _ = study.problem.outputs_on(weights, Part.TRAIN)
    assert torch.allclose(phi @ tensors["weight"].T + tensors["bias"], expected[:5])


def test_a_collapsed_prior_is_told() -> None:
    spec, study = study_of(**NUMBERS, method={"kind": "elbo"})
    state = study.method.init(study.problem, seed=0)
    for after, _ in run(study.method, study.problem, state, max_steps=20):
        state = after
    conclusion = study.conclude(state)
    collapsed = replace(conclusion._summary, collapsed=True)
    found = examine_elbo(conclusion._method, study.problem, conclusion._answer, collapsed, spec)
    assert "collapsed" in found.sentence


@pytest.mark.parametrize(
    ("body", "pointer", "message"),
    [
        (
            {**NUMBERS, "data": {"dataset": "builtin:diabetes", "split": {"kind": "kfold"}}},
            "data/split/kind",
            "holdout",
        ),
        ({**CLASSES, "method": EXACT}, "method/posterior", "squared_error"),
        ({**CLASSES, "method": EXACT, "model": {"kind": "mlp"}}, "method/posterior", "squared_error"),
        ({**NUMBERS, "regularizers": [{"kind": "l2"}, {"kind": "l2"}]}, "regularizers/1", "one"),
        ({**NUMBERS, "method": {"kind": "elbo", "learning_rates": [0.1]}}, "method/learning_rates", "closed form"),
        ({**NUMBERS, "method": {**EXACT, "training_steps": 10}}, "method/training_steps", "closed form"),
        ({**NUMBERS, "method": {**EXACT, "kappa": 3.0}}, "method/kappa", "leave out kappa"),
        ({**NUMBERS, "method": {"kind": "elbo", "kappa": 0.0}}, "method/kappa", ""),
        ({**CLASSES, "model": {"kind": "rff_gp"}, "method": {"kind": "implicit"}}, "method/kind", "elbo"),
        ({**CLASSES, "model": {"kind": "rff_gp", "lengthscales": "layer"}}, "model/lengthscales", "per feature"),
    ],
)
def test_what_does_not_fit_is_refused(body: dict[str, object], pointer: str, message: str) -> None:
    with pytest.raises(ValidationError) as refused:
        JobSpec.model_validate({"method": {"kind": "elbo"}, **body})
    places = ["/".join(map(str, error["loc"])) for error in refused.value.errors()]
    assert any(pointer.split("/")[0] in place for place in places) or pointer in str(refused.value.errors())
    assert message in str(refused.value)


def test_a_random_feature_process_takes_elbo_by_itself() -> None:
    assert JobSpec.model_validate({**CLASSES, "model": {"kind": "rff_gp"}}).method.kind == "elbo"


def test_no_row_need_be_held_out() -> None:
    split = {"kind": "holdout", "valid": 0, "test": 0.25}
    result, _ = finished(**{**NUMBERS, "data": {**DIABETES, "split": split}}, method=EXACT)
    assert result["model"]["rows"] == 331
    with pytest.raises(ValidationError, match="validation rows"):
        JobSpec.model_validate({**NUMBERS, "data": {**DIABETES, "split": split}})
