"""Where real jobs are run: joins the runner with the mathematics. What a spare imports while it waits."""

from pathlib import Path
from typing import assert_never

from service.records import DatasetRecord
from service.settings import Settings
from service.spec.job import JobSpec
from service.spec.methods import STN, ELBo
from service.spec.models import CNN, MLP, RFFGP, Denoiser, LinearModel, Transfer
from workers.data.errors import BadData
from workers.parent import Parent
from workers.runner import Runner
from workers.studies.denoising import begin_denoising
from workers.studies.elbo import begin_elbo
from workers.studies.linear import begin_linear
from workers.studies.network import begin_network
from workers.study import AbstractStudy
from workers.tail import Tail


def begin_study(
    spec: JobSpec, dataset: DatasetRecord, path: Path | None, *, device: str, weights: Path | None = None
) -> AbstractStudy:
    """Return the study of a real job: see `BeginStudy`."""
    match spec.model:
        case LinearModel() | MLP() | CNN() | Transfer() | RFFGP() if isinstance(spec.method, ELBo):
            return begin_elbo(spec, spec.model, spec.method, dataset, path, device=device, weights=weights)
        case RFFGP():
            raise BadData("a random-feature Gaussian process takes method 'elbo'")
        case LinearModel() if not isinstance(spec.method, STN):
            return begin_linear(spec, spec.model, dataset, path, device=device)
        case LinearModel() | MLP() | CNN() | Transfer():
            return begin_network(spec, spec.model, dataset, path, device=device, weights=weights)
        case Denoiser():
            return begin_denoising(spec, spec.model, dataset, path, device=device)
        case _:
            assert_never(spec.model)


def make_runner(settings: Settings, parent: Parent, tail: Tail) -> Runner:
    """Return the runner of real jobs."""
    return Runner(settings, parent, tail, begin_study)
