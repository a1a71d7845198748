"""Jobs on networks, from the specification to the result."""

import json

import pytest
import torch
from safetensors.torch import load as load_tensors

from service.admission import admit
from service.builtin import BUILTIN_DATASETS
from service.records import JsonObject
from service.spec.job import JobSpec
from workers.learn.method import run
from workers.studies.network import NetworkStudy
from workers.workshop import begin_study

DIGITS = BUILTIN_DATASETS["builtin:digits"]
SMALL = {"kind": "mlp", "widths": [16], "epochs": 3}


def study_of(**spec: object) -> tuple[JobSpec, NetworkStudy]:
    job = JobSpec.model_validate({"data": {"dataset": "builtin:digits"}, "model": SMALL, **spec})
    assert admit(job, DIGITS).is_admitted
    study = begin_study(job, DIGITS, None, device="cpu")
    assert isinstance(study, NetworkStudy)
    return job, study


def finished(job: JobSpec, study: NetworkStudy) -> tuple[JsonObject, dict[str, bytes]]:
    state = study.method.init(study.problem, seed=job.seed)
    for after, _ in run(study.method, study.problem, state, max_steps=job.budget.outer_steps):
        state = after
    conclusion = study.conclude(state)
    files = dict(conclusion.files())
    return conclusion.result(wall_seconds=1.0, peak_memory_bytes=1, files=[]), files


@pytest.mark.parametrize("method", ["implicit", "random", "tpe", "grid"])
def test_a_network_is_learned_and_checked(method: str) -> None:
    job, study = study_of(
        method={"kind": method, **({"points": 3} if method == "grid" else {})}, budget={"outer_steps": 4}
    )
    result, _ = finished(job, study)
    evidence = result["evidence"]
    assert evidence["verdict"] in ("optimum", "descending", "at_bound")
    assert len(evidence["retrained"]["seeds"]) == 3
    assert {(one["name"], one["factor"]) for one in evidence["neighbours"]} == {("l2", 0.5), ("l2", 2.0)}
    assert set(result["metrics"]) == {"train", "valid", "test"}
    json.dumps(result, allow_nan=False)


@pytest.mark.parametrize("per", ["model", "layer", "tensor", "parameter"])
@pytest.mark.parametrize("normalization", ["none", "batch", "layer"])
@pytest.mark.parametrize("biases", [False, True])
def test_there_are_as_many_strengths_and_weights_as_were_announced(per: str, normalization: str, biases: bool) -> None:
    job, study = study_of(
        model={"kind": "mlp", "widths": [7, 5], "normalization": normalization},
        regularizers=[{"kind": "l2", "biases": biases, "strength": {"per": per}}],
    )
    estimate = admit(job, DIGITS).estimate
    assert estimate is not None
    assert (estimate.strengths, estimate.weights) == (study.problem.space.size, study.problem.network.size)


def test_strengths_of_layers_have_names() -> None:
    job, study = study_of(
        regularizers=[{"kind": "l2", "strength": {"per": "tensor"}}], budget={"outer_steps": 2}, verify=False
    )
    result, _ = finished(job, study)
    assert result["hyperparameters"]["l2"]["names"] == ["0.linear.weight", "1.linear.weight"]
    assert result["evidence"]["verdict"] == "not_checked"


def test_the_weights_file_predicts_what_was_measured() -> None:
    job, study = study_of(
        model={"kind": "mlp", "widths": [16], "activation": "tanh"}, budget={"outer_steps": 3}, verify=False
    )
    result, files = finished(job, study)
    w = load_tensors(files["weights.safetensors"])
    problem = study.problem
    rows = problem.test
    assert rows is not None
    hidden = torch.tanh(rows.x @ w["0.linear.weight"].T + w["0.linear.bias"])
    outputs = hidden @ w["1.linear.weight"].T + w["1.linear.bias"]
    loss = torch.nn.functional.cross_entropy(outputs, rows.y)
    assert float(loss) == pytest.approx(result["metrics"]["test"]["loss"], rel=1e-4)
    assert w["mean"].shape == w["scale"].shape == (64,)


def test_a_specification_says_how_a_network_is_trained() -> None:
    from workers.build.networks import build_trainer
    from workers.learn.training.optimizers import SGD, Adam
    from workers.learn.training.schedule import Constant, Cosine

    sgd = {"kind": "sgd", "learning_rate": 0.2, "momentum": 0.5, "nesterov": True}
    job, study = study_of(model={**SMALL, "optimizer": sgd, "schedule": "cosine", "batch_size": 100, "epochs": 2})
    trainer = build_trainer(job.model, study.problem)
    assert trainer.training.optimizer == SGD(0.2, 0.5, nesterov=True)
    assert trainer.steps == 2 * (study.problem.train.rows // 100)
    assert trainer.training.schedule == Cosine(total=trainer.steps)
    job, study = study_of()
    trainer = build_trainer(job.model, study.problem)
    assert (trainer.training.optimizer, trainer.training.schedule) == (Adam(1e-3), Constant())


def test_the_same_job_is_the_same_run() -> None:
    def weights() -> torch.Tensor:
        job, study = study_of(budget={"outer_steps": 3}, verify=False)
        state = study.method.init(study.problem, seed=job.seed)
        for after, _ in run(study.method, study.problem, state, max_steps=3):
            state = after
        return study.method.answer(study.problem, state).weights

    assert torch.equal(weights(), weights())
