"""Jobs on networks."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import final

import torch
from torch import Tensor

from service.records import DatasetRecord, FileRecord, JsonObject
from service.spec.job import JobSpec
from service.spec.regularizers import L2, L2SP
from workers.build.names import strength_names
from workers.build.networks import NetworkSpec, TrainedSpec, build_network, build_network_method, build_trainer
from workers.build.transfer import GivenWeights, penalised, read_weights
from workers.calibration import calibration_body, calibrations, with_scores
from workers.data.load import LoadedData, load
from workers.learn.method import Answer, State, TrajectoryPoint, natural_values
from workers.learn.problem import Part
from workers.learn.problems.network import NetworkProblem
from workers.network_evidence import examine_network
from workers.report import (
    HYPERPARAMETERS_FILE,
    RESULT_FILE,
    WEIGHTS_FILE,
    Spent,
    any_result_body,
    described,
    hyperparameters_file,
    point_body,
    result_file,
    safetensors_file,
)
from workers.self_tuning import self_tuning_body
from workers.study import AbstractConclusion, AbstractStudy, AnyMethod


def begin_network(
    spec: JobSpec,
    model: TrainedSpec,
    dataset: DatasetRecord,
    path: Path | None,
    *,
    device: str,
    weights: Path | None = None,
) -> "NetworkStudy":
    """Return the study of a job on networks: see `BeginStudy`."""
    given = None if weights is None else read_weights(weights)
    scaler = None if given is None else given.scaler
    data = load(spec.data, dataset, path, loss=spec.loss, seed=spec.seed, scaler=scaler)
    return NetworkStudy(spec, model, data, given, device=device)


@final
class NetworkStudy(AbstractStudy):
    """A job on a network."""

    def __init__(
        self, spec: JobSpec, model: TrainedSpec, data: LoadedData, given: GivenWeights | None, *, device: str
    ) -> None:
        """Put the pieces together."""
        self._spec = spec
        self._model = model
        self._data = data
        self._problem = build_network(spec, model, data, given, device=device)
        self._method = build_network_method(spec, model, self._problem)

    @property
    def problem(self) -> NetworkProblem:
        """What is to be solved."""
        return self._problem

    @property
    def method(self) -> AnyMethod:
        """How."""
        return self._method

    def point(self, point: TrajectoryPoint) -> JsonObject:
        """Return the contract's point."""
        return point_body(point)

    def conclude(self, state: State) -> "NetworkConclusion":
        """Measure the network that the run has led to."""
        answer = self._method.answer(self._problem, state)
        return NetworkConclusion(self._spec, self._model, self._data, self._problem, self._method, answer, state)


@final
class NetworkConclusion(AbstractConclusion):
    """The strengths that were learned, and the network that was trained along with them."""

    def __init__(
        self,
        spec: JobSpec,
        model: TrainedSpec,
        data: LoadedData,
        problem: NetworkProblem,
        method: AnyMethod,
        answer: Answer,
        state: State,
    ) -> None:
        """Measure the network."""
        self._spec = spec
        self._model = model
        self._data = data
        self._problem = problem
        self._method = method
        self._answer = answer
        self._state = state
        self._strengths = natural_values(problem.space, answer.raw)
        parts = [part for part in Part if part in problem.parts()]
        self._calibration = calibrations(problem, answer.weights, parts)
        metrics = {part.value: problem.evaluate(answer.weights, part) for part in parts}
        self._metrics = with_scores(metrics, self._calibration)

    def files(self) -> Mapping[str, bytes]:
        """Return the weights and the strengths."""
        weights = self._problem.named_weights(self._answer.weights)
        return {
            WEIGHTS_FILE: network_file(self._spec, self._model, self._data, weights),
            HYPERPARAMETERS_FILE: hyperparameters_file(self._strengths),
        }

    def result(self, *, wall_seconds: float, peak_memory_bytes: int, files: Sequence[FileRecord]) -> JsonObject:
        """Check the answer, and return the contract's result."""
        problem, data = self._problem, self._data
        evidence = examine_network(problem, build_trainer(self._model, problem), self._answer.raw, self._spec)
        names = network_entry_names(self._spec, self._problem)
        result = any_result_body(
            self._spec,
            {name: described(value, names.get(name)) for name, value in self._strengths.items()},
            self._metrics,
            evidence.body(),
            {
                "trained_on": "train",
                "rows": problem.train.rows,
                "weights": problem.network.size,
                "features": data.task.width,
                "classes": None if data.class_names is None else list(data.class_names),
            },
            spent=Spent(wall_seconds, wall_seconds, peak_memory_bytes, self._state.cost + evidence.cost),
            files=files,
            calibration=calibration_body(self._calibration),
        )
        tuned = self_tuning_body(self._method, problem, self._state)
        return result if tuned is None else {**result, "self_tuning": tuned}

    def result_file(self, result: JsonObject) -> tuple[str, bytes]:
        """Return `result.json`."""
        return RESULT_FILE, result_file(result)


def network_entry_names(spec: JobSpec, problem: NetworkProblem) -> dict[str, list[str]]:
    """Return what each strength is for, by the penalties' names; none of penalties with a single one."""
    named = {}
    for name, regularizer in zip(strength_names(spec), spec.regularizers, strict=True):
        if isinstance(regularizer, L2 | L2SP):
            found = penalised(spec.model, problem.network, regularizer)
            if found.names:
                named[name] = list(found.names)
    return named


def network_file(
    spec: JobSpec, model: NetworkSpec, data: LoadedData, weights: Mapping[str, Tensor], *, trained_on: str = "train"
) -> bytes:
    """`weights.safetensors`: all that is needed to predict from raw features.

    Tensors: the parameters and normalization statistics by their names in the network, and `mean`, `scale` [d] of the
    features, of which the network sees (x − mean) / scale. The metadata hold the model's specification, the classes,
    the features in their order, and the target.
    """
    width = data.task.width
    like = torch.zeros(width, dtype=torch.float64)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    tensors["mean"] = like if data.scaler is None else torch.as_tensor(data.scaler.mean)
    tensors["scale"] = torch.ones_like(like) if data.scaler is None else torch.as_tensor(data.scaler.scale)
    features = [{"name": column.name, "shape": list(column.shape)} for column in data.task.features]
    metadata = {
        "format": "hyperdial/network/1",
        "model": model.model_dump_json(),
        "outputs": "network((x - mean) / scale)",
        "loss": spec.loss.value,
        "target": data.task.target.name,
        "features": json.dumps(features, ensure_ascii=False),
        "classes": json.dumps(data.class_names, ensure_ascii=False),
        "trained_on": trained_on,
    }
    return safetensors_file({name: tensor.contiguous() for name, tensor in tensors.items()}, metadata)
