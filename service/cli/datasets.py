"""Commands about datasets."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final

import typer

from service.cli.display import age, rows_table
from service.cli.exits import CommandError, ExitCode
from service.cli.options import DEFAULT_URL, AsJson, Url, connect, err, out, print_json, print_table
from service.cli.views import DatasetPage, DatasetView


class Format(StrEnum):
    """What a file of data may be."""

    CSV = "csv"
    PARQUET = "parquet"
    NPZ = "npz"
    SVMLIGHT = "svmlight"
    ZIP_IMAGES = "zip-images"
    SAFETENSORS = "safetensors"


_SUFFIXES: Final = {
    ".csv": Format.CSV,
    ".parquet": Format.PARQUET,
    ".npz": Format.NPZ,
    ".svm": Format.SVMLIGHT,
    ".svmlight": Format.SVMLIGHT,
    ".libsvm": Format.SVMLIGHT,
    ".zip": Format.ZIP_IMAGES,
    ".safetensors": Format.SAFETENSORS,
}


def add_dataset(
    file: Annotated[Path, typer.Argument(help="The file to upload.")],
    *,
    url: Url = DEFAULT_URL,
    name: Annotated[str | None, typer.Option(help="For people; none: the file's name.")] = None,
    kind: Annotated[
        Format | None, typer.Option("--format", "-f", help="What the file is; none: by its ending.")
    ] = None,
    as_json: AsJson = False,
) -> int:
    """Upload a file; prints the dataset's id. The same bytes give the same dataset."""
    kind = kind or _SUFFIXES.get(file.suffix.lower())
    if kind is None:
        raise CommandError(
            f"the ending of {file.name} names no format", code=ExitCode.USAGE, hint="say it with --format"
        )
    with connect(url) as client:
        answer = client.upload(file, name=name or file.stem, kind=kind)
    if as_json:
        print_json(answer.content)
    else:
        out.print(DatasetView.model_validate_json(answer.content).id)
    return ExitCode.OK


def list_datasets(*, url: Url = DEFAULT_URL, as_json: AsJson = False) -> int:
    """List the datasets that jobs can learn from."""
    with connect(url) as client:
        answer = client.call("GET", "/v1/datasets", params={"limit": 200})
        if as_json:
            print_json(answer.content)
            return ExitCode.OK
        page = DatasetPage.model_validate_json(answer.content)
        datasets = list(page.items)
        while page.next_cursor is not None:
            answer = client.call("GET", "/v1/datasets", params={"limit": 200, "cursor": page.next_cursor})
            page = DatasetPage.model_validate_json(answer.content)
            datasets.extend(page.items)
    if not datasets:
        err.print("no datasets: upload one with `hyperdial dataset add FILE`")
    print_table(
        rows_table(
            [
                {
                    "id": dataset.id,
                    "name": dataset.name,
                    "format": dataset.format,
                    "rows": "–" if dataset.rows is None else str(dataset.rows),
                    "columns": str(len(dataset.columns)),
                    "created": age(dataset.created_at),
                }
                for dataset in datasets
            ],
            ("id", "name", "format", "rows", "columns", "created"),
        )
    )
    return ExitCode.OK


def show_dataset(
    dataset_id: Annotated[str, typer.Argument(metavar="ID", help="The dataset's id (ds_… or builtin:…).")],
    *,
    url: Url = DEFAULT_URL,
) -> int:
    """Print a dataset's columns and counts as JSON."""
    with connect(url) as client:
        print_json(client.call("GET", f"/v1/datasets/{dataset_id}").content)
    return ExitCode.OK
