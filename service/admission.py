"""Whether a job can run on its dataset, what may disappoint, and what it will take."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import assert_never

from service.dealing import Share
from service.estimates.base import Estimate
from service.estimates.denoiser import estimate_denoiser
from service.estimates.elbo import elbo_seconds, estimate_rff_gp
from service.estimates.linear import estimate_linear, linear_strengths
from service.estimates.network import estimate_network
from service.given_weights import weights_refusals
from service.image_task import ImageTask, read_image_task
from service.network_sizes import LayerSize, layer_sizes
from service.records import DatasetRecord
from service.spec.data import ColumnSplit
from service.spec.hyperparameters import Granularity
from service.spec.job import Device, JobSpec, Precision
from service.spec.linear import DirectSolver, NystromSolver
from service.spec.methods import STN, TPE, ELBo, Grid, solver_of
from service.spec.models import CNN, MLP, NETWORKS, RFFGP, Denoiser, LinearModel, Transfer
from service.spec.regularizers import L1, L2, L2SP, FieldOfExperts
from service.task import Refusal, Task, read_task, weights_refusal

LARGEST_DIRECT = 4096
"""Weights up to which the Hessian is formed and factorised."""

LARGEST_TPE = 1000
"""Strengths up to which a step of TPE takes seconds at most, beside its training."""

_FEW_ROWS_A_STRENGTH = 10


@dataclass(frozen=True)
class AdmissionWarning:
    """What may disappoint, though the job can run."""

    pointer: str
    """JSON Pointer (RFC 6901) into the specification."""
    code: str
    """Stable, for programs."""
    detail: str


@dataclass(frozen=True)
class Admission:
    """What is to be said of a job before it is queued."""

    refusals: tuple[Refusal, ...]
    warnings: tuple[AdmissionWarning, ...]
    estimate: Estimate | None
    """None when it is refused."""

    @property
    def is_admitted(self) -> bool:
        """Whether nothing stands against the job."""
        return not self.refusals


def admit(
    spec: JobSpec,
    dataset: DatasetRecord,
    *,
    weights: DatasetRecord | None = None,
    gpu_online: bool | None = None,
) -> Admission:
    """Judge a job by its specification and its dataset's record. Pure: it reads no rows.

    The dry run and the creation of a job both answer with this.

    Args:
        spec: the job.
        dataset: the dataset that `spec.data` names.
        weights: the dataset that `spec.model` names as its weights; None if it names none, or none is there.
        gpu_online: whether some worker with a GPU is alive; None if that is not known.
    """
    if (refusal := weights_refusal(dataset)) is not None:
        return Admission((refusal,), (), None)
    match spec.model:
        case LinearModel() if not isinstance(spec.method, STN):
            task = read_task(spec.data, dataset, loss=spec.loss, holds_out=spec.holds_out)
            if isinstance(task, list):
                return Admission(tuple(task), (), None)
            figures = estimate_linear(spec, spec.model, dataset, task)
            warnings = (*_linear_warnings(spec, spec.model, task), *_class_warnings(task))
        case LinearModel() | MLP() | CNN() | Transfer():
            task = read_task(spec.data, dataset, loss=spec.loss, holds_out=spec.holds_out)
            if isinstance(task, list):
                return Admission(tuple(task), (), None)
            layers = _layers(spec.model, task)
            if isinstance(layers, Refusal):
                return Admission((layers,), (), None)
            if dataset.is_sparse:
                return Admission((_only_dense(spec),), (), None)
            if refused := tuple(_weights_refusals(spec.model, layers, task, weights)):
                return Admission(refused, (), None)
            figures = estimate_network(spec, layers, task)
            warnings = (*_redundant(spec),)
        case RFFGP():
            task = read_task(spec.data, dataset, loss=spec.loss, holds_out=spec.holds_out)
            if isinstance(task, list):
                return Admission(tuple(task), (), None)
            if dataset.is_sparse:
                return Admission((_only_dense(spec),), (), None)
            figures, warnings = estimate_rff_gp(spec, spec.model, task), ()
        case Denoiser():
            images = read_image_task(spec.data, dataset, spec.model)
            if isinstance(images, list):
                return Admission(tuple(images), (), None)
            if refused := tuple(_filter_refusals(spec, images)):
                return Admission(refused, (), None)
            figures = estimate_denoiser(spec, images)
            warnings = ()
        case _:
            assert_never(spec.model)
    if isinstance(spec.method, ELBo):
        figures = replace(figures, seconds=elbo_seconds(spec, figures))
    refusals = (*_solver_refusals(spec, figures.weights), *_search_refusals(spec, figures.strengths))
    if refusals:
        return Admission(refusals, (), None)
    warnings = (
        *_device_warnings(spec, gpu_online=gpu_online),
        *warnings,
        *_many_strengths(figures, spec),
        *_part_warnings(spec, figures.rows),
        *_memory_warnings(spec, figures),
    )
    return Admission((), warnings, figures)


def _layers(model: LinearModel | MLP | CNN | Transfer, task: Task) -> list[LayerSize] | Refusal:
    if not isinstance(model, Transfer):
        return layer_sizes(model, task)
    layers = layer_sizes(model.layers, task)
    if isinstance(layers, Refusal):
        return replace(layers, pointer=layers.pointer.replace("/model/", "/model/backbone/"))
    return layers


def _weights_refusals(
    model: LinearModel | MLP | CNN | Transfer, layers: list[LayerSize], task: Task, weights: DatasetRecord | None
) -> list[Refusal]:
    if not isinstance(model, Transfer) or model.weights is None:
        return []
    return weights_refusals(layers, weights, fresh_layers=model.fresh_layers, width=task.width)


def _solver_refusals(spec: JobSpec, weights: int) -> Iterator[Refusal]:
    solver = solver_of(spec.method)
    if isinstance(solver, DirectSolver) and weights > LARGEST_DIRECT:
        yield Refusal(
            "/method/solver",
            f"'direct' factorises a matrix of {weights:,} × {weights:,}; up to {LARGEST_DIRECT:,} weights it can, "
            "beyond them take 'cg'",
        )
    if isinstance(solver, NystromSolver) and solver.rank > weights:
        yield Refusal("/method/solver/rank", f"the rank cannot exceed the number of weights, {weights:,}")


def _filter_refusals(spec: JobSpec, images: ImageTask) -> Iterator[Refusal]:
    least = min(images.shape[:2])
    for place, regularizer in enumerate(spec.regularizers):
        if isinstance(regularizer, FieldOfExperts) and regularizer.size // 2 > least:
            yield Refusal(
                f"/regularizers/{place}/size",
                f"images of {images.shape[0]} × {images.shape[1]} take filters of up to {2 * least + 1} pixels",
            )


def _only_dense(spec: JobSpec) -> Refusal:
    if isinstance(spec.model, LinearModel):
        detail = f"{spec.method.kind!r} takes dense features, this dataset is sparse: take another method"
        return Refusal("/method/kind", detail)
    return Refusal(
        "/model/kind", f"{spec.model.kind!r} takes dense features, this dataset is sparse: take model 'linear'"
    )


def _search_refusals(spec: JobSpec, strengths: int) -> Iterator[Refusal]:
    if isinstance(spec.method, TPE) and strengths > LARGEST_TPE:
        yield Refusal(
            "/method/kind",
            f"'tpe' models how strengths go together, up to {LARGEST_TPE:,} of them, and there are {strengths:,}: take "
            "a method that learns, or 'random'",
        )
    if not isinstance(spec.method, Grid):
        return
    points, steps = spec.method.points, spec.budget.outer_steps
    if strengths * math.log(points) > math.log(steps) + 1e-9:
        many = f"{points}^{strengths}" if strengths * math.log(points) > math.log(1e9) else f"{points**strengths:,}"
        yield Refusal(
            "/method/points",
            f"{points} points for each of {strengths:,} strengths are {many} trainings, and budget.outer_steps allows "
            f"{steps:,}: take fewer points, or a method that learns",
        )


def _device_warnings(spec: JobSpec, *, gpu_online: bool | None) -> Iterator[AdmissionWarning]:
    if spec.resources.device is Device.CUDA and gpu_online is False:
        yield AdmissionWarning(
            "/resources/device", "no_gpu_worker", "no worker with a GPU is online: the job will wait until one is"
        )
    exact = not isinstance(spec.model, NETWORKS)
    if exact and spec.resources.precision is Precision.FLOAT32 and spec.budget.tolerance < 1e-5:
        yield AdmissionWarning(
            "/budget/tolerance",
            "beyond_precision",
            "float32 does not resolve so small a hypergradient: take precision 'auto', or a tolerance of 1e-5",
        )


def _linear_warnings(spec: JobSpec, model: LinearModel, task: Task) -> Iterator[AdmissionWarning]:
    for place, regularizer in enumerate(spec.regularizers):
        pointer = f"/regularizers/{place}/strength"
        if not isinstance(regularizer, L2 | L1) or not regularizer.strength.is_learned:
            continue
        many = linear_strengths(regularizer, task, intercept=model.intercept)
        match regularizer.strength.per:
            case Granularity.CLASS if task.outputs == 1:
                yield AdmissionWarning(
                    f"{pointer}/per", "same_as_model", "the model has one output: 'class' is the same as 'model' here"
                )
            case Granularity.PARAMETER if task.outputs == 1:
                yield AdmissionWarning(
                    f"{pointer}/per",
                    "same_as_feature",
                    "the model has one output: 'parameter' is the same as 'feature' here",
                )
            case Granularity.FEATURE | Granularity.PARAMETER if many == 1:
                yield AdmissionWarning(
                    f"{pointer}/per", "same_as_model", "there is one weight: this is the same as 'model'"
                )
            case _:
                pass
    yield from _redundant(spec)


def _redundant(spec: JobSpec) -> Iterator[AdmissionWarning]:
    seen: set[tuple[str, Granularity, bool]] = set()
    for place, regularizer in enumerate(spec.regularizers):
        if not isinstance(regularizer, L2 | L2SP | L1) or not regularizer.strength.is_learned:
            continue
        group = (regularizer.kind, regularizer.strength.per, not isinstance(regularizer, L1) and regularizer.biases)
        if group in seen:
            yield AdmissionWarning(
                f"/regularizers/{place}/strength",
                "redundant_penalty",
                "another learned penalty acts on the same weights in the same way: only their sum is determined",
            )
        seen.add(group)


def _many_strengths(figures: Estimate, spec: JobSpec) -> Iterator[AdmissionWarning]:
    if isinstance(spec.model, Denoiser) or isinstance(spec.method, ELBo):
        return  # every pixel is an observation, or every row is
    rows = figures.rows.train if figures.folds is not None else figures.rows.valid
    if figures.strengths > 1 and figures.strengths * _FEW_ROWS_A_STRENGTH > rows:
        yield AdmissionWarning(
            "/regularizers",
            "many_strengths",
            f"{figures.strengths:,} strengths are learned from {rows:,} validation rows: they may come to fit just "
            "those rows; compare with the test part, or with one strength for the model",
        )


def _part_warnings(spec: JobSpec, rows: Share) -> Iterator[AdmissionWarning]:
    if not rows.test:
        pointer = "/data/split/column" if isinstance(spec.data.split, ColumnSplit) else "/data/split/test"
        yield AdmissionWarning(
            pointer,
            "no_test_part",
            "no row is kept for testing: the validation loss, which the strengths are fitted to, is too optimistic",
        )


def _class_warnings(task: Task) -> Iterator[AdmissionWarning]:
    if task.folds is not None and task.is_stratified and task.target.values is not None:
        rare = sum(1 for count in task.target.values.values() if 0 < count < task.folds)
        if rare:
            yield AdmissionWarning(
                "/data/split/folds", "rare_classes", f"{rare} classes have fewer rows than there are folds"
            )


def _memory_warnings(spec: JobSpec, figures: Estimate) -> Iterator[AdmissionWarning]:
    allowed = spec.resources.memory_bytes
    if allowed is not None and figures.memory_bytes > allowed:
        yield AdmissionWarning(
            "/resources/memory_bytes",
            "memory",
            f"the job needs about {figures.memory_bytes:,} bytes and will probably be stopped for taking more than "
            f"{allowed:,}",
        )
