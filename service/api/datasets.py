"""Datasets: to upload, look at and delete."""

import re
from contextlib import ExitStack
from dataclasses import replace
from pathlib import PurePath
from typing import Annotated, Final

from fastapi import APIRouter, Query
from fastapi.concurrency import run_in_threadpool
from pydantic import Field, ValidationError
from pydantic.types import StringConstraints
from starlette.requests import Request
from starlette.responses import Response

from service.api import cursors
from service.api.answers import answer
from service.api.auth import Reader, Submitter, require_scope
from service.api.conditions import IfNoneMatch, etag, is_current
from service.api.faults import body_faults
from service.api.keeping import keep, known
from service.api.models import ColumnView, DatasetPage, DatasetView, PreviewView
from service.api.openapi import header, problems, returns
from service.api.parameters import Cursor, DatasetId, Limit
from service.api.refusals import Fault, FilesUnavailable, InvalidRequest
from service.api.services import Injected, Services
from service.api.uploads import Upload, received
from service.builtin import BUILTIN_DATASETS, builtin_dataset
from service.cache import make_cache
from service.identifiers import new_id
from service.inspection import DatasetFormat, InspectionLimits, UnusableFile, inspect, preview, preview_builtin
from service.records import DatasetRecord, JsonObject, KeyScope
from service.spec.base import SafeText, Spec
from service.store import NewDataset

router: Final = APIRouter(prefix="/v1/datasets", tags=["datasets"])

UPLOADS: Final = "uploads"
"""Folder below the data folder in which uploads arrive."""

_MOST_ROWS: Final = 100


class DatasetForm(Spec):
    """What is said of an uploaded file."""

    format: Annotated[DatasetFormat, Field(strict=False, description="What the file is.")]
    name: Annotated[SafeText, StringConstraints(min_length=1, max_length=200)] | None = Field(
        default=None, description="For people; left out: the file's name."
    )
    sha256: Annotated[str, StringConstraints(pattern=re.compile(r"^[0-9a-f]{64}$"))] | None = Field(
        default=None, description="Of the file, in hexadecimal: refused when other bytes arrived."
    )


_FORM: Final = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file", "format"],
                    "additionalProperties": False,
                    "properties": {
                        "file": {"type": "string", "format": "binary", "description": "The file."},
                        "format": {
                            "type": "string",
                            "enum": [each.value for each in DatasetFormat],
                            "description": "What the file is.",
                        },
                        "name": {
                            "type": "string",
                            "minLength": 1,
                            "maxLength": 200,
                            "description": "For people; left out: the file's name.",
                        },
                        "sha256": {
                            "type": "string",
                            "pattern": "^[0-9a-f]{64}$",
                            "description": "Of the file: refused when other bytes arrived.",
                        },
                    },
                }
            }
        },
    }
}


@router.post(
    "",
    status_code=201,
    summary="Upload a dataset",
    responses={
        200: returns(DatasetView, "The same bytes were there before: that dataset."),
        201: returns(DatasetView, "The dataset.", headers={"Location": header("Where it is.")}),
        **problems(400, 413, 415),
    },
    openapi_extra=_FORM,
)
async def create_dataset(request: Request, services: Injected, _: Submitter) -> Response:
    """Upload a file of data. The same bytes in the same format are the same dataset.

    The file is read in a process of its own before this answers: what it holds, or why it cannot be used.
    """
    settings = services.settings
    async with received(
        request,
        folder=settings.data_dir / UPLOADS,
        limit_bytes=settings.upload_limit_bytes,
        known=frozenset(DatasetForm.model_fields),
    ) as upload:
        dataset, is_new = await run_in_threadpool(_store, services, upload)
    view = dataset_view(dataset, root=settings.root_path)
    return answer(view, status=201 if is_new else 200, headers={"Location": view.links["self"]})


def _store(services: Services, upload: Upload) -> tuple[DatasetRecord, bool]:
    form = _form(upload)
    if (same := known(services, upload.sha256, form.format.value)) is not None:
        return same, False
    try:
        found = inspect(upload.path, form.format, limits=_limits(services))
    except UnusableFile as error:
        raise InvalidRequest([Fault(error.detail, pointer="/file")]) from error
    new = NewDataset(
        id=new_id("ds"),
        name=form.name or stem(upload.filename) or "dataset",
        format=form.format.value,
        rows=found.rows,
        columns=found.columns,
        is_sparse=found.is_sparse,
        nonzeros=found.nonzeros,
        sha256=upload.sha256,
        size_bytes=upload.size_bytes,
        key="",
    )
    return keep(services, new, upload.path)


def _form(upload: Upload) -> DatasetForm:
    try:
        form = DatasetForm.model_validate(dict(upload.fields))
    except ValidationError as error:
        raise InvalidRequest(body_faults(error, DatasetForm)) from error
    if form.sha256 not in (None, upload.sha256):
        raise InvalidRequest(
            [Fault("other bytes arrived than those with this hash: send them again", pointer="/sha256")]
        )
    return form


def stem(filename: str) -> str:
    """A name for people out of a file's name: no folders, no ending, nothing that cannot be shown."""
    text = "".join(character for character in PurePath(filename).stem if character.isprintable())
    return text.encode("utf-8", "replace").decode("utf-8").strip(". ")[:200]


def _limits(services: Services) -> InspectionLimits:
    return InspectionLimits(unpacked_bytes=services.settings.unpacked_limit_bytes)


@router.get("", summary="List datasets", responses={200: returns(DatasetPage), **problems(400)})
def list_datasets(services: Injected, _: Reader, limit: Limit = 50, cursor: Cursor = None) -> Response:
    """List datasets, the newest first; those that ship with the service come last."""
    before = cursors.decode(cursor, "datasets")
    shipped = sorted(BUILTIN_DATASETS.values(), key=lambda each: each.id)
    seen = before[1] if before is not None and before[1] in BUILTIN_DATASETS else None
    found = [] if seen is not None else services.store.datasets.list(limit=limit + 1, before=before)
    if len(found) <= limit:
        found += [each for each in shipped if seen is None or each.id > seen][: limit + 1 - len(found)]
    page, more = found[:limit], len(found) > limit
    next_cursor = cursors.encode((page[-1].created_at, page[-1].id), "datasets") if more else None
    root = services.settings.root_path
    return answer(DatasetPage([dataset_view(dataset, root=root) for dataset in page], next_cursor))


@router.get(
    "/{dataset_id}",
    summary="Show a dataset",
    responses={200: returns(DatasetView), 304: {"description": "The client has it."}, **problems(404)},
)
def get_dataset(services: Injected, _: Reader, dataset_id: DatasetId, if_none_match: IfNoneMatch = None) -> Response:
    """Show what a dataset holds: rows, columns and their types."""
    tag = etag(dataset_id)  # a dataset never changes
    headers = {"ETag": tag, "Cache-Control": "no-cache"}
    dataset = _dataset(services, dataset_id)
    if is_current(if_none_match, tag):
        return Response(status_code=304, headers=headers)
    return answer(dataset_view(dataset, root=services.settings.root_path), headers=headers)


@router.get(
    "/{dataset_id}/preview",
    summary="Show a dataset's first rows",
    responses={200: returns(PreviewView), **problems(404)},
)
def preview_dataset(
    services: Injected,
    _: Reader,
    dataset_id: DatasetId,
    rows: Annotated[int, Query(ge=1, le=_MOST_ROWS, description="How many.")] = 10,
) -> Response:
    """Show the first rows of a dataset, and up to a limit of its columns; of weights the first tensors."""
    shown = _preview(services, _dataset(services, dataset_id), rows)
    return answer(shown)


@router.delete(
    "/{dataset_id}",
    status_code=204,
    summary="Delete a dataset",
    response_class=Response,
    responses={204: {"description": "It is gone."}, **problems(404, 409)},
)
def delete_dataset(
    services: Injected,
    caller: Submitter,
    dataset_id: DatasetId,
    *,
    force: Annotated[
        bool, Query(description="Even if a job that has not ended needs it; needs the scope `admin`.")
    ] = False,
) -> Response:
    """Delete a dataset that no waiting or running job needs."""
    if force:
        require_scope(caller, KeyScope.ADMIN)
    if builtin_dataset(dataset_id) is not None:
        raise InvalidRequest([Fault("ships with the service and cannot be deleted", parameter="dataset_id")])
    # The file is removed by the outbox, which knows whether the same bytes were uploaded again meanwhile.
    services.store.datasets.delete(dataset_id, force=force)
    return Response(status_code=204)


def dataset_view(dataset: DatasetRecord, *, root: str) -> DatasetView:
    """A dataset as clients see it."""
    path = f"{root}/v1/datasets/{dataset.id}"
    return DatasetView(
        id=dataset.id,
        name=dataset.name,
        format=dataset.format,
        rows=dataset.rows,
        columns=[
            ColumnView(column.name, column.type, list(column.shape), column.missing, column.values)
            for column in dataset.columns
        ],
        sparse=dataset.is_sparse,
        nonzeros=dataset.nonzeros,
        sha256=dataset.sha256,
        bytes=dataset.size_bytes,
        created_at=dataset.created_at,
        links={"self": path, "preview": f"{path}/preview"},
    )


def _dataset(services: Services, dataset_id: str) -> DatasetRecord:
    return builtin_dataset(dataset_id) or services.store.datasets.get(dataset_id)


def _preview(services: Services, dataset: DatasetRecord, rows: int) -> JsonObject:
    limits = replace(_limits(services), wall_seconds=60.0, cpu_seconds=60)
    if not dataset.key:
        return preview_builtin(dataset.id, rows=rows, limits=limits)
    with ExitStack() as stack:
        cache = make_cache(services.files, services.settings)
        try:
            path = stack.enter_context(cache.held(dataset.key, sha256=dataset.sha256))
        except OSError as error:
            raise FilesUnavailable from error
        return preview(path, DatasetFormat(dataset.format), rows=rows, limits=limits)
