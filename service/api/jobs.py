"""Jobs that are there: to find, wait for, change and delete."""

import logging
from typing import Annotated, Any, Final, Self

from fastapi import APIRouter, Query
from fastapi.concurrency import run_in_threadpool
from pydantic import ConfigDict, Field, model_validator
from starlette.requests import Request
from starlette.responses import Response

from service.api import cursors
from service.api.answers import answer
from service.api.auth import Reader, Submitter
from service.api.body import JsonBody, parse
from service.api.conditions import (
    IfMatch,
    IfNoneMatch,
    Prefer,
    Wait,
    WaitQuery,
    asked_wait,
    etag,
    is_current,
    named_version,
)
from service.api.job_views import attempt_view, job_page, job_view
from service.api.models import AttemptList, JobPage, JobView, ResultView
from service.api.notifier import Notifier
from service.api.openapi import header, json_request, problems, returns
from service.api.parameters import Cursor, JobId, Limit, Moment
from service.api.refusals import Fault, InvalidRequest
from service.api.requests import trace_of
from service.api.services import Injected, Services
from service.errors import StateConflict
from service.records import JobRecord, JobStatus
from service.spec.base import SafeText, Spec
from service.spec.job import JobName, Labels, Priority

log = logging.getLogger(__name__)

router: Final = APIRouter(prefix="/v1/jobs", tags=["jobs"])

_ETAG: Final = {"ETag": header("The version of the job.")}


def _without_default(schema: dict[str, Any]) -> None:
    schema.pop("default", None)


class JobChanges(Spec):
    """What may be changed of a job; what is left out stays."""

    model_config = ConfigDict(json_schema_extra={"minProperties": 1})

    name: JobName = Field(default="", json_schema_extra=_without_default)
    labels: Labels = Field(
        default_factory=dict, description="All of them, in place of those it has.", json_schema_extra=_without_default
    )
    priority: Priority = Field(default=0, json_schema_extra=_without_default)

    @model_validator(mode="after")
    def _something_changes(self) -> Self:
        if not self.model_fields_set:
            raise ValueError("is empty: give name, labels or priority")
        return self


@router.get("", summary="List jobs", responses={200: returns(JobPage), **problems(400)})
def list_jobs(
    services: Injected,
    _: Reader,
    *,
    status: Annotated[list[JobStatus] | None, Query(description="Any of these.")] = None,
    method: Annotated[SafeText | None, Query(max_length=64, description="Only jobs of this method.")] = None,
    label: Annotated[
        list[SafeText] | None,
        Query(max_length=32, description="`key:value`; several: all of them.", examples=[["team:vision"]]),
    ] = None,
    created_after: Annotated[Moment | None, Query(description="Only younger jobs.")] = None,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> Response:
    """Find jobs, the newest first."""
    labels = _labels(label or [])
    statuses = tuple(sorted(set(status or ())))
    filters = (statuses, method, tuple(sorted(labels.items())), created_after)
    before = cursors.decode(cursor, filters)
    found = services.store.jobs.list(
        statuses=statuses,
        method=method,
        labels=labels,
        created_after=created_after,
        limit=limit + 1,
        before=before,
    )
    page = found[:limit]
    more = len(found) > limit
    next_cursor = cursors.encode((page[-1].created_at, page[-1].id), filters) if more else None
    return answer(job_page(page, next_cursor=next_cursor, root=services.settings.root_path))


def _labels(given: list[str]) -> dict[str, str]:
    labels: dict[str, str] = {}
    for text in given:
        key, colon, value = text.partition(":")
        if not colon or not key:
            raise InvalidRequest([Fault("must be key:value", parameter="label")])
        if labels.setdefault(key, value) != value:
            raise InvalidRequest([Fault("asks for two values of one key: a job has one", parameter="label")])
    return labels


@router.get(
    "/{job_id}",
    summary="Show a job",
    responses={
        200: returns(JobView, headers=_ETAG),
        304: {"description": "The client has the current version."},
        **problems(404),
    },
)
async def get_job(
    request: Request,
    services: Injected,
    _: Reader,
    job_id: JobId,
    *,
    prefer: Prefer = None,
    wait: WaitQuery = None,
    if_none_match: IfNoneMatch = None,
) -> Response:
    """Show a job, at once or as soon as it changes.

    With `Prefer: wait=N` or `?wait=N` the answer comes when the version differs from the one in `If-None-Match`
    (without: from the current one), or after N seconds. A job that has ended is not waited for without
    `If-None-Match`.
    """
    asked = asked_wait(prefer, wait)
    job = await run_in_threadpool(services.store.jobs.get, job_id)
    if asked.seconds and _is_worth_waiting(job, if_none_match):
        job = await _changed(request, services, job, asked)
    headers = {**_job_headers(job), **asked.headers}
    if is_current(if_none_match, etag(job.version)):
        return Response(status_code=304, headers=headers)
    return answer(job_view(job, root=services.settings.root_path), headers=headers)


def _is_worth_waiting(job: JobRecord, if_none_match: str | None) -> bool:
    if if_none_match is None:
        return not job.status.is_final
    return is_current(if_none_match, etag(job.version))


async def _changed(request: Request, services: Services, job: JobRecord, asked: Wait) -> JobRecord:
    trace_of(request.scope).is_awaited = True
    notifier: Notifier = request.app.state.notifier
    await notifier.wait(job.id, known=job.version, seconds=asked.seconds)
    return await run_in_threadpool(services.store.jobs.get, job.id)


def _job_headers(job: JobRecord) -> dict[str, str]:
    return {"ETag": etag(job.version), "Cache-Control": "no-cache"}


@router.patch(
    "/{job_id}",
    summary="Rename, label or prioritise a job",
    responses={
        200: returns(JobView, "The job as it is now.", headers=_ETAG),
        **problems(400, 404, 412, 413, 415, 428),
    },
    openapi_extra=json_request(JobChanges),
)
def update_job(services: Injected, _: Submitter, job_id: JobId, body: JsonBody, if_match: IfMatch = None) -> Response:
    """Change a job's name, labels or priority; what it computes is fixed."""
    version = named_version(if_match)
    changes = parse(JobChanges, body)
    if version is None:
        version = services.store.jobs.get(job_id).version
    given = changes.model_fields_set
    job = services.store.jobs.update(
        job_id,
        version=version,
        name=changes.name if "name" in given else None,
        labels=changes.labels if "labels" in given else None,
        priority=changes.priority if "priority" in given else None,
    )
    return answer(job_view(job, root=services.settings.root_path), headers=_job_headers(job))


@router.delete(
    "/{job_id}",
    status_code=204,
    summary="Delete an ended job",
    response_class=Response,
    responses={204: {"description": "It is gone."}, **problems(404, 409)},
)
def delete_job(services: Injected, _: Submitter, job_id: JobId) -> Response:
    """Delete an ended job with its trajectory and files."""
    keys = services.store.jobs.delete(job_id)
    try:
        services.files.delete(keys)
    except OSError:
        log.warning("files of a deleted job are left to the outbox", exc_info=True, extra={"job_id": job_id})
    return Response(status_code=204)


@router.get("/{job_id}/attempts", summary="Show who ran a job", responses={200: returns(AttemptList), **problems(404)})
def list_attempts(services: Injected, _: Reader, job_id: JobId) -> Response:
    """Show who ran the job, where, how each attempt ended, and the tail of its log."""
    return answer(AttemptList([attempt_view(attempt) for attempt in services.store.jobs.attempts(job_id)]))


@router.get(
    "/{job_id}/result", summary="Show what a job learned", responses={200: returns(ResultView), **problems(404, 409)}
)
def get_result(services: Injected, _: Reader, job_id: JobId) -> Response:
    """Show what a job that has succeeded learned, and why that may be trusted."""
    job = services.store.jobs.get(job_id)
    if job.status is not JobStatus.SUCCEEDED or job.result is None:
        raise StateConflict(job.status, frozenset({JobStatus.SUCCEEDED}), "show a result")
    return answer(job.result)
