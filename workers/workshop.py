"""Where real jobs are run: joins the runner with the mathematics. What a spare imports while it waits."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast, final

from service.records import DatasetRecord, FileRecord, JsonObject
from service.settings import Settings
from service.spec.job import JobSpec
from workers.build import build_method, build_problem
from workers.data.load import LoadedData, load
from workers.evidence import examine
from workers.finish import finish
from workers.learn.method import Answer, State, TrajectoryPoint, natural_values
from workers.learn.problems.linear import LinearProblem
from workers.parent import Parent
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
from workers.runner import Runner
from workers.study import AbstractConclusion, AbstractStudy, AnyMethod
from workers.tail import Tail


@final
class LinearStudy(AbstractStudy):
    """A job on a linear model."""

    def __init__(self, spec: JobSpec, data: LoadedData, *, device: str) -> None:
        """Put the pieces together."""
        self._spec = spec
        self._data = data
        self._problem = build_problem(spec, data, device=device)
        # A method takes one kind of problem and of state; from here on only the two together matter.
        self._method = cast("AnyMethod", build_method(spec, self._problem))

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
        return LinearConclusion(self._spec, self._data, self._problem, answer, state)


@final
class LinearConclusion(AbstractConclusion):
    """The strengths that were learned, and the model at them."""

    def __init__(self, spec: JobSpec, data: LoadedData, problem: LinearProblem, answer: Answer, state: State) -> None:
        """Train the final model."""
        self._spec = spec
        self._data = data
        self._problem = problem
        self._answer = answer
        self._cost = state.cost
        self._model = finish(problem, answer, spec)
        self._strengths = natural_values(problem.space, answer.raw)

    def files(self) -> Mapping[str, bytes]:
        """Return the weights and the strengths."""
        return {
            WEIGHTS_FILE: weights_file(self._spec, self._data, self._model),
            HYPERPARAMETERS_FILE: hyperparameters_file(self._strengths),
        }

    def result(self, *, wall_seconds: float, peak_memory_bytes: int, files: Sequence[FileRecord]) -> JsonObject:
        """Check the answer, and return the contract's result."""
        evidence = examine(self._problem, self._answer, self._spec)
        spent = Spent(wall_seconds, wall_seconds, peak_memory_bytes, self._cost)
        return result_body(self._spec, self._data, self._strengths, self._model, evidence, spent=spent, files=files)

    def result_file(self, result: JsonObject) -> tuple[str, bytes]:
        """Return `result.json`."""
        return RESULT_FILE, result_file(result)


def begin_study(spec: JobSpec, dataset: DatasetRecord, path: Path | None, *, device: str) -> LinearStudy:
    """Return the study of a real job: see `BeginStudy`."""
    data = load(spec.data, dataset, path, loss=spec.loss, seed=spec.seed)
    return LinearStudy(spec, data, device=device)


def make_runner(settings: Settings, parent: Parent, tail: Tail) -> Runner:
    """Return the runner of real jobs."""
    return Runner(settings, parent, tail, begin_study)
