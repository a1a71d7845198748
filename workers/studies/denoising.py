"""Jobs on denoisers."""

from pathlib import Path

from service.records import DatasetRecord
from service.spec.job import JobSpec
from service.spec.models import Denoiser
from workers.study import AbstractStudy


def begin_denoising(
    spec: JobSpec, model: Denoiser, dataset: DatasetRecord, path: Path | None, *, device: str
) -> AbstractStudy:
    """Return the study of a job on denoisers: see `BeginStudy`."""
    raise NotImplementedError
