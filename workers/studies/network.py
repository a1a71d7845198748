"""Jobs on networks."""

from pathlib import Path

from service.records import DatasetRecord
from service.spec.job import JobSpec
from service.spec.models import MLP
from workers.study import AbstractStudy


def begin_mlp(spec: JobSpec, model: MLP, dataset: DatasetRecord, path: Path | None, *, device: str) -> AbstractStudy:
    """Return the study of a job on networks: see `BeginStudy`."""
    raise NotImplementedError
