"""What the result of a self-tuning network tells of its schedule and of the strengths around its answer."""

import json

import pytest
import torch

from service.builtin import BUILTIN_DATASETS
from service.records import JsonObject
from service.spec.job import JobSpec
from workers import self_tuning
from workers.learn.method import run
from workers.learn.methods.stn_state import STNState
from workers.learn.problem import Part
from workers.learn.problems.network import NetworkProblem
from workers.self_tuning import self_tuning_body
from workers.study import AbstractStudy
from workers.workshop import begin_study


def ended(*, steps: int = 3, **spec: object) -> tuple[AbstractStudy, STNState, list[dict[str, torch.Tensor]]]:
    job = JobSpec.model_validate(
        {
            "data": {"dataset": "builtin:digits"},
            "model": {"kind": "mlp", "widths": [8]},
            "regularizers": [{"kind": "l2", "strength": {"per": "layer"}}, {"kind": "dropout"}],
            "method": {"kind": "stn", "warm_up": 0, "polish": False},
            "budget": {"outer_steps": steps},
            "verify": False,
            **spec,
        }
    )
    study = begin_study(job, BUILTIN_DATASETS["builtin:digits"], None, device="cpu")
    state = study.method.init(study.problem, seed=0)
    points = []
    for after, point in run(study.method, study.problem, state, max_steps=steps):
        state = after
        points.append(dict(point.hyperparameters))
    assert isinstance(state, STNState)
    return study, state, points


def result_of(study: AbstractStudy, state: STNState) -> JsonObject:
    result = study.conclude(state).result(wall_seconds=1.0, peak_memory_bytes=1, files=[])
    json.dumps(result, allow_nan=False)
    return result


def test_the_result_holds_the_schedule_and_the_predicted_losses() -> None:
    study, state, points = ended()
    result = result_of(study, state)
    found = result["self_tuning"]
    assert list(found["schedule"]) == list(found["response_curves"]) == ["l2[0]", "l2[1]", "dropout"]
    for step, point in enumerate(points):
        assert found["schedule"]["l2[1]"][step] == [step, float(point["l2"][1])]
        assert found["schedule"]["dropout"][step] == [step, float(point["dropout"])]
    problem = study.problem
    assert isinstance(problem, NetworkProblem)
    answer = study.method.answer(problem, state)
    loss = problem.evaluate(answer.weights, Part.VALID)["loss"]
    strengths = problem.space.constrain(answer.raw)
    for name, at in (("l2[0]", strengths["l2"][0]), ("dropout", strengths["dropout"])):
        curve = found["response_curves"][name]
        assert len(curve["strength"]) == len(curve["predicted_valid_loss"]) == 11
        assert curve["strength"] == sorted(curve["strength"])
        # In the middle nothing is predicted: there the network is the one that was trained.
        assert curve["strength"][5] == pytest.approx(float(at))
        assert curve["predicted_valid_loss"][5] == pytest.approx(loss)
        assert len(set(curve["predicted_valid_loss"])) > 1
    assert found["valid_rows"] == problem.validation.rows
    assert result["calibration"]["valid"]["nll"] == pytest.approx(loss, rel=1e-5)


def test_curves_of_many_rows_are_predicted_on_some_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    study, state, _ = ended(steps=1)
    assert isinstance(study.problem, NetworkProblem)
    rows = study.problem.validation.rows
    monkeypatch.setattr(self_tuning, "_MOST_ROWS", rows - 1)
    monkeypatch.setattr(self_tuning, "_MOST_NAMES", 2)
    found = self_tuning_body(study.method, study.problem, state)
    assert found is not None
    assert found["valid_rows"] == -(-rows // 2)  # every second one
    assert list(found["schedule"]) == list(found["response_curves"]) == ["l2[0]", "l2[1]"]


def test_a_polished_run_ends_its_schedule_with_what_polishing_found() -> None:
    study, state, points = ended(steps=2, method={"kind": "stn", "warm_up": 0, "polish": True})
    assert state.polishing is not None
    found = result_of(study, state)["self_tuning"]
    assert found["schedule"]["l2[0]"][-1] == [1, float(points[-1]["l2"][0])]


def test_other_methods_have_nothing_to_tell_of() -> None:
    study, state, _ = ended(steps=1)
    assert isinstance(study.problem, NetworkProblem)
    assert self_tuning_body("random", study.problem, state) is None
