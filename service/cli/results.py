"""Commands that fetch what a job learned, and how."""

import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final

import typer

from service.cli.display import result_view
from service.cli.exits import CommandError, ExitCode
from service.cli.options import DEFAULT_URL, AsJson, JobId, Url, connect, out, print_json
from service.cli.views import ResultView


class Format(StrEnum):
    """What a trajectory may be written as."""

    CSV = "csv"
    JSON = "json"
    NDJSON = "ndjson"
    PARQUET = "parquet"


ACCEPT: Final = {
    Format.CSV: "text/csv",
    Format.JSON: "application/json",
    Format.NDJSON: "application/x-ndjson",
    Format.PARQUET: "application/vnd.apache.parquet",
}


def result(job_id: JobId, *, url: Url = DEFAULT_URL, as_json: AsJson = False) -> int:
    """Print what a job learned, how good it is, and the evidence for it."""
    with connect(url) as client:
        answer = client.call("GET", f"/v1/jobs/{job_id}/result")
    if as_json:
        print_json(answer.content)
    else:
        out.print(result_view(ResultView.model_validate_json(answer.content)))
    return ExitCode.OK


def export(
    job_id: JobId,
    *,
    url: Url = DEFAULT_URL,
    kind: Annotated[Format, typer.Option("--format", "-f", help="What to write.")] = Format.CSV,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="The file; none: standard output.")] = None,
) -> int:
    """Write a job's trajectory."""
    if output is None and kind is Format.PARQUET and sys.stdout.isatty():
        raise CommandError("Parquet is not text", code=ExitCode.USAGE, hint="name a file with --output")
    path = f"/v1/jobs/{job_id}/trajectory"
    with connect(url) as client:
        if output is None:
            client.download(path, sys.stdout.buffer, accept=ACCEPT[kind])
            sys.stdout.buffer.flush()
            return ExitCode.OK
        # A file with this name is there in full or not at all.
        part = output.with_name(output.name + ".part")
        try:
            with part.open("wb") as stream:
                client.download(path, stream, accept=ACCEPT[kind])
            part.replace(output)
        except OSError as error:
            raise CommandError(
                f"{output} cannot be written: {os.strerror(error.errno or 0)}", code=ExitCode.USAGE
            ) from error
        finally:
            part.unlink(missing_ok=True)
    return ExitCode.OK
