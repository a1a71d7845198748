"""Jobs on linear models."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import final

from service.records import DatasetRecord, FileRecord, JsonObject
from service.spec.job import JobSpec
from service.spec.models import LinearModel
from workers.build.linear import build_linear, build_terms
from workers.build.methods import build_method
from workers.data.load import LoadedData, load
from workers.evidence import examine
from workers.finish import finish
from workers.learn.method import Answer, State, TrajectoryPoint, natural_values
from workers.learn.problems.linear import LinearProblem
from workers.report import (
    HYPERPARAMETERS_FILE,
    RESULT_FILE,
    WEIGHTS_FILE,
    Spent,
    hyperparameters_file,
    point_body,
    result_body,
    result_file,
    weights_file,
)
from workers.study import AbstractConclusion, AbstractStudy, AnyMethod


def begin_linear(
    spec: JobSpec, model: LinearModel, dataset: DatasetRecord, path: Path | None, *, device: str
) -> "LinearStudy":
    """Return the study of a job on a linear model: see `BeginStudy`."""
    data = load(spec.data, dataset, path, loss=spec.loss, seed=spec.seed)
    return LinearStudy(spec, model, data, device=device)


@final
class LinearStudy(AbstractStudy):
    """A job on a linear model."""

    def __init__(self, spec: JobSpec, model: LinearModel, data: LoadedData, *, device: str) -> None:
        """Put the pieces together."""
        self._spec = spec
        self._model = model
        self._data = data
        self._problem = build_linear(spec, model, data, device=device)
        self._method = build_method(spec, size=self._problem.layout.size, has_kinks=bool(self._problem.sparse))

    @property
    def problem(self) -> LinearProblem:
        """What is to be solved."""
        return self._problem

    @property
    def method(self) -> AnyMethod:
        """How."""
        return self._method

    def point(self, point: TrajectoryPoint) -> JsonObject:
        """Return the contract's point."""
        return point_body(point)

    def conclude(self, state: State) -> "LinearConclusion":
        """Train to the end at the strengths that were learned."""
        answer = self._method.answer(self._problem, state)
        return LinearConclusion(self._spec, self._model, self._data, self._problem, answer, state)


@final
class LinearConclusion(AbstractConclusion):
    """The strengths that were learned, and the model at them."""

    def __init__(
        self,
        spec: JobSpec,
        model: LinearModel,
        data: LoadedData,
        problem: LinearProblem,
        answer: Answer,
        state: State,
    ) -> None:
        """Train the final model."""
        self._spec = spec
        self._data = data
        self._problem = problem
        self._answer = answer
        self._cost = state.cost
        self._finished = finish(problem, answer, build_terms(spec, model), seed=spec.seed)
        self._strengths = natural_values(problem.space, answer.raw)

    def files(self) -> Mapping[str, bytes]:
        """Return the weights and the strengths."""
        return {
            WEIGHTS_FILE: weights_file(self._spec, self._data, self._finished),
            HYPERPARAMETERS_FILE: hyperparameters_file(self._strengths),
        }

    def result(self, *, wall_seconds: float, peak_memory_bytes: int, files: Sequence[FileRecord]) -> JsonObject:
        """Check the answer, and return the contract's result."""
        evidence = examine(self._problem, self._answer, self._spec)
        spent = Spent(wall_seconds, wall_seconds, peak_memory_bytes, self._cost)
        return result_body(self._spec, self._data, self._strengths, self._finished, evidence, spent=spent, files=files)

    def result_file(self, result: JsonObject) -> tuple[str, bytes]:
        """Return `result.json`."""
        return RESULT_FILE, result_file(result)
