"""What happens between a body and a queued job: read, judged by its dataset, stored once, rung for."""

import logging
from dataclasses import dataclass

from pydantic import ValidationError

from service.admission import Admission, admit
from service.api.answers import to_json
from service.api.auth import Caller
from service.api.conditions import etag
from service.api.faults import body_faults
from service.api.idempotency import fingerprint, first_time
from service.api.job_views import job_view
from service.api.refusals import Fault, InvalidRequest
from service.api.services import Services
from service.builtin import builtin_dataset
from service.errors import NotFound, QueueUnavailable
from service.records import DatasetRecord, JobRecord, StoredAnswer, WorkerState
from service.spec.job import Device, JobSpec
from service.store import IdempotencyClaim

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Submitted:
    """How a submission is answered."""

    answer: StoredAnswer
    job: JobRecord | None
    """None when this is the answer of an earlier request."""


def judge(services: Services, spec: JobSpec) -> Admission:
    """Return what is to be said of a job that can run.

    Raises:
        InvalidRequest: it cannot.
    """
    admission = admit(
        spec,
        _dataset(services, spec.data.dataset),
        weights=_weights(services, spec),
        gpu_online=_gpu_online(services, spec),
    )
    if not admission.is_admitted:
        raise InvalidRequest([Fault(refusal.detail, pointer=refusal.pointer) for refusal in admission.refusals])
    return admission


def submit(services: Services, spec: JobSpec, *, caller: Caller, key: str | None, path: str) -> Submitted:
    """Queue a job, or find the answer that the same request had before.

    Args:
        services: what it is stored in.
        spec: the job.
        caller: whose idempotency keys count.
        key: the request's Idempotency-Key.
        path: the request's path.

    Raises:
        JobError: it was refused, and nothing was stored.
    """
    print_ = fingerprint("POST", path, spec.model_dump(mode="json")) if key is not None else ""
    with first_time(services.store, caller, key, print_) as claim:
        if isinstance(claim, StoredAnswer):
            return Submitted(claim, None)
        judge(services, spec)
        if isinstance(claim, IdempotencyClaim):
            job = services.store.jobs.create(spec, idempotency=claim, answer=lambda made: accepted(services, made))
        else:
            job = services.store.jobs.create(spec)
    return Submitted(accepted(services, job), job)


def accepted(services: Services, job: JobRecord) -> StoredAnswer:
    """The answer to a job that was queued."""
    root = services.settings.root_path
    headers = {"Location": f"{root}/v1/jobs/{job.id}", "ETag": etag(job.version)}
    return StoredAnswer(202, headers, to_json(job_view(job, root=root)).decode())


def spec_of(job: JobRecord) -> JobSpec:
    """The specification of a job that is there already.

    Raises:
        InvalidRequest: this version of the service does not take it any more.
    """
    try:
        return JobSpec.model_validate(job.spec)
    except ValidationError as error:
        raise InvalidRequest(body_faults(error, JobSpec)) from error


def ring(services: Services) -> None:
    """Wake a worker; without the queue, workers find the job by themselves, and the outbox rings later."""
    try:
        services.bell.ring()
    except QueueUnavailable:
        log.warning("the queue was away when a job was queued")


def _dataset(services: Services, dataset_id: str) -> DatasetRecord:
    if (shipped := builtin_dataset(dataset_id)) is not None:
        return shipped
    try:
        return services.store.datasets.get(dataset_id)
    except NotFound as error:
        detail = "there is no such dataset: GET /v1/datasets lists those there are"
        raise InvalidRequest([Fault(detail, pointer="/data/dataset")]) from error


def _weights(services: Services, spec: JobSpec) -> DatasetRecord | None:
    if spec.weights_dataset is None:
        return None
    try:
        return builtin_dataset(spec.weights_dataset) or services.store.datasets.get(spec.weights_dataset)
    except NotFound:
        return None  # the admission says so


def _gpu_online(services: Services, spec: JobSpec) -> bool | None:
    if spec.resources.device is not Device.CUDA:
        return None
    workers = services.store.workers.list(timeout_seconds=services.settings.worker_timeout_seconds)
    return any(worker.device != "cpu" and worker.state is not WorkerState.OFFLINE for worker in workers)
