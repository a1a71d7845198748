"""A job as its runner sees it: something to step, and in the end something to tell. The mathematics is behind it."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from service.records import DatasetRecord, FileRecord, JsonObject
from service.spec.job import JobSpec
from workers.learn.method import AbstractMethod, State, TrajectoryPoint
from workers.learn.problem import AbstractBilevelProblem

AnyMethod = AbstractMethod[AbstractBilevelProblem, State]


class AbstractConclusion(ABC):
    """What a run has led to."""

    @abstractmethod
    def files(self) -> Mapping[str, bytes]:
        """Return the files that the job leaves to its client, by name, without the result itself."""

    @abstractmethod
    def result(self, *, wall_seconds: float, peak_memory_bytes: int, files: Sequence[FileRecord]) -> JsonObject:
        """Return the result, after looking for evidence if the job wants it, which takes a while.

        Args:
            wall_seconds: what the run took, over all its attempts.
            peak_memory_bytes: what it held at most.
            files: as they were stored.
        """

    @abstractmethod
    def result_file(self, result: JsonObject) -> tuple[str, bytes]:
        """Return the name and the bytes of the file that the result itself makes."""


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
    def conclude(self, state: State) -> AbstractConclusion:
        """Return what a run that ended with `state` has led to; trains the final model."""


class BeginStudy(Protocol):
    """Makes a study of a job."""

    def __call__(
        self,
        spec: JobSpec,
        dataset: DatasetRecord,
        path: Path | None,
        *,
        device: str,
        weights: Path | None = None,
    ) -> AbstractStudy:
        """Read the data and put the pieces together.

        Args:
            spec: the job.
            dataset: the record of its dataset.
            path: the dataset's file; None for a built-in one.
            device: `cpu` or `cuda`.
            weights: the file of the weights that the model starts from; None if it names none.

        Raises:
            BadData: the data cannot be used; the message is for the client.
        """
        ...
