"""What a job made, to download."""

import base64
import re
from collections.abc import AsyncIterator, Generator
from contextlib import ExitStack
from typing import Annotated, Final

from fastapi import APIRouter, Depends, Header, Path
from starlette.responses import Response, StreamingResponse

from service.api.answers import answer
from service.api.auth import Reader
from service.api.conditions import IfNoneMatch, etag, is_current
from service.api.models import FileList, FileView
from service.api.openapi import binary, problems, returns
from service.api.parameters import JobId
from service.api.refusals import FilesUnavailable, RangeUnsatisfiable
from service.api.services import Injected, Services
from service.errors import NotFound
from service.records import FileRecord

router: Final = APIRouter(prefix="/v1/jobs/{job_id}/files", tags=["files"])

_RANGE: Final = re.compile(r"bytes\s*=\s*(?P<first>\d{0,18})\s*-\s*(?P<last>\d{0,18})\s*", re.ASCII)
_BINARY: Final = "application/octet-stream"


async def _until_answered() -> AsyncIterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


UntilAnswered = Annotated[ExitStack, Depends(_until_answered)]
"""What is entered here is left when the answer was sent, or nobody waits for the rest of it."""


@router.get("", summary="List a job's files", responses={200: returns(FileList), **problems(404)})
def list_files(services: Injected, _: Reader, job_id: JobId) -> Response:
    """List what the job made."""
    base = f"{services.settings.root_path}/v1/jobs/{job_id}/files"
    return answer(
        FileList(
            [
                FileView(
                    name=file.name, bytes=file.size_bytes, sha256=file.sha256, links={"self": f"{base}/{file.name}"}
                )
                for file in services.store.jobs.files(job_id)
            ]
        )
    )


@router.get(
    "/{name}",
    summary="Download a file",
    response_class=Response,
    responses={
        200: binary("The file.", _BINARY),
        206: binary("A part of the file.", _BINARY),
        304: {"description": "The client has the file."},
        **problems(404, 416),
    },
)
def get_file(
    services: Injected,
    _: Reader,
    opened: UntilAnswered,
    job_id: JobId,
    name: Annotated[str, Path(description="The file's name.", examples=["weights.safetensors"])],
    *,
    range_: Annotated[str | None, Header(alias="Range", description="`bytes=FIRST-LAST`: only this part.")] = None,
    if_range: Annotated[str | None, Header(description="Only if the file still has this ETag.")] = None,
    if_none_match: IfNoneMatch = None,
) -> Response:
    """Download a file, or one range of its bytes. The ETag is its SHA-256."""
    file = _file(services, job_id, name)
    tag = etag(file.sha256)
    headers = {
        "ETag": tag,
        "Accept-Ranges": "bytes",
        "Cache-Control": "private, no-cache",
        "Content-Disposition": f'attachment; filename="{file.name}"',
        "Repr-Digest": f"sha-256=:{base64.b64encode(bytes.fromhex(file.sha256)).decode()}:",
    }
    if is_current(if_none_match, tag):
        return Response(status_code=304, headers=headers)
    part = _part(range_, file.size_bytes) if if_range in (None, tag) else None
    start, end = part or (0, file.size_bytes)
    headers["Content-Length"] = str(end - start)
    if part is not None:
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{file.size_bytes}"
    pieces = _open(services, file, start, end)
    opened.callback(pieces.close)
    return StreamingResponse(pieces, 206 if part else 200, headers, _BINARY)


def _file(services: Services, job_id: str, name: str) -> FileRecord:
    # By comparison with what the database lists: a name never becomes a path.
    for file in services.store.jobs.files(job_id):
        if file.name == name:
            return file
    raise NotFound("the job has no such file: see the list of its files")


def _open(services: Services, file: FileRecord, start: int, end: int) -> Generator[bytes]:
    try:
        return services.files.open_range(file.key, start, end)
    except OSError as error:
        raise FilesUnavailable from error


def _part(header: str | None, size_bytes: int) -> tuple[int, int] | None:
    """Start and end of the range that is asked for; None for the whole file.

    Several ranges, other units and what cannot be read are answered with the whole file, as RFC 9110, 14.2 allows.

    Raises:
        RangeUnsatisfiable: there is nothing in the range.
    """
    match = _RANGE.fullmatch(header or "")
    if match is None or not (match["first"] or match["last"]):
        return None
    if not match["first"]:
        length = min(int(match["last"]), size_bytes)
        if length == 0:
            raise RangeUnsatisfiable(size_bytes)
        return size_bytes - length, size_bytes
    first = int(match["first"])
    end = min(int(match["last"]) + 1, size_bytes) if match["last"] else size_bytes
    if match["last"] and int(match["last"]) < first:
        return None
    if first >= size_bytes:
        raise RangeUnsatisfiable(size_bytes)
    return first, end
