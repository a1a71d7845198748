"""Parameters that several endpoints take, and the refusal of those that none takes."""

import re
from datetime import UTC, datetime
from typing import Annotated, Final

from fastapi import Depends, Path, Query
from fastapi.routing import APIRoute
from pydantic import AfterValidator, AwareDatetime
from starlette.requests import Request

from service.api.cursors import LONGEST
from service.api.refusals import Fault, InvalidRequest
from service.errors import NotFound

_JOB_ID: Final = re.compile(r"job_[0-9a-z]{1,60}", re.ASCII)
_DATASET_ID: Final = re.compile(r"ds_[0-9a-z]{1,60}|builtin:[a-z0-9_]{1,60}", re.ASCII)

LARGEST_SEQ: Final = 2**63 - 1
LARGEST_STEP: Final = 2**31 - 1


async def _job_id(
    job_id: Annotated[str, Path(description="The job's id.", examples=["job_01m5w3k0qyzx8v2h6t9c4r7n1p"])],
) -> str:
    if not _JOB_ID.fullmatch(job_id):
        raise NotFound("there is no such job")
    return job_id


async def _dataset_id(
    dataset_id: Annotated[str, Path(description="The dataset's id.", examples=["builtin:digits"])],
) -> str:
    if not _DATASET_ID.fullmatch(dataset_id):
        raise NotFound("there is no such dataset")
    return dataset_id


JobId = Annotated[str, Depends(_job_id)]
DatasetId = Annotated[str, Depends(_dataset_id)]
Limit = Annotated[int, Query(ge=1, le=200, description="At most so many.")]
Cursor = Annotated[
    str | None, Query(max_length=LONGEST, description="`next_cursor` of the page before, with the same filters.")
]


def _in_utc(moment: datetime) -> datetime:
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        raise ValueError("must lie within the years 1 to 9999 in UTC") from None


Moment = Annotated[AwareDatetime, AfterValidator(_in_utc)]
"""A moment with a time zone, in UTC."""


def _query_names(route: APIRoute) -> frozenset[str]:
    """Names of the query parameters that an endpoint and what it depends on declare."""
    waiting, names = [route.dependant], set[str]()
    while waiting:
        dependant = waiting.pop()
        names |= {field.alias for field in dependant.query_params}
        waiting += dependant.dependencies
    return frozenset(names)


async def refuse_unknown_parameters(request: Request) -> None:
    """Refuse a query parameter that is not declared: `?dryrun=true` must not submit a job in earnest."""
    if not request.scope["query_string"]:
        return
    known = _query_names(request.scope["route"])
    if any(name not in known for name in request.query_params):
        listed = ", ".join(repr(name) for name in sorted(known)) or "none"
        raise InvalidRequest([Fault(f"a query parameter is not known here; there are: {listed}", parameter="query")])
