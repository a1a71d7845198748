"""Jobs on denoisers."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import final

from service.numbers import jsonable
from service.records import DatasetRecord, FileRecord, JsonObject
from service.spec.job import JobSpec
from service.spec.models import Denoiser
from workers.build.denoising import build_denoiser, image_pairs
from workers.build.methods import build_method
from workers.data.load_images import LoadedImages, load_images
from workers.denoised import IMAGES_FILE, finish_denoiser, images_file, penalty_file, preview_files
from workers.evidence import examine
from workers.learn.method import Answer, State, TrajectoryPoint, natural_values
from workers.learn.problems.denoising import DenoisingProblem
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
)
from workers.study import AbstractConclusion, AbstractStudy, AnyMethod


def begin_denoising(
    spec: JobSpec, model: Denoiser, dataset: DatasetRecord, path: Path | None, *, device: str
) -> "DenoisingStudy":
    """Return the study of a job on denoisers: see `BeginStudy`."""
    data = load_images(spec.data, dataset, path, model, seed=spec.seed)
    return DenoisingStudy(spec, data, device=device)


@final
class DenoisingStudy(AbstractStudy):
    """A job on a denoiser: nothing is trained but the penalty, on training and validation images together."""

    def __init__(self, spec: JobSpec, data: LoadedImages, *, device: str) -> None:
        """Put the pieces together."""
        self._spec = spec
        self._data = data
        self._problem = build_denoiser(spec, data, device=device)
        self._method = build_method(spec, size=self._problem.noisy.numel())

    @property
    def problem(self) -> DenoisingProblem:
        """What is to be solved."""
        return self._problem

    @property
    def method(self) -> AnyMethod:
        """How."""
        return self._method

    def point(self, point: TrajectoryPoint) -> JsonObject:
        """Return the contract's point."""
        return point_body(point)

    def conclude(self, state: State) -> "DenoisingConclusion":
        """Denoise all images with the penalty that was learned."""
        return DenoisingConclusion(
            self._spec, self._data, self._problem, self._method.answer(self._problem, state), state
        )


@final
class DenoisingConclusion(AbstractConclusion):
    """The penalty that was learned, and what it makes of the images."""

    def __init__(
        self, spec: JobSpec, data: LoadedImages, problem: DenoisingProblem, answer: Answer, state: State
    ) -> None:
        """Denoise."""
        self._spec = spec
        self._data = data
        self._problem = problem
        self._answer = answer
        self._cost = state.cost
        held_out = data.parts.test
        self._finished = finish_denoiser(
            problem,
            answer,
            data.learned_on if held_out is None else held_out,
            None if held_out is None else image_pairs(spec, data, held_out),
        )
        self._strengths = natural_values(problem.space, answer.raw)

    def files(self) -> Mapping[str, bytes]:
        """Return the penalty, what of it was learned, the denoised images, and pictures of some of them."""
        return {
            WEIGHTS_FILE: penalty_file(self._problem.regularizer, self._finished),
            HYPERPARAMETERS_FILE: hyperparameters_file(self._strengths),
            IMAGES_FILE: images_file(self._finished),
            **preview_files(self._finished),
        }

    def result(self, *, wall_seconds: float, peak_memory_bytes: int, files: Sequence[FileRecord]) -> JsonObject:
        """Check the answer, and return the contract's result."""
        evidence = examine(self._problem, self._answer, self._spec)
        total = self._cost + evidence.cost + self._finished.cost
        task, rows = self._data.task, self._data.learned_on.size
        model: JsonObject = {
            "trained_on": "train+valid",
            "rows": int(rows),
            "shape": list(task.shape),
            "noise": jsonable(task.noise) if task.noisy is None else None,
            "denoised": "test" if self._data.parts.test is not None else "train+valid",
            "denoised_error": jsonable(self._finished.error),
        }
        return any_result_body(
            self._spec,
            {name: described(value, None) for name, value in self._strengths.items()},
            self._finished.metrics,
            evidence.body(),
            model,
            spent=Spent(wall_seconds, wall_seconds, peak_memory_bytes, total),
            files=files,
        )

    def result_file(self, result: JsonObject) -> tuple[str, bytes]:
        """Return `result.json`."""
        return RESULT_FILE, result_file(result)
