"""Jobs without validation rows: an evidence, or a bound of it, says which strengths are best."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast, final

from torch import Tensor

from service.numbers import jsonable
from service.records import DatasetRecord, FileRecord, JsonObject
from service.spec.job import JobSpec
from service.spec.methods import ELBo
from service.spec.models import LinearModel
from workers.build.elbo import build_evidence_method
from workers.build.linear import build_linear
from workers.build.networks import NetworkSpec, build_network
from workers.build.transfer import GivenWeights, read_weights
from workers.calibration import AnyCalibration, calibration_body, calibrations, with_scores
from workers.data.load import LoadedData, load
from workers.elbo_evidence import examine_elbo
from workers.finish import FinishedModel
from workers.learn.calibration import gaussian_calibration
from workers.learn.cost import Cost
from workers.learn.evidence_profile import EvidenceMethod
from workers.learn.losses.squared import Squared
from workers.learn.method import State, TrajectoryPoint, natural_values
from workers.learn.models.random_features import RandomFeatures
from workers.learn.posterior import Summary, summary
from workers.learn.problem import Part
from workers.learn.problems.linear import LinearProblem
from workers.learn.problems.network import NetworkProblem
from workers.report import (
    HYPERPARAMETERS_FILE,
    RESULT_FILE,
    WEIGHTS_FILE,
    Spent,
    any_result_body,
    described,
    entry_names,
    hyperparameters_file,
    point_body,
    result_file,
    weights_file,
)
from workers.studies.network import network_entry_names, network_file
from workers.study import AbstractConclusion, AbstractStudy, AnyMethod

_TRAINED_ON = "train+valid"


def begin_elbo(
    spec: JobSpec,
    model: NetworkSpec,
    method: ELBo,
    dataset: DatasetRecord,
    path: Path | None,
    *,
    device: str,
    weights: Path | None = None,
) -> "ElboStudy":
    """Return the study of a job whose method is `elbo`: see `BeginStudy`."""
    given = None if weights is None else read_weights(weights)
    scaler = None if given is None else given.scaler
    data = load(spec.data, dataset, path, loss=spec.loss, seed=spec.seed, holds_out=False, scaler=scaler)
    return ElboStudy(spec, model, method, data, given, device=device)


@final
class ElboStudy(AbstractStudy):
    """A job whose method is `elbo`."""

    def __init__(
        self,
        spec: JobSpec,
        model: NetworkSpec,
        method: ELBo,
        data: LoadedData,
        given: GivenWeights | None,
        *,
        device: str,
    ) -> None:
        """Put the pieces together."""
        self._spec = spec
        self._model = model
        self._data = data
        self._problem: LinearProblem | NetworkProblem
        if isinstance(model, LinearModel):
            self._problem = build_linear(spec, model, data, device=device)
        else:
            self._problem = build_network(spec, model, data, given, device=device)
        self._method = build_evidence_method(spec, method)

    @property
    def problem(self) -> LinearProblem | NetworkProblem:
        """What is to be solved."""
        return self._problem

    @property
    def method(self) -> AnyMethod:
        """How."""
        return cast("AnyMethod", self._method)

    def point(self, point: TrajectoryPoint) -> JsonObject:
        """Return the contract's point."""
        return point_body(point)

    def conclude(self, state: State) -> "ElboConclusion":
        """Return the posterior that the run has led to; nothing is trained anew."""
        return ElboConclusion(self._spec, self._model, self._data, self._problem, self._method, state)


@final
class ElboConclusion(AbstractConclusion):
    """The strengths that were learned, and the model whose weights are the posterior's means."""

    def __init__(
        self,
        spec: JobSpec,
        model: NetworkSpec,
        data: LoadedData,
        problem: LinearProblem | NetworkProblem,
        method: EvidenceMethod,
        state: State,
    ) -> None:
        """Measure the model."""
        self._spec = spec
        self._model = model
        self._data = data
        self._problem = problem
        self._method = method
        self._cost = state.cost
        self._answer = cast("AnyMethod", method).answer(problem, state)
        self._summary = summary(method, problem, state, seed=spec.seed)
        self._strengths = natural_values(problem.space, self._answer.raw)
        parts = [part for part in Part if part in problem.parts()]
        self._calibration = _calibrations(problem, self._summary, self._answer.weights, parts)
        metrics = {part.value: problem.evaluate(self._answer.weights, part) for part in parts}
        self._metrics = with_scores(metrics, self._calibration)

    def files(self) -> Mapping[str, bytes]:
        """Return the weights and the strengths."""
        return {WEIGHTS_FILE: self._weights_file(), HYPERPARAMETERS_FILE: hyperparameters_file(self._strengths)}

    def result(self, *, wall_seconds: float, peak_memory_bytes: int, files: Sequence[FileRecord]) -> JsonObject:
        """Check the answer, and return the contract's result."""
        evidence = examine_elbo(self._method, self._problem, self._answer, self._summary, self._spec)
        data = self._data
        return any_result_body(
            self._spec,
            {name: described(value, self._names(name, value)) for name, value in self._strengths.items()},
            self._metrics,
            evidence.body(),
            {
                "trained_on": _TRAINED_ON,
                "rows": len(data.parts.train),
                "weights": self._answer.weights.numel(),
                "features": data.task.width,
                "classes": None if data.class_names is None else list(data.class_names),
                "posterior": _posterior_body(self._spec, self._summary),
            },
            spent=Spent(wall_seconds, wall_seconds, peak_memory_bytes, self._cost + evidence.cost),
            files=files,
            calibration=calibration_body(self._calibration),
        )

    def result_file(self, result: JsonObject) -> tuple[str, bytes]:
        """Return `result.json`."""
        return RESULT_FILE, result_file(result)

    def _names(self, name: str, value: Tensor) -> list[str] | None:
        if isinstance(self._problem, LinearProblem):
            return entry_names(name, value, self._spec, self._data)
        return network_entry_names(self._spec, self._problem).get(name)

    def _weights_file(self) -> bytes:
        problem, weights = self._problem, self._problem.named_weights(self._answer.weights)
        if isinstance(problem, LinearProblem):
            weights = {name: tensor.detach().cpu() for name, tensor in weights.items()}
            rows = len(self._data.parts.train)
            return weights_file(self._spec, self._data, FinishedModel(weights, {}, _TRAINED_ON, rows, 1.0, Cost()))
        module = problem.network.module
        if isinstance(module, RandomFeatures):
            weights = {**weights, "frequencies": module.frequencies, "phases": module.phases}
        return network_file(self._spec, self._model, self._data, weights, trained_on=_TRAINED_ON)


def _calibrations(
    problem: LinearProblem | NetworkProblem, found: Summary, w: Tensor, parts: Sequence[Part]
) -> dict[str, AnyCalibration]:
    if not isinstance(problem.loss, Squared):
        return calibrations(problem, w, parts)
    result: dict[str, AnyCalibration] = {}
    for part in parts:
        spread = found.spread(part)
        if spread is not None:
            mean, y = problem.outputs_on(w, part)
            std = spread if spread.ndim == mean.ndim else spread[:, None]
            result[part.value] = gaussian_calibration(mean, std, y.view(mean.shape))
    return result


def _posterior_body(spec: JobSpec, found: Summary) -> JsonObject:
    assert isinstance(spec.method, ELBo)  # noqa: S101 (by `begin_elbo`)
    scale = None if found.scale is None else float(found.scale.double().square().mean().sqrt())
    return {
        "kind": spec.method.posterior.value,
        "kappa": jsonable(found.kappa),
        "objective": jsonable(found.objective),
        "log_evidence": None if found.log_evidence is None else jsonable(found.log_evidence),
        "noise": None if found.noise is None else jsonable(found.noise),
        "scale": None if scale is None else jsonable(scale),
        "learning_rate": found.learning_rate,
        "collapsed": found.collapsed,
        **{name: jsonable(value) for name, value in found.variances.items()},
    }
