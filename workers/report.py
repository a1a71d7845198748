"""What a job tells the world: points, a result, and files."""

import json
import platform
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Final

import torch
from pydantic import JsonValue
from safetensors.torch import save
from torch import Tensor

from service.numbers import jsonable
from service.records import FileRecord, JsonObject
from service.spec.hyperparameters import Granularity
from service.spec.job import JobSpec
from service.spec.regularizers import L1, L2
from service.version import version as own_version
from workers.build.names import strength_names
from workers.calibration import calibration_body, with_scores
from workers.data.load import LoadedData, feature_names
from workers.evidence import Evidence
from workers.finish import FinishedModel
from workers.learn.cost import Cost
from workers.learn.method import TrajectoryPoint

WEIGHTS_FILE: Final = "weights.safetensors"
HYPERPARAMETERS_FILE: Final = "hyperparameters.safetensors"
RESULT_FILE: Final = "result.json"

_MOST_VALUES: Final = 1000
"""Strengths of one block that a result lists one by one; the file has them all."""


@dataclass(frozen=True)
class Spent:
    """What a job took, over all its attempts where that is known."""

    wall_s: float
    device_s: float
    peak_memory_bytes: int
    cost: Cost
    """Of the method's run, until checks and the final training are added to it."""


def point_body(point: TrajectoryPoint) -> JsonObject:
    """A trajectory point as it is stored, without what the store adds (`step`, `attempt`, `at`, `elapsed_s`)."""
    certificate: JsonValue = None
    if point.certificate is not None:
        certificate = {
            name: jsonable(value) if isinstance(value, float) else value for name, value in point.certificate.items()
        }
    return {
        "hyperparameters": {name: _summary(value) for name, value in point.hyperparameters.items()},
        "train_loss": jsonable(point.train_loss),
        "valid_loss": None if point.valid_loss is None else jsonable(point.valid_loss),
        "hypergradient_norm": jsonable(point.hypergradient_norm),
        "metrics": _numbers(point.metrics),
        "inner": {"iterations": point.inner_iterations, "residual": jsonable(point.inner_residual)},
        "certificate": certificate,
    }


def result_body(
    spec: JobSpec,
    data: LoadedData,
    strengths: Mapping[str, Tensor],
    model: FinishedModel,
    evidence: Evidence,
    *,
    spent: Spent,
    files: Iterable[FileRecord],
) -> JsonObject:
    """The result of a job that has succeeded.

    Args:
        spec: the job.
        data: what it learned from.
        strengths: natural values by name, `natural_values(problem.space, answer.raw)`.
        model: the final model.
        evidence: of the answer.
        spent: what the run took.
        files: those that are stored already.
    """
    return any_result_body(
        spec,
        {name: described(value, entry_names(name, value, spec, data)) for name, value in strengths.items()},
        with_scores(model.metrics, model.calibration),
        evidence.body(),
        {
            "trained_on": model.trained_on,
            "rows": model.rows,
            "strength_factor": model.strength_factor,
            "features": data.task.width,
            "classes": None if data.class_names is None else list(data.class_names),
        },
        spent=replace(spent, cost=spent.cost + evidence.cost + model.cost),
        files=files,
        calibration=calibration_body(model.calibration),
    )


def any_result_body(
    spec: JobSpec,
    hyperparameters: JsonObject,
    metrics: Mapping[str, Mapping[str, float]],
    evidence: JsonObject,
    model: JsonObject,
    *,
    spent: Spent,
    files: Iterable[FileRecord],
    calibration: JsonObject | None = None,
) -> JsonObject:
    """The result of a job on any model that has succeeded.

    Args:
        spec: the job.
        hyperparameters: what was learned: each `described`, by name.
        metrics: part → name → value.
        evidence: of the answer.
        model: what is to be known of the final model.
        spent: what everything took, checks and the final training included.
        files: those that are stored already.
        calibration: of its predictions, a `calibration_body`; None where they are numbers and nothing else.
    """
    return {
        "hyperparameters": hyperparameters,
        "metrics": {part: _numbers(values) for part, values in metrics.items()},
        "calibration": calibration,
        "evidence": evidence,
        "model": model,
        "cost": {
            "wall_s": jsonable(spent.wall_s),
            "device_s": jsonable(spent.device_s),
            "inner_iterations": spent.cost.inner_iterations,
            "gradients": spent.cost.gradients,
            "hessian_vector_products": spent.cost.hessian_vector_products,
            "peak_memory_bytes": spent.peak_memory_bytes,
        },
        # `bytes` as everywhere in the API; `size_bytes` was there first.
        "files": [
            {"name": file.name, "sha256": file.sha256, "bytes": file.size_bytes, "size_bytes": file.size_bytes}
            for file in files
        ],
        "reproduce": {"spec": spec.model_dump(mode="json"), "seed": spec.seed, "versions": dict(versions())},
    }


def weights_file(spec: JobSpec, data: LoadedData, model: FinishedModel) -> bytes:
    """`weights.safetensors`: all that is needed to predict from raw features.

    Tensors: `coef` [c, d], `intercept` [c], and `mean`, `scale` [d]; outputs are ((x − mean) / scale) coefᵀ +
    intercept. Two classes have one output, which is positive for the second of them; more have one each, and the
    largest wins. The metadata name the classes, the features in their order, and the target.
    """
    coef = model.weights["weight"].double()
    tensors = {
        "coef": coef,
        "intercept": model.weights["bias"].double() if "bias" in model.weights else coef.new_zeros(coef.shape[0]),
        "mean": coef.new_zeros(coef.shape[1]) if data.scaler is None else torch.as_tensor(data.scaler.mean),
        "scale": coef.new_ones(coef.shape[1]) if data.scaler is None else torch.as_tensor(data.scaler.scale),
    }
    features = [{"name": column.name, "shape": list(column.shape)} for column in data.task.features]
    metadata = {
        "format": "hyperdial/linear/1",
        "outputs": "((x - mean) / scale) @ coef.T + intercept",
        "loss": spec.loss.value,
        "target": data.task.target.name,
        "features": json.dumps(features, ensure_ascii=False),
        "classes": json.dumps(data.class_names, ensure_ascii=False),
        "trained_on": model.trained_on,
    }
    return safetensors_file({name: tensor.contiguous() for name, tensor in tensors.items()}, metadata)


def hyperparameters_file(strengths: Mapping[str, Tensor]) -> bytes:
    """`hyperparameters.safetensors`: every learned strength by name, float64, in natural units."""
    tensors = {name: value.detach().cpu().double().contiguous() for name, value in strengths.items()}
    return safetensors_file(tensors, {"format": "hyperdial/hyperparameters/1", "units": "natural"})


def result_file(result: JsonObject) -> bytes:
    """`result.json`: the result, for people too; of the files it names those that were stored before it."""
    return (json.dumps(result, ensure_ascii=False, allow_nan=False, indent=2) + "\n").encode()


def versions() -> Mapping[str, str]:
    """What the numbers depend on."""
    packages = {name: version(name) for name in ("numpy", "scipy", "scikit-learn", "torch")}
    return {"hyperdial": own_version(), "python": platform.python_version(), **packages}


def safetensors_file(tensors: dict[str, Tensor], metadata: dict[str, str]) -> bytes:
    """Return a safetensors file that is the same, byte for byte, whenever its content is.

    The library writes metadata in an order that changes from process to process, and with it the file's hash.
    """
    data = bytes(save(tensors, metadata))
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8:end]), ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # the format aligns what follows
    return len(header).to_bytes(8, "little") + header + data[end:]


def _summary(value: Tensor) -> JsonValue:
    if value.ndim == 0:
        return jsonable(float(value))
    flat = value.detach().double().reshape(-1)
    return {
        "size": flat.numel(),
        "min": jsonable(float(flat.min())),
        "median": jsonable(float(flat.quantile(0.5)) if flat.numel() < 2**24 else float(flat.median())),
        "max": jsonable(float(flat.max())),
        "norm": jsonable(float(torch.linalg.vector_norm(flat))),
    }


def described(value: Tensor, names: list[str] | None) -> JsonValue:
    """Return a number, or of an array its summary, its values if they are not too many, and what they are for."""
    summary = _summary(value)
    if not isinstance(summary, dict) or value.numel() > _MOST_VALUES:
        return summary
    values = [jsonable(number) for number in value.detach().double().reshape(-1).tolist()]
    return {**summary, "values": list(values), "names": None if names is None else list(names)}


def entry_names(name: str, value: Tensor, spec: JobSpec, data: LoadedData) -> list[str] | None:
    """What each strength of a block is for; None for strengths per parameter, class after class in each feature."""
    if value.ndim == 0 or value.numel() > _MOST_VALUES:
        return None
    regularizer = dict(zip(strength_names(spec), spec.regularizers, strict=True))[name]
    match regularizer.strength.per if isinstance(regularizer, L2 | L1) else None:
        case Granularity.FEATURE:
            biases = ["intercept"] if value.numel() > data.task.width else []
            return [*feature_names(data.task), *biases]
        case Granularity.CLASS if data.class_names is not None and len(data.class_names) == value.numel():
            return list(data.class_names)
        case _:
            return None


def _numbers(values: Mapping[str, float]) -> JsonObject:
    return {name: jsonable(value) for name, value in values.items()}
