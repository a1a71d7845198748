"""A job as a runner sees it: something to step, and in the end a result. All mathematics is behind this."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast, final

from torch import Tensor

from service.records import DatasetRecord, FileRecord, JsonObject
from service.spec.job import JobSpec
from workers.build import build_method, build_problem
from workers.data.load import LoadedData, load
from workers.evidence import examine
from workers.finish import FinishedModel, finish
from workers.learn.method import AbstractMethod, Answer, State, TrajectoryPoint, natural_values
from workers.learn.problem import AbstractBilevelProblem
from workers.learn.problems.linear import LinearProblem
from workers.report import (
    HYPERPARAMETERS_FILE,
    WEIGHTS_FILE,
    Spent,
    hyperparameters_file,
    point_body,
    result_body,
    weights_file,
)

AnyMethod = AbstractMethod[AbstractBilevelProblem, State]


@dataclass(frozen=True, eq=False)
class Conclusion:
    """What a run has led to, before it is checked."""

    answer: Answer
    model: FinishedModel
    strengths: Mapping[str, Tensor]
    """Natural values by name."""


class AbstractStudy(ABC):
    """One job as objects of `learn`. Reads no clock and stores nothing."""

    @property
    @abstractmethod
    def problem(self) -> AbstractBilevelProblem:
        """What is to be solved."""

    @property
    @abstractmethod
    def method(self) -> AnyMethod:
        """How."""

    @abstractmethod
    def point(self, point: TrajectoryPoint) -> JsonObject:
        """Return a point as it is stored, without what the store adds."""

    @abstractmethod
    def conclude(self, state: State) -> Conclusion:
        """Return the final model of a run that ended with `state`."""

    @abstractmethod
    def files(self, conclusion: Conclusion) -> Mapping[str, bytes]:
        """Return the files that the job leaves to its client, by name."""

    @abstractmethod
    def result(self, conclusion: Conclusion, *, spent: Spent, files: Sequence[FileRecord]) -> JsonObject:
        """Return the result, after looking for evidence if the job wants it, which takes a while.

        Args:
            conclusion: of the run.
            spent: what the run took.
            files: as they were stored.
        """


class BeginStudy(Protocol):
    """Makes a study of a job."""

    def __call__(self, spec: JobSpec, dataset: DatasetRecord, path: Path | None, *, device: str) -> AbstractStudy:
        """Read the data and put the pieces together.

        Args:
            spec: the job.
            dataset: the record of its dataset.
            path: the dataset's file; None for a built-in one.
            device: `cpu` or `cuda`.

        Raises:
            BadData: the data cannot be used; the message is for the client.
        """
        ...


@final
class Study(AbstractStudy):
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

    def conclude(self, state: State) -> Conclusion:
        """Train to the end at the strengths that were learned."""
        answer = self._method.answer(self._problem, state)
        model = finish(self._problem, answer, self._spec)
        return Conclusion(answer, model, natural_values(self._problem.space, answer.raw))

    def files(self, conclusion: Conclusion) -> Mapping[str, bytes]:
        """Return the weights and the strengths."""
        return {
            WEIGHTS_FILE: weights_file(self._spec, self._data, conclusion.model),
            HYPERPARAMETERS_FILE: hyperparameters_file(conclusion.strengths),
        }

    def result(self, conclusion: Conclusion, *, spent: Spent, files: Sequence[FileRecord]) -> JsonObject:
        """Check the answer, and return the contract's result."""
        evidence = examine(self._problem, conclusion.answer, self._spec)
        return result_body(
            self._spec, self._data, conclusion.strengths, conclusion.model, evidence, spent=spent, files=files
        )


def begin_study(spec: JobSpec, dataset: DatasetRecord, path: Path | None, *, device: str) -> Study:
    """Return the study of a real job: see `BeginStudy`."""
    data = load(spec.data, dataset, path, loss=spec.loss, seed=spec.seed)
    return Study(spec, data, device=device)
