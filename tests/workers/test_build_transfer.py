"""Jobs that start from uploaded weights, from the specification to the result."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save

from service.admission import admit
from service.builtin import BUILTIN_DATASETS
from service.files import new_dataset_key
from service.records import DatasetRecord, JobStatus, JsonObject
from service.spec.job import JobSpec
from service.store import NewDataset
from tests.workers.fleet import REAL, Fleet
from workers.build.transfer import read_weights
from workers.data.describe import describe
from workers.data.errors import BadData
from workers.learn.method import run
from workers.learn.models.network import Network
from workers.learn.problems.network import NetworkProblem
from workers.study import AbstractStudy
from workers.workshop import begin_study

DIGITS = BUILTIN_DATASETS["builtin:digits"]
MLP: JsonObject = {"kind": "mlp", "widths": [16, 8], "activation": "tanh"}
CNN: JsonObject = {"kind": "cnn", "image": [8, 8], "channels": [3], "widths": [6]}
QUICK: JsonObject = {"batch_size": 256, "epochs": 2}


def network_of(backbone: JsonObject) -> Network:
    """The network of a job from scratch on the digits."""
    spec = JobSpec.model_validate({"data": {"dataset": DIGITS.id}, "model": backbone})
    problem = begin_study(spec, DIGITS, None, device="cpu").problem
    assert isinstance(problem, NetworkProblem)
    return problem.network


def written(tmp_path: Path, backbone: JsonObject, **others: torch.Tensor) -> Path:
    """A file of weights of a backbone, with those of a head as well."""
    network, like = network_of(backbone), torch.zeros(0, dtype=torch.float64)
    named = network.named(network.initial(9, like=like), network.initial_buffers(like=like))
    path = tmp_path / "weights.safetensors"
    path.write_bytes(save({name: tensor.contiguous() for name, tensor in {**named, **others}.items()}))
    return path


def record(path: Path) -> DatasetRecord:
    found = describe(path, "safetensors", limit_bytes=2**24)
    return replace(DIGITS, id="ds_w", format="safetensors", rows=0, columns=tuple(found.columns))


def job_of(backbone: JsonObject | None, *, model: JsonObject | None = None, **parts: object) -> JobSpec:
    start = {} if backbone is None else {"backbone": backbone, "weights": "ds_w"}
    given = {"kind": "transfer", **QUICK, **start, **(model or {})}
    return JobSpec.model_validate({"data": {"dataset": DIGITS.id}, "model": given, **parts})


def study_of(spec: JobSpec, path: Path | None) -> AbstractStudy:
    admission = admit(spec, DIGITS, weights=None if path is None else record(path))
    assert admission.is_admitted, admission.refusals
    return begin_study(spec, DIGITS, None, device="cpu", weights=path)


def finished(spec: JobSpec, study: AbstractStudy) -> tuple[JsonObject, dict[str, bytes]]:
    state = study.method.init(study.problem, seed=spec.seed)
    for after, _ in run(study.method, study.problem, state, max_steps=spec.budget.outer_steps):
        state = after
    conclusion = study.conclude(state)
    files = dict(conclusion.files())
    return conclusion.result(wall_seconds=1.0, peak_memory_bytes=1, files=[]), files


def problem_of(study: AbstractStudy) -> NetworkProblem:
    assert isinstance(study.problem, NetworkProblem)
    return study.problem


@pytest.mark.parametrize("backbone", [MLP, CNN], ids=["mlp", "cnn"])
def test_the_backbone_starts_from_the_file_and_the_head_does_not(tmp_path: Path, backbone: JsonObject) -> None:
    path = written(tmp_path, backbone)
    problem = problem_of(study_of(job_of(backbone), path))
    given = load_tensors(path.read_bytes())
    named = problem.named_weights(problem.initial_weights(0))
    last = max(int(name.split(".")[0]) for name in named)
    for name, tensor in named.items():
        same = torch.equal(tensor, given[name].to(tensor.dtype))
        assert same != (name == f"{last}.linear.weight"), name
    assert [regularizer.name for regularizer in problem.regularizers] == ["l2_sp", "l2"]
    at_start = problem.initial_weights(0)
    hyper = problem.space.constrain(problem.space.initial(torch.float32, torch.device("cpu")))
    assert float(problem.regularizers[0](at_start, hyper)) == 0.0
    assert float(problem.regularizers[1](at_start, hyper)) > 0.0


FEW: JsonObject = {"kind": "implicit", "inner_steps": 5}


def test_it_is_learned_and_checked(tmp_path: Path) -> None:
    spec = job_of(MLP, method=FEW, budget={"outer_steps": 3})
    result, files = finished(spec, study_of(spec, written(tmp_path, MLP)))
    evidence = result["evidence"]
    assert evidence["verdict"] in ("optimum", "descending", "at_bound")
    assert len(evidence["retrained"]["seeds"]) == 3
    assert set(result["hyperparameters"]) == {"l2_sp", "l2"}
    assert {(one["name"], one["factor"]) for one in evidence["neighbours"]} == {
        (name, factor) for name in ("l2_sp", "l2") for factor in (0.5, 2.0)
    }
    assert set(result["metrics"]) == {"train", "valid", "test"}
    json.dumps(result, allow_nan=False)
    assert "0.linear.weight" in load_tensors(files["weights.safetensors"])


def test_the_answer_of_one_job_is_the_start_of_another(tmp_path: Path) -> None:
    source = JobSpec.model_validate(
        {
            "data": {"dataset": DIGITS.id, "features": ["pixel_3_3", "pixel_4_4"]},
            "model": {**MLP, **QUICK},
            "method": FEW,
            "budget": {"outer_steps": 2},
            "verify": False,
        }
    )
    path = tmp_path / "weights.safetensors"
    path.write_bytes(finished(source, begin_study(source, DIGITS, None, device="cpu"))[1]["weights.safetensors"])
    given = load_tensors(path.read_bytes())
    # Other rows, hence other means: the features are scaled as those were that the weights were trained on.
    data = {**source.data.model_dump(), "split": {"kind": "holdout", "shuffle": False}}
    spec = job_of(MLP, data=data, method=FEW, budget={"outer_steps": 2}, verify=False)
    study = study_of(spec, path)
    problem = problem_of(study)
    raw = problem.train.x.double() * given["scale"] + given["mean"]
    assert float((raw - raw.round()).abs().max()) < 1e-4  # pixels are whole numbers
    named = problem.named_weights(problem.initial_weights(0))
    torch.testing.assert_close(named["1.linear.weight"], given["1.linear.weight"])
    again = tmp_path / "again.safetensors"
    again.write_bytes(finished(spec, study)[1]["weights.safetensors"])
    assert admit(spec, DIGITS, weights=record(again)).is_admitted
    found = load_tensors(again.read_bytes())
    for name in ("mean", "scale"):
        torch.testing.assert_close(found[name], given[name])
    plain = job_of(MLP, data={**data, "standardize": False})
    assert torch.equal(problem_of(study_of(plain, path)).train.x, problem_of(study_of(plain, path)).train.x.round())


@pytest.mark.parametrize("per", ["model", "layer", "tensor"])
@pytest.mark.parametrize("biases", [False, True])
@pytest.mark.parametrize(
    "backbone",
    [MLP, {**MLP, "normalization": "batch"}, {**MLP, "normalization": "layer"}, {**CNN, "normalization": "batch"}],
    ids=["mlp", "mlp-batch", "mlp-layer", "cnn-batch"],
)
def test_there_are_as_many_strengths_and_weights_as_were_announced(
    tmp_path: Path, backbone: JsonObject, per: str, biases: bool
) -> None:
    path = written(tmp_path, backbone)
    for kinds in (["l2_sp", "l2"], ["l2_sp"], ["l2"]):
        regularizers = [{"kind": kind, "biases": biases, "strength": {"per": per}} for kind in kinds]
        spec = job_of(backbone, regularizers=regularizers)
        problem, estimate = problem_of(study_of(spec, path)), admit(spec, DIGITS, weights=record(path)).estimate
        assert estimate is not None
        assert (estimate.strengths, estimate.weights) == (problem.space.size, problem.network.size)


def test_every_tensor_of_a_network_is_asked_for_by_its_name_and_shape(tmp_path: Path) -> None:
    for backbone in ({**MLP, "normalization": "batch"}, {**CNN, "normalization": "batch"}):
        path = written(tmp_path, backbone)
        whole = record(path)
        spec = job_of(backbone)
        network = network_of(backbone)
        last = max(slot.layer for slot in network.slots)
        for slot in network.slots:
            rest = replace(whole, columns=tuple(column for column in whole.columns if column.name != slot.name))
            refusals = admit(spec, DIGITS, weights=rest).refusals
            expected = [f"the weights lack {slot.name!r}, of shape {list(slot.shape)}"] if slot.layer < last else []
            assert [refusal.detail for refusal in refusals] == expected


def test_strengths_of_layers_have_the_names_of_their_part(tmp_path: Path) -> None:
    spec = job_of(
        MLP,
        regularizers=[
            {"kind": "l2_sp", "strength": {"per": "layer"}},
            {"kind": "l2", "biases": True, "strength": {"per": "tensor"}},
        ],
        method=FEW,
        budget={"outer_steps": 2},
        verify=False,
    )
    found = finished(spec, study_of(spec, written(tmp_path, MLP)))[0]["hyperparameters"]
    assert found["l2_sp"]["names"] == ["0", "1"]
    assert found["l2"]["names"] == ["2.linear.weight", "2.linear.bias"]


def test_a_head_alone_is_trained_on_features() -> None:
    spec = job_of(None, model={"epochs": 20}, budget={"outer_steps": 3}, verify=False)
    result, files = finished(spec, study_of(spec, None))
    assert set(load_tensors(files["weights.safetensors"])) == {"0.linear.weight", "0.linear.bias", "mean", "scale"}
    assert result["metrics"]["test"]["accuracy"] > 0.8


def test_half_precision_is_taken(tmp_path: Path) -> None:
    path = written(tmp_path, MLP)
    path.write_bytes(save({name: tensor.bfloat16() for name, tensor in load_tensors(path.read_bytes()).items()}))
    problem = problem_of(study_of(job_of(MLP), path))
    named = problem.named_weights(problem.initial_weights(0))
    assert torch.equal(named["0.linear.weight"], load_tensors(path.read_bytes())["0.linear.weight"].float())


@pytest.mark.parametrize("scale", [0.0, -1.0, np.nan])
def test_a_scale_that_is_none_is_refused(tmp_path: Path, scale: float) -> None:
    path = written(tmp_path, MLP, mean=torch.zeros(64), scale=torch.full((64,), scale))
    with pytest.raises(BadData, match="every scale positive"):
        read_weights(path)


def test_a_file_that_has_changed_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"nonsense")
    with pytest.raises(BadData, match="upload them again"):
        read_weights(path)


def test_a_real_worker_fetches_both_datasets(tmp_path: Path) -> None:
    path = written(tmp_path, MLP)
    with Fleet(tmp_path, command=REAL) as fleet:
        content = path.read_bytes()
        key = new_dataset_key(hashlib.sha256(content).hexdigest())
        fleet.store.datasets.expect_file(key)
        sha256, size = fleet.files.put(key, path)
        new = NewDataset(
            id="ds_00000000000000000000000001",
            name="weights",
            format="safetensors",
            rows=0,
            columns=record(path).columns,
            is_sparse=False,
            nonzeros=None,
            sha256=sha256,
            size_bytes=size,
            key=key,
        )
        dataset, _ = fleet.store.datasets.create(new, lost=None)
        spec = job_of(MLP, model={"weights": dataset.id}, budget={"outer_steps": 3}, verify=False)
        fleet.worker()
        job_id = fleet.store.jobs.create(spec).id
        fleet.reaches(job_id, JobStatus.SUCCEEDED, seconds=120.0)
        assert len(fleet.trajectory(job_id)) == 3
        assert {"weights.safetensors", "result.json"} < {file.name for file in fleet.store.jobs.files(job_id)}
