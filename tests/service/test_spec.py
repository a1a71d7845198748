"""The contract: what a client may say, and what it hears when it says something else."""

import copy
import json
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import JsonValue, ValidationError

from service.records import FINAL, HELD, TRANSITIONS, JobStatus
from service.spec.capabilities import CAPABILITIES, refusal
from service.spec.hyperparameters import LARGEST_STRENGTH, SMALLEST_STRENGTH
from service.spec.job import JobSpec
from service.spec.methods import AdamStep, Implicit, MethodSpec, QuasiNewtonStep
from service.spec.models import Loss

# The example of the published contract, word for word.
CONTRACT_EXAMPLE = """{
  "name": "digits, one penalty per layer",
  "labels": {"team": "vision"},
  "seed": 0,
  "data":  {"dataset": "builtin:digits", "target": "target", "features": null,
            "split": {"kind": "holdout", "valid": 0.25, "test": 0.25, "stratify": true},
            "standardize": true},
  "model": {"kind": "linear"},
  "loss":  "cross_entropy",
  "regularizers": [
    {"kind": "l2", "strength": {"init": 0.01, "low": 1e-8, "high": 1e4, "per": "model"}}
  ],
  "method": {"kind": "implicit", "solver": {"kind": "cg"}},
  "objective": {"on": "valid", "loss": "cross_entropy"},
  "budget": {"outer_steps": 100, "wall_seconds": 600, "tolerance": 1e-5},
  "resources": {"device": "auto", "precision": "float32"},
  "verify": true
}"""

MINIMAL: dict[str, JsonValue] = {"data": {"dataset": "builtin:digits"}}


def refused_at(change: dict[str, JsonValue]) -> list[tuple[int | str, ...]]:
    """Where the errors are when the minimal specification is changed: the model, and the field that it names."""
    body = copy.deepcopy(MINIMAL)
    body.update(change)
    with pytest.raises(ValidationError) as caught:
        JobSpec.model_validate(body)
    places = []
    for error in caught.value.errors():
        field = error.get("ctx", {}).get("field")
        places.append((*error["loc"], *str(field).split("/")) if field else error["loc"])
    return places


def test_the_example_of_the_contract_is_accepted():
    spec = JobSpec.model_validate_json(CONTRACT_EXAMPLE)
    assert spec.budget.wall_seconds == 600
    assert spec.regularizers[0].strength.init == 0.01


def test_a_minimal_specification_has_every_default_filled_in():
    spec = JobSpec.model_validate(MINIMAL)
    filled = spec.model_dump(mode="json")
    assert filled["method"]["solver"]["kind"] == "cg"
    assert filled["data"]["split"]["kind"] == "holdout"
    assert JobSpec.model_validate_json(json.dumps(filled)) == spec


@pytest.mark.parametrize(
    ("change", "location"),
    [
        ({"lerning_rate": 1}, ("lerning_rate",)),
        ({"seed": "0"}, ("seed",)),
        ({"seed": -1}, ("seed",)),
        ({"verify": 1}, ("verify",)),
        ({"name": "a\u0000b"}, ("name",)),
        ({"name": "\ud800"}, ("name",)),
        ({"labels": {"team": "\u0000"}}, ("labels", "team")),
        ({"regularizers": []}, ("regularizers",)),
        ({"regularizers": [{"kind": "l2", "strength": {"init": -1.0}}]}, ("regularizers", 0, "l2", "strength", "init")),
        (
            {"regularizers": [{"kind": "l2", "strength": {"low": 1.0, "high": 0.5}}]},
            ("regularizers", 0, "l2", "strength", "low"),
        ),
        ({"regularizers": [{"kind": "l2", "strength": {"init": 1e5}}]}, ("regularizers", 0, "l2", "strength", "init")),
        (
            {"regularizers": [{"kind": "l2", "strength": {"fixed": -0.1}}]},
            ("regularizers", 0, "l2", "strength", "fixed"),
        ),
        (
            {"regularizers": [{"kind": "l2", "strength": {"fixed": 0.1, "init": 0.5}}]},
            ("regularizers", 0, "l2", "strength", "init"),
        ),
        ({"regularizers": [{"kind": "l2", "strength": {"fixed": 0.1}}]}, ("regularizers",)),
        ({"regularizers": [{"kind": "l3"}]}, ("regularizers", 0)),
        ({"model": {"kind": "forest"}}, ("model",)),
        ({"model": {"kind": ["mlp"]}}, ("model",)),
        ({"model": {"kind": "linear", "widths": [3]}}, ("model", "linear", "widths")),
        ({"model": {"kind": "mlp", "widths": []}}, ("model", "mlp", "widths")),
        ({"method": {"kind": "guess"}}, ("method",)),
        ({"objective": {"loss": "squared_error"}}, ("objective", "loss")),
        (
            {"data": {"dataset": "d", "split": {"kind": "holdout", "valid": 0.6, "test": 0.4}}},
            ("data", "split", "holdout", "test"),
        ),
        ({"data": {"dataset": "d", "split": {"kind": "kfold", "folds": 1}}}, ("data", "split", "kfold", "folds")),
        ({"data": {"dataset": "d", "features": ["a", "a"]}}, ("data", "features")),
        ({"data": {"dataset": "d", "features": ["target"]}}, ("data", "features")),
        ({"budget": {"outer_steps": 0}}, ("budget", "outer_steps")),
        (
            {"method": {"kind": "implicit", "solver": {"kind": "identity"}, "step": {"kind": "lbfgs"}}},
            ("method", "implicit", "step"),
        ),
    ],
)
def test_a_mistake_is_refused_where_it_stands(change: dict[str, JsonValue], location: tuple[int | str, ...]):
    assert location in refused_at(change)


DENOISER: dict[str, JsonValue] = {"model": {"kind": "denoiser"}}
MLP: dict[str, JsonValue] = {"model": {"kind": "mlp"}}


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({**MLP, "method": {"kind": "hoag"}}, "method/kind"),
        ({**MLP, "method": {"kind": "implicit", "step": {"kind": "lbfgs"}}}, "step"),
        ({**MLP, "regularizers": [{"kind": "l2", "strength": {"per": "feature"}}]}, "regularizers/0/strength/per"),
        ({**MLP, "data": {"dataset": "d", "split": {"kind": "kfold"}}}, "data/split/kind"),
        ({"regularizers": [{"kind": "l2", "strength": {"per": "layer"}}]}, "regularizers/0/strength/per"),
        ({"method": {"kind": "implicit", "inner_steps": 5}}, "method/inner_steps"),
        ({"method": {"kind": "implicit", "burn_in": 5}}, "method/burn_in"),
        ({"method": {"kind": "maid"}, "regularizers": [{"kind": "l1"}]}, "method/kind"),
        ({**MLP, "regularizers": [{"kind": "l1"}]}, "method/kind"),
        ({"method": {"kind": "stn"}, "model": {"kind": "linear", "intercept": False}}, "model/intercept"),
        ({"method": {"kind": "stn"}, "data": {"dataset": "d", "split": {"kind": "kfold"}}}, "data/split/kind"),
        (
            {**MLP, "method": {"kind": "stn"}, "regularizers": [{"kind": "l2", "strength": {"per": "parameter"}}]},
            "regularizers/0/strength/per",
        ),
        ({**MLP, "method": {"kind": "stn"}, "regularizers": [{"kind": "dropout"}] * 2}, "regularizers/1/kind"),
        (
            {
                **MLP,
                "method": {"kind": "stn"},
                "loss": "squared_error",
                "regularizers": [{"kind": "label_smoothing"}],
            },
            "regularizers/0/kind",
        ),
        ({"model": {"kind": "cnn", "kernel": 4}}, "kernel"),
        ({**DENOISER, "loss": "cross_entropy"}, "loss"),
        ({**DENOISER, "regularizers": [{"kind": "l2"}]}, "method/kind"),
        ({**DENOISER, "regularizers": [{"kind": "field_of_experts"}]}, "regularizers"),
        ({**DENOISER, "regularizers": [{"kind": "tv"}, {"kind": "tv"}]}, "regularizers"),
        ({**DENOISER, "data": {"dataset": "d", "features": ["a", "b"]}}, "data/features"),
        ({"model": {"kind": "denoiser", "noise": 0.1}, "data": {"dataset": "d", "features": ["a"]}}, "model/noise"),
    ],
)
def test_parts_that_do_not_fit_together_are_refused_where_the_client_should_change_them(
    change: dict[str, JsonValue], field: str
):
    with pytest.raises(ValidationError) as refused:
        JobSpec.model_validate({**MINIMAL, **change})
    assert field in [error.get("ctx", {}).get("field") for error in refused.value.errors()]


def test_defaults_suit_the_model():
    network = JobSpec.model_validate({**MINIMAL, **MLP})
    assert isinstance(network.method, Implicit)
    assert (network.method.solver.kind, network.method.step.kind, network.method.inner_steps) == ("neumann", "adam", 50)
    denoiser = JobSpec.model_validate({**MINIMAL, "model": {"kind": "denoiser", "regularizer": "field_of_experts"}})
    assert denoiser.loss is Loss.SQUARED_ERROR
    assert [regularizer.kind for regularizer in denoiser.regularizers] == ["field_of_experts"]


@pytest.mark.parametrize("change", [{}, MLP, DENOISER, {**MLP, "method": {"kind": "tpe"}}])
def test_a_filled_in_specification_says_the_same_again(change: dict[str, JsonValue]):
    spec = JobSpec.model_validate({**MINIMAL, **change})
    assert JobSpec.model_validate_json(spec.model_dump_json()) == spec


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e400"])
def test_a_number_that_is_not_finite_is_refused(number: str):
    body = '{"data": {"dataset": "d"}, "regularizers": [{"kind": "l2", "strength": {"init": NUMBER}}]}'
    with pytest.raises(ValidationError, match=r"finite|less than or equal"):
        JobSpec.model_validate_json(body.replace("NUMBER", number))


def test_an_approximate_solver_is_given_a_step_that_can_use_it():
    exact = JobSpec.model_validate({**MINIMAL, "method": {"kind": "implicit", "solver": {"kind": "minres"}}})
    rough = JobSpec.model_validate({**MINIMAL, "method": {"kind": "implicit", "solver": {"kind": "neumann"}}})
    assert isinstance(exact.method.step, QuasiNewtonStep)
    assert isinstance(rough.method.step, AdamStep)


def test_a_refused_pair_names_the_methods_that_would_take_it():
    assert refusal("implicit", "linear", ["l2"]) is None
    assert "hoag" in (refusal("stn", "linear", ["l1"]) or "")
    assert "no method" in (refusal("hoag", "linear", ["tv"]) or "")


def test_every_method_of_the_contract_has_a_row_in_the_capabilities():
    kinds = {method.model_fields["kind"].default for method in get_args(get_args(MethodSpec)[0])}
    assert kinds == set(CAPABILITIES)


@settings(deadline=None)
@given(
    init=st.floats(SMALLEST_STRENGTH, LARGEST_STRENGTH),
    low=st.floats(SMALLEST_STRENGTH, LARGEST_STRENGTH),
    high=st.floats(SMALLEST_STRENGTH, LARGEST_STRENGTH),
)
def test_a_box_is_accepted_exactly_when_it_holds_its_start(init: float, low: float, high: float):
    body = {**MINIMAL, "regularizers": [{"kind": "l2", "strength": {"init": init, "low": low, "high": high}}]}
    if low <= init <= high:
        assert JobSpec.model_validate(body).regularizers[0].strength.init == init
    else:
        with pytest.raises(ValidationError):
            JobSpec.model_validate(body)


def test_only_an_ended_job_can_be_final_and_none_of_them_is_held():
    assert not FINAL & HELD
    assert set(TRANSITIONS) == set(JobStatus)
    for status in FINAL:
        assert TRANSITIONS[status] <= {JobStatus.QUEUED}
