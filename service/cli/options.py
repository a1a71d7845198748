"""Options and arguments that several commands share."""

import os
import sys
from pathlib import Path
from typing import Annotated, Final

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from service.cli.client import Client
from service.cli.exits import CommandError, ExitCode
from service.settings import Settings

DEFAULT_URL: Final = "http://127.0.0.1:8000"

Url = Annotated[str, typer.Option("--url", envvar="HYPERDIAL_URL", help="The server's address.", show_default=True)]
JobId = Annotated[str, typer.Argument(metavar="ID", help="The job's id (job_…).")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]

# Names and messages come from elsewhere: they are never read as markup.
out: Final = Console(highlight=False, markup=False, emoji=False)
_PIPE_WIDTH: Final = 1000
err: Final = Console(stderr=True, highlight=False, markup=False, emoji=False)


def connect(url: str) -> Client:
    """A client of the server at `url`, with the key of HYPERDIAL_API_KEY or HYPERDIAL_API_KEY_FILE."""
    key = os.environ.get("HYPERDIAL_API_KEY")
    if not key and (file := os.environ.get("HYPERDIAL_API_KEY_FILE")):
        try:
            key = Path(file).read_text(encoding="utf-8").strip()
        except OSError as error:
            raise CommandError(
                f"HYPERDIAL_API_KEY_FILE names {file}, which cannot be read: {error.strerror}", code=ExitCode.USAGE
            ) from error
    return Client(url, key=key)


def settings(**given: object) -> Settings:
    """The settings of the environment, with those that the command line gives in their place."""
    changed = {name: value for name, value in given.items() if value is not None}
    try:
        return Settings.model_validate({**Settings().model_dump(exclude_unset=True), **changed})
    except ValidationError as error:
        details = [("HYPERDIAL_" + "_".join(map(str, entry["loc"])).upper(), entry["msg"]) for entry in error.errors()]
        raise CommandError(
            "the settings are wrong",
            code=ExitCode.USAGE,
            hint="every setting is described in docs/operate.md",
            details=details,
        ) from error
    except ValueError as error:  # a secret's file cannot be read
        raise CommandError(str(error), code=ExitCode.USAGE) from error


def print_table(table: Table) -> None:
    """Print a table: as wide as it needs in a pipe, where nobody wants an id cut short."""
    out.print(table, width=None if out.is_terminal else _PIPE_WIDTH)


def print_json(body: bytes) -> None:
    """Print an answer's JSON: in colours on a terminal, as it is in a pipe."""
    if out.is_terminal:
        out.print_json(body.decode())
    else:
        sys.stdout.buffer.write(body.rstrip(b"\n") + b"\n")
        sys.stdout.buffer.flush()
