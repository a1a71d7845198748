"""The trajectory of a job, a page at a time or all of it."""

from collections.abc import Iterator
from enum import StrEnum
from typing import Annotated, Final

from fastapi import APIRouter, Header, Query
from starlette.responses import Response, StreamingResponse

from service.api import exports
from service.api.auth import Reader
from service.api.models import PointPage
from service.api.negotiation import best
from service.api.openapi import problems, returns
from service.api.parameters import LARGEST_STEP, JobId
from service.api.services import Injected
from service.records import PointRecord
from service.store import Store

router: Final = APIRouter(prefix="/v1/jobs/{job_id}", tags=["trajectories"])

_BATCH: Final = 1000
_MOST: Final = 1_000_000


class Format(StrEnum):
    """What a trajectory can be written as."""

    JSON = "json"
    NDJSON = "ndjson"
    CSV = "csv"
    PARQUET = "parquet"


MEDIA_TYPES: Final = {
    Format.JSON: "application/json",
    Format.NDJSON: "application/x-ndjson",
    Format.CSV: "text/csv",
    Format.PARQUET: "application/vnd.apache.parquet",
}
_WRITERS: Final = {
    Format.NDJSON: exports.as_ndjson,
    Format.CSV: exports.as_csv,
    Format.PARQUET: exports.as_parquet,
}
_ANSWER: Final = returns(PointPage)
_ANSWER["content"] |= {media: {"schema": {"type": "string"}} for form, media in MEDIA_TYPES.items() if form != "json"}


@router.get(
    "/trajectory",
    summary="Read a trajectory",
    responses={200: _ANSWER, **problems(404, 406)},
)
def get_trajectory(
    services: Injected,
    _: Reader,
    job_id: JobId,
    *,
    after: Annotated[int | None, Query(ge=0, le=LARGEST_STEP, description="Only later steps.")] = None,
    limit: Annotated[
        int | None, Query(ge=1, le=_MOST, description="At most so many points; none: all there are.")
    ] = None,
    form: Annotated[
        Format | None, Query(alias="format", description="The same as Accept, for links in a browser.")
    ] = None,
    accept: Annotated[str | None, Header(description=f"One of {', '.join(MEDIA_TYPES.values())}.")] = None,
) -> Response:
    """Read the points of a job, in one page or in one file.

    The files are written while they are sent. In CSV and Parquet nested names are joined by dots
    (`hyperparameters.l2`).
    """
    form = form or Format(best(accept, {media: form.value for form, media in MEDIA_TYPES.items()}))
    services.store.points.page(job_id, after=after, limit=1)  # before the answer begins: is there such a job?

    # A page of JSON says whether there are more points, hence asks for one more than it shows.
    wanted = limit + 1 if limit is not None and form is Format.JSON else limit

    def batches() -> Iterator[list[PointRecord]]:
        return _batches(services.store, job_id, after=after, limit=wanted)

    headers = {"Vary": "Accept"}
    if form is Format.JSON:
        written = exports.as_json(batches, limit=limit)
        if limit is not None and limit <= _BATCH:
            return Response(b"".join(written), 200, headers, MEDIA_TYPES[form])
    else:
        written = _WRITERS[form](batches)
        headers["Content-Disposition"] = f'attachment; filename="{job_id}.{form.value}"'
    return StreamingResponse(written, 200, headers, MEDIA_TYPES[form])


def _batches(store: Store, job_id: str, *, after: int | None, limit: int | None) -> Iterator[list[PointRecord]]:
    # A transaction for each batch: a slow reader holds nothing open.
    left = limit
    while left is None or left > 0:
        size = _BATCH if left is None else min(_BATCH, left)
        found = store.points.page(job_id, after=after, limit=size)
        if found:
            yield found
        if len(found) < size:
            return
        after = found[-1].step
        left = None if left is None else left - size
