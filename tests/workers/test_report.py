"""What a job reports can be read, compared and computed with."""

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load as load_tensors
from sklearn.datasets import load_breast_cancer, load_wine

from service.builtin import BUILTIN_DATASETS
from service.records import FileRecord
from service.spec.job import JobSpec
from workers.build.linear import build_linear, build_terms
from workers.data.load import LoadedData, load
from workers.evidence import Evidence, Verdict
from workers.finish import FinishedModel, finish
from workers.learn.cost import Cost
from workers.learn.method import Answer, TrajectoryPoint, natural_values
from workers.report import (
    Spent,
    hyperparameters_file,
    point_body,
    result_body,
    result_file,
    weights_file,
)

POINT = TrajectoryPoint(
    step=3,
    hyperparameters={
        "l2": torch.tensor(0.25, dtype=torch.float64),
        "l2_2": torch.tensor([1.0, 2.0, 4.0, 8.0], dtype=torch.float64),
    },
    train_loss=0.5,
    valid_loss=math.nan,
    hypergradient_norm=math.inf,
    inner_iterations=7,
    inner_residual=1e-9,
    metrics={"valid_accuracy": 0.5, "best_valid_loss": -math.inf},
    certificate={"error": math.inf, "is_certified": True, "missing": None},
)


def finished(
    dataset: str = "wine", per: str = "model", **data: object
) -> tuple[JobSpec, LoadedData, FinishedModel, dict]:
    spec = JobSpec.model_validate(
        {
            "data": {"dataset": f"builtin:{dataset}", **data},
            "regularizers": [{"kind": "l2", "strength": {"per": per}}],
        }
    )
    loaded = load(spec.data, BUILTIN_DATASETS[spec.data.dataset], None, loss=spec.loss, seed=spec.seed)
    problem = build_linear(spec, spec.model, loaded, device="cpu")
    raw = problem.space.initial(torch.float64, torch.device("cpu"))
    model = finish(problem, Answer(raw, problem.initial_weights(0)), build_terms(spec, spec.model), seed=spec.seed)
    return spec, loaded, model, natural_values(problem.space, raw)


def test_a_point_has_the_contracts_fields_and_no_number_that_json_lacks() -> None:
    body = point_body(POINT)
    assert json.loads(json.dumps(body, allow_nan=False)) == {
        "hyperparameters": {
            "l2": 0.25,
            "l2_2": {"size": 4, "min": 1.0, "median": 3.0, "max": 8.0, "norm": pytest.approx(85**0.5)},
        },
        "train_loss": 0.5,
        "valid_loss": "NaN",
        "hypergradient_norm": "Infinity",
        "metrics": {"valid_accuracy": 0.5, "best_valid_loss": "-Infinity"},
        "inner": {"iterations": 7, "residual": 1e-9},
        "certificate": {"error": "Infinity", "is_certified": True, "missing": None},
    }


def result_of(per: str) -> dict:
    spec, data, model, strengths = finished(per=per)
    evidence = Evidence(Verdict.NOT_CHECKED, "Not checked.", cost=Cost(inner_iterations=1))
    spent = Spent(wall_s=2.0, device_s=1.5, peak_memory_bytes=10, cost=Cost(5, 6, 7, 8))
    files = [FileRecord("weights.safetensors", "jobs/job_1/weights.safetensors", "ab", 3)]
    result = result_body(spec, data, strengths, model, evidence, spent=spent, files=files)
    assert json.loads(result_file(result)) == result
    return result


def test_a_result_has_the_contracts_fields() -> None:
    result = result_of("model")
    assert {"hyperparameters", "metrics", "calibration", "evidence", "cost", "files", "reproduce"} <= set(result)
    assert result["hyperparameters"] == {"l2": pytest.approx(0.01)}
    assert set(result["metrics"]) == {"train", "valid", "test"}
    assert {"loss", "accuracy", "nll", "brier", "ece"} <= set(result["metrics"]["test"])
    assert set(result["calibration"]) == {"valid", "test"}
    assert result["evidence"]["verdict"] == "not_checked"
    assert {"wall_s", "device_s", "inner_iterations", "hessian_vector_products", "peak_memory_bytes"} <= set(
        result["cost"]
    )
    assert result["cost"]["hessian_vector_products"] == 7
    assert result["cost"]["inner_iterations"] > 5 + 1
    # The key is where the service keeps the file, which is nobody's business.
    assert result["files"] == [{"name": "weights.safetensors", "sha256": "ab", "bytes": 3, "size_bytes": 3}]
    assert JobSpec.model_validate(result["reproduce"]["spec"]).data.dataset == "builtin:wine"
    assert {"hyperdial", "python", "torch", "numpy"} <= set(result["reproduce"]["versions"])


def test_a_block_of_strengths_says_what_each_is_for() -> None:
    block = result_of("feature")["hyperparameters"]["l2"]
    assert block["size"] == 13
    assert block["values"] == pytest.approx([0.01] * 13)
    assert block["names"][:2] == ["alcohol", "malic_acid"]
    assert result_of("class")["hyperparameters"]["l2"]["names"] == ["0", "1", "2"]
    assert result_of("parameter")["hyperparameters"]["l2"]["names"] is None


@pytest.mark.parametrize(("dataset", "loader"), [("wine", load_wine), ("breast_cancer", load_breast_cancer)])
@pytest.mark.parametrize("standardize", [True, False])
def test_the_weights_predict_from_raw_features(dataset: str, loader, standardize: bool) -> None:  # type: ignore[no-untyped-def]
    spec, data, model, _ = finished(dataset, standardize=standardize)
    raw, labels = loader(return_X_y=True)
    tensors = {name: tensor.numpy() for name, tensor in load_tensors(weights_file(spec, data, model)).items()}
    z = ((raw - tensors["mean"]) / tensors["scale"]) @ tensors["coef"].T + tensors["intercept"]
    predicted = z.argmax(1) if z.shape[1] > 1 else (z[:, 0] > 0).astype(int)
    assert data.parts.test is not None
    accuracy = (predicted == labels)[data.parts.test].mean()
    assert accuracy == pytest.approx(model.metrics["test"]["accuracy"])
    assert accuracy > 0.85


def test_equal_content_gives_equal_files() -> None:
    spec, data, model, _ = finished()
    program = (
        "import sys; from tests.workers.test_report import finished; from workers.report import weights_file; "
        "sys.stdout.buffer.write(weights_file(*finished()[:3]))"
    )
    # Another process hashes texts in another order.
    other = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, cwd=Path.cwd())
    assert other.stdout == weights_file(spec, data, model)


def test_the_weights_file_explains_itself(tmp_path) -> None:  # type: ignore[no-untyped-def]
    spec, data, model, _ = finished()
    path = tmp_path / "weights.safetensors"
    path.write_bytes(weights_file(spec, data, model))
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    assert json.loads(metadata["classes"]) == ["0", "1", "2"]
    assert json.loads(metadata["features"])[0] == {"name": "alcohol", "shape": []}
    assert metadata["target"] == "target"


def test_learned_strengths_are_kept_in_full() -> None:
    strengths = {"l2": torch.tensor(0.5, dtype=torch.float64), "l2_2": torch.arange(5000).double()}
    back = load_tensors(hyperparameters_file(strengths))
    assert set(back) == {"l2", "l2_2"}
    np.testing.assert_array_equal(back["l2_2"], strengths["l2_2"])
    assert back["l2"].dtype is torch.float64
