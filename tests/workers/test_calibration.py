"""What a result says of how far its predictions can be believed."""

import json
import math

import numpy as np
import pytest
import torch
from numpy.typing import ArrayLike
from safetensors.torch import load as load_tensors
from scipy.special import log_softmax
from sklearn.datasets import load_breast_cancer, load_wine
from sklearn.metrics import brier_score_loss, log_loss
from sklearn.model_selection import StratifiedKFold

from service.builtin import BUILTIN_DATASETS
from service.records import JsonObject
from service.spec.job import JobSpec
from workers.calibration import calibration_body, with_scores
from workers.learn.calibration import class_calibration, gaussian_calibration
from workers.learn.method import run
from workers.learn.problem import Part
from workers.learn.problems.linear import LinearProblem
from workers.learn.problems.linear_data import Examples, L2Term, LinearData, linear_problem
from workers.study import AbstractStudy
from workers.workshop import begin_study

LOGITS = torch.tensor([[2.0, 0.0, 0.0], [0.0, 3.0, 0.0], [0.0, 0.0, 0.1]], dtype=torch.float64)
CLASSES = torch.tensor([0, 2, 2])


def finished(dataset: str, **spec: object) -> tuple[AbstractStudy, JsonObject, dict[str, bytes]]:
    job = JobSpec.model_validate({"verify": False, "data": {"dataset": f"builtin:{dataset}"}, **spec})
    study = begin_study(job, BUILTIN_DATASETS[job.data.dataset], None, device="cpu")
    state = study.method.init(study.problem, seed=job.seed)
    for after, _ in run(study.method, study.problem, state, max_steps=3):
        state = after
    conclusion = study.conclude(state)
    files = dict(conclusion.files())
    result = conclusion.result(wall_seconds=1.0, peak_memory_bytes=1, files=[])
    json.dumps(result, allow_nan=False)
    return study, result, files


def brier(probabilities: ArrayLike, y: ArrayLike) -> float:
    found = np.asarray(probabilities)
    return float(np.mean(np.sum((found - np.eye(found.shape[1])[np.asarray(y)]) ** 2, axis=1)))


def test_bins_without_predictions_have_no_means() -> None:
    body = calibration_body({"test": class_calibration(LOGITS, CLASSES)})
    assert body is not None
    found = body["test"]
    assert found["nll"] == pytest.approx(log_loss(CLASSES, torch.softmax(LOGITS, 1), labels=[0, 1, 2]))
    assert found["accuracy"] == pytest.approx(2 / 3)
    assert [part["count"] for part in found["bins"]] == [0] * 5 + [1] + [0] * 5 + [1] + [0, 1, 0]
    for part in found["bins"]:
        assert set(part) == {"low", "high", "count", "confidence", "accuracy"}
        assert (part["confidence"] is None) == (part["accuracy"] is None) == (part["count"] == 0)
    error = sum(
        part["count"] / 3 * abs(part["accuracy"] - part["confidence"]) for part in found["bins"] if part["count"]
    )
    assert found["ece"] == pytest.approx(error)


def test_training_rows_stand_for_others_only_where_there_are_none() -> None:
    one = class_calibration(LOGITS, CLASSES)
    assert set(calibration_body({"train": one, "valid": one, "test": one}) or {}) == {"valid", "test"}
    assert set(calibration_body({"train": one, "test": one}) or {}) == {"test"}
    assert set(calibration_body({"train": one}) or {}) == {"train"}
    assert calibration_body({}) is None


def test_a_class_that_was_given_no_probability_is_told_as_text() -> None:
    logits = torch.tensor([[0.0, -math.inf]], dtype=torch.float64)
    body = calibration_body({"test": class_calibration(logits, torch.tensor([1]))})
    assert body is not None
    assert body["test"]["nll"] == "Infinity"
    json.dumps(body, allow_nan=False)


def test_numbers_with_deviations_are_told_by_their_coverage() -> None:
    y = torch.zeros(4, dtype=torch.float64)
    mean = torch.tensor([0.0, 0.5, 1.5, 3.0], dtype=torch.float64)
    found = gaussian_calibration(mean, torch.ones_like(y), y)
    body = calibration_body({"train": found, "test": found})
    assert body is not None
    assert set(body) == {"test"}
    assert body["test"]["rmse"] == pytest.approx(math.sqrt((0.25 + 2.25 + 9.0) / 4))
    # The central intervals of a standard normal reach to 0.674, 1.282 and 1.960.
    assert [(one["level"], one["covered"]) for one in body["test"]["coverage"]] == [
        (0.5, 0.5),
        (0.8, 0.5),
        (0.95, 0.75),
    ]
    assert [one["width"] for one in body["test"]["coverage"]] == pytest.approx([1.34898, 2.5631, 3.91993], rel=1e-4)
    metrics = with_scores({"test": {"rmse": 1.0}, "valid": {"rmse": 2.0}}, {"test": found})
    assert metrics == {"test": {"rmse": 1.0, "nll": found.nll}, "valid": {"rmse": 2.0}}


def test_classes_of_a_linear_model_are_scored_as_its_weights_predict() -> None:
    study, result, files = finished("wine")
    raw, labels = load_wine(return_X_y=True)
    w = {name: tensor.numpy() for name, tensor in load_tensors(files["weights.safetensors"]).items()}
    rows = study._data.parts.test  # type: ignore[attr-defined]
    z = ((raw[rows] - w["mean"]) / w["scale"]) @ w["coef"].T + w["intercept"]
    probabilities = np.exp(log_softmax(z, axis=1))
    metrics, found = result["metrics"]["test"], result["calibration"]["test"]
    assert set(result["calibration"]) == {"valid", "test"}
    assert metrics["nll"] == pytest.approx(metrics["loss"])
    assert found["nll"] == pytest.approx(log_loss(labels[rows], probabilities))
    assert found["brier"] == pytest.approx(brier(probabilities, labels[rows]))
    assert found["accuracy"] == pytest.approx(metrics["accuracy"])
    for part in ("train", "valid", "test"):
        assert {"loss", "accuracy", "nll", "brier", "ece"} == set(result["metrics"][part])


def test_two_classes_are_scored_as_probabilities_of_both() -> None:
    study, result, files = finished("breast_cancer")
    raw, labels = load_breast_cancer(return_X_y=True)
    w = {name: tensor.numpy() for name, tensor in load_tensors(files["weights.safetensors"]).items()}
    rows = study._data.parts.test  # type: ignore[attr-defined]
    z = (((raw[rows] - w["mean"]) / w["scale"]) @ w["coef"].T + w["intercept"])[:, 0]
    second = 1.0 / (1.0 + np.exp(-z))
    found = result["calibration"]["test"]
    # Over both classes the sum of squares is twice that of the second.
    assert found["brier"] == pytest.approx(2.0 * brier_score_loss(labels[rows], second))
    assert found["nll"] == pytest.approx(log_loss(labels[rows], second))


def test_with_folds_every_row_is_predicted_once_by_a_model_that_has_not_seen_it() -> None:
    study, result, _ = finished("wine", data={"dataset": "builtin:wine", "split": {"kind": "kfold", "folds": 4}})
    problem = study.problem
    assert isinstance(problem, LinearProblem)
    assert problem.layout.models == 4
    found = result["calibration"]
    assert set(found) == {"valid", "test"}
    rows = problem.train.design.rows
    assert sum(part["count"] for part in found["valid"]["bins"]) == rows
    assert result["metrics"]["valid"]["nll"] == found["valid"]["nll"]
    # Folds differ by a row at most, so pooled scores are near the means over folds.
    assert found["valid"]["nll"] == pytest.approx(result["metrics"]["valid"]["loss"], rel=0.05)
    assert sum(part["count"] for part in found["test"]["bins"]) == problem.test.design.rows  # type: ignore[union-attr]


def test_pooled_outputs_are_those_of_each_folds_own_model() -> None:
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(21, 3)), np.arange(21) % 3
    fold = np.zeros(21, dtype=int)
    for number, (_, held) in enumerate(StratifiedKFold(3).split(X, y)):
        fold[held] = number
    problem = linear_problem(
        LinearData(Examples(X, y), fold=fold),
        loss="cross_entropy",
        terms=[L2Term("l2", 0.1)],
        intercept=True,
        dtype=torch.float64,
        device="cpu",
    )
    w = torch.as_tensor(rng.normal(size=problem.layout.size))
    named = problem.named_weights(w)
    outputs, targets = problem.outputs_on(w, Part.VALID)
    expected = [
        X[fold == number] @ named["weight"][number].numpy().T + named["bias"][number].numpy() for number in range(3)
    ]
    np.testing.assert_allclose(outputs, np.concatenate(expected))
    np.testing.assert_array_equal(targets, np.concatenate([y[fold == number] for number in range(3)]))
    assert problem.outputs_on(w, Part.TRAIN)[0].shape == (2 * 21, 3)


def test_regression_has_no_probabilities() -> None:
    _, result, _ = finished("diabetes", loss="squared_error")
    assert result["calibration"] is None
    assert "nll" not in result["metrics"]["test"]


@pytest.mark.parametrize("model", [{"kind": "mlp", "widths": [8], "normalization": "batch", "epochs": 1}])
def test_a_networks_classes_are_scored_through_the_same_statistics(model: dict[str, object]) -> None:
    _, result, _ = finished("digits", model=model, method={"kind": "random"}, budget={"outer_steps": 3})
    assert set(result["calibration"]) == {"valid", "test"}
    for part, found in result["calibration"].items():
        metrics = result["metrics"][part]
        assert found["nll"] == pytest.approx(metrics["loss"], rel=1e-5)  # the loss is summed in float32
        assert found["accuracy"] == pytest.approx(metrics["accuracy"])
        assert {name: found[name] for name in ("nll", "brier", "ece")} == {
            name: metrics[name] for name in ("nll", "brier", "ece")
        }
