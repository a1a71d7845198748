"""Every refusal as RFC 9457 `application/problem+json`: one table, one place that writes it."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final
from urllib.parse import quote

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Match, Route

from service.api import refusals
from service.api.caution import caution
from service.api.faults import parameter_faults
from service.api.requests import trace_of
from service.errors import (
    DatasetInUse,
    FileMissing,
    IdempotencyInProgress,
    IdempotencyMismatch,
    JobError,
    LeaseLost,
    NotFound,
    QueueUnavailable,
    StaleVersion,
    StateConflict,
    StoreUnavailable,
)
from service.inspection import InspectionUnavailable

log = logging.getLogger(__name__)

MEDIA_TYPE: Final = "application/problem+json"


@dataclass(frozen=True)
class ProblemType:
    """A kind of problem: stable, for programs; documented under its name in docs/api.md."""

    name: str
    status: int
    title: str
    retry_seconds: int | None = None
    """What `Retry-After` says, where trying again helps and the refusal does not know better."""

    @property
    def uri(self) -> str:
        """The `type` of a problem."""
        return f"/problems/{self.name}"


BAD_REQUEST: Final = ProblemType("bad-request", 400, "The request cannot be understood")
NO_SUCH_PATH: Final = ProblemType("no-such-path", 404, "There is nothing at this path")
METHOD_NOT_ALLOWED: Final = ProblemType("method-not-allowed", 405, "The path does not take this method")
INTERNAL: Final = ProblemType("internal", 500, "The service has failed")

TYPES: Final[Mapping[type[JobError], ProblemType]] = {
    refusals.MalformedBody: ProblemType("malformed-body", 400, "The body cannot be read"),
    refusals.EmptyBody: ProblemType("empty-body", 400, "The body is empty"),
    refusals.BadCursor: ProblemType("bad-cursor", 400, "The cursor does not fit"),
    refusals.BadIdempotencyKey: ProblemType("bad-idempotency-key", 400, "The idempotency key cannot be used"),
    refusals.Unauthenticated: ProblemType("unauthenticated", 401, "An API key is needed"),
    refusals.ScopeMissing: ProblemType("scope-missing", 403, "The API key does not allow this"),
    refusals.ForeignPage: ProblemType("foreign-page", 403, "The request comes from another site"),
    NotFound: ProblemType("not-found", 404, "There is no such object"),
    FileMissing: ProblemType("file-missing", 404, "The file is gone"),
    refusals.NotAcceptable: ProblemType("not-acceptable", 406, "The wanted format cannot be given"),
    StateConflict: ProblemType("state-conflict", 409, "The job's status does not allow this"),
    DatasetInUse: ProblemType("dataset-in-use", 409, "The dataset is in use"),
    LeaseLost: ProblemType("lease-lost", 409, "Another attempt has taken the job"),
    IdempotencyInProgress: ProblemType(
        "idempotency-in-progress", 409, "The first request is still being answered", retry_seconds=1
    ),
    StaleVersion: ProblemType("stale-version", 412, "The object has changed"),
    refusals.BodyTooLarge: ProblemType("body-too-large", 413, "The body is too large"),
    refusals.UnsupportedMediaType: ProblemType("unsupported-media-type", 415, "The content type is not understood"),
    refusals.RangeUnsatisfiable: ProblemType("range-unsatisfiable", 416, "The range cannot be served"),
    refusals.InvalidRequest: ProblemType("invalid-spec", 422, "The request is not valid"),
    IdempotencyMismatch: ProblemType("idempotency-mismatch", 422, "The idempotency key belongs to another request"),
    refusals.PreconditionRequired: ProblemType("precondition-required", 428, "If-Match is needed"),
    refusals.RateExceeded: ProblemType("rate-exceeded", 429, "Too many requests", retry_seconds=1),
    JobError: ProblemType("refused", 422, "The request cannot be met"),
    StoreUnavailable: ProblemType("database-unavailable", 503, "The database is away", retry_seconds=5),
    QueueUnavailable: ProblemType("queue-unavailable", 503, "The queue is away", retry_seconds=5),
    InspectionUnavailable: ProblemType(
        "inspection-unavailable", 503, "Files cannot be looked into here", retry_seconds=60
    ),
    refusals.FilesUnavailable: ProblemType("files-unavailable", 503, "The file store is away", retry_seconds=5),
    refusals.TooManyStreams: ProblemType("too-many-streams", 503, "No more event streams are served", retry_seconds=10),
}
"""The one table from refusals to problems; a subclass that is not listed is what its base class is."""


class FaultView(BaseModel):
    """One thing that is wrong with what was sent."""

    pointer: str | None = Field(
        default=None, description="JSON Pointer (RFC 6901) into the body.", examples=["/model/kind"]
    )
    parameter: str | None = Field(default=None, description="The query parameter, header or form field.")
    detail: str = Field(description="What was found, and what would be accepted.")


class Problem(BaseModel):
    """Why a request was refused, after RFC 9457. Nothing that was sent is repeated, but names of fields."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    type: str
    """URI reference of the kind of problem: stable, for programs."""
    title: str
    """The kind of problem in words."""
    status: int
    """The HTTP status."""
    detail: str
    """What was found, what was expected, what to do."""
    instance: str
    """The path that was asked for."""
    request_id: str
    """The same as the header `X-Request-ID` and `request_id` in the server's log."""
    errors: list[FaultView] | None = None
    """Everything that is wrong, up to a limit."""
    current_status: str | None = None
    """The job's status, when that is in the way."""
    allowed_statuses: list[str] | None = None
    """The statuses in which the job would allow it."""


def problem_type(error: type[JobError]) -> ProblemType:
    """The kind of problem that a refusal is."""
    return next(TYPES[kind] for kind in error.__mro__ if kind in TYPES)


def refused(request: Request, error: JobError) -> Response:
    """The answer to a request that was refused."""
    if isinstance(error, refusals.NothingLeft):
        return Response(status_code=HTTPStatus.NO_CONTENT)
    kind = problem_type(type(error))
    headers: dict[str, str] = {}
    if isinstance(error, refusals.Unauthenticated):
        headers["WWW-Authenticate"] = 'Bearer realm="hyperdial"'
    elif isinstance(error, refusals.RangeUnsatisfiable):
        headers["Content-Range"] = f"bytes */{error.size_bytes}"
    elif isinstance(error, refusals.RateExceeded):
        headers["Retry-After"] = str(error.retry_seconds)
    elif isinstance(error, refusals.BodyTooLarge):
        headers["Connection"] = "close"  # the rest of the body is not read
    faults = error.faults if isinstance(error, refusals.InvalidRequest) else ()
    conflict = error if isinstance(error, StateConflict) else None
    return respond(
        request,
        kind,
        error.detail,
        headers=headers,
        errors=[FaultView(pointer=f.pointer, parameter=f.parameter, detail=f.detail) for f in faults] or None,
        current_status=conflict.current.value if conflict else None,
        allowed_statuses=sorted(status.value for status in conflict.allowed) if conflict else None,
    )


def respond(
    request: Request,
    kind: ProblemType,
    detail: str,
    *,
    headers: Mapping[str, str] | None = None,
    errors: list[FaultView] | None = None,
    current_status: str | None = None,
    allowed_statuses: list[str] | None = None,
) -> Response:
    """Write a problem."""
    problem = Problem(
        type=kind.uri,
        title=kind.title,
        status=kind.status,
        detail=detail,
        instance=quote(request.scope["path"][:512]),
        request_id=trace_of(request.scope).request_id,
        errors=errors,
        current_status=current_status,
        allowed_statuses=allowed_statuses,
    )
    sent = dict(headers or {})
    if kind.retry_seconds is not None:
        sent.setdefault("Retry-After", str(kind.retry_seconds))
    return Response(problem.model_dump_json(exclude_none=True), kind.status, sent, MEDIA_TYPE)


def install(app: FastAPI) -> None:
    """Make every error that leaves `app` a problem."""
    app.add_exception_handler(JobError, _job_error)
    app.add_exception_handler(RequestValidationError, _invalid_parameters)
    app.add_exception_handler(HTTPException, _http_exception)
    app.add_exception_handler(ClientDisconnect, _disconnected)
    app.add_exception_handler(Exception, _failure)


async def _job_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, JobError):
        raise error
    return refused(request, error)


async def _invalid_parameters(request: Request, error: Exception) -> Response:
    if not isinstance(error, RequestValidationError):
        raise error
    return refused(request, refusals.InvalidRequest(parameter_faults(error.errors())))


async def _http_exception(request: Request, error: Exception) -> Response:
    # Starlette's own: nothing at this path, method not allowed; their words may repeat what was sent.
    if not isinstance(error, HTTPException):
        raise error
    match error.status_code:
        case HTTPStatus.NOT_FOUND:
            return respond(request, NO_SUCH_PATH, "see /v1/openapi.json for the paths there are")
        case HTTPStatus.METHOD_NOT_ALLOWED:
            allowed = ", ".join(_methods(request))
            return respond(request, METHOD_NOT_ALLOWED, f"this path takes {allowed}", headers={"Allow": allowed})
        case _:
            return respond(request, BAD_REQUEST, "the request does not follow HTTP as it is understood here")


async def _disconnected(request: Request, error: Exception) -> Response:
    # Nobody hears this; it keeps a client that went away from looking like a failure of ours.
    del error
    return respond(request, BAD_REQUEST, "the connection was closed before the body had arrived")


def _methods(request: Request) -> list[str]:
    # Starlette names those of the first route with this path only.
    routes: list[Route] = request.app.state.routes
    fitting = [route for route in routes if route.matches(request.scope)[0] is not Match.NONE]
    methods = {method for route in fitting for method in route.methods or ()}
    return sorted(methods | {"HEAD"} if "GET" in methods else methods)


async def _failure(request: Request, error: Exception) -> Response:
    # Starlette answers this outside of all middleware, so what they do is done here.
    trace = trace_of(request.scope)
    log.error("a request failed", exc_info=error, extra={"route": trace.route, "request_id": trace.request_id})
    response = respond(request, INTERNAL, "the failure was logged with this request_id; trying again may help")
    response.headers["X-Request-ID"] = trace.request_id
    caution(response.headers)
    return response
