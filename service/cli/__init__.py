"""The command line."""

import sys
from collections.abc import Callable
from functools import wraps
from typing import Annotated, Final, NoReturn, ParamSpec

import typer

from service.cli import datasets, doctor, jobs, keys, results, serve
from service.cli.exits import EXIT_CODES, CommandError, ExitCode
from service.cli.options import err, out
from service.version import version as this_version

P = ParamSpec("P")

_EPILOG: Final = "Exit codes: " + "; ".join(f"{code.value} {meaning}" for code, meaning in EXIT_CODES.items()) + "."


def _ending(command: Callable[P, int]) -> Callable[P, None]:
    """Let what a command returns be the exit code."""

    @wraps(command)
    def run(*args: P.args, **given: P.kwargs) -> None:
        raise typer.Exit(int(command(*args, **given)))

    return run


def make_app() -> typer.Typer:
    """The program with all its commands."""
    app = typer.Typer(
        name="hyperdial",
        help="Learn regularization strengths instead of searching for them.",
        epilog=_EPILOG,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
    )
    app.callback()(_version)
    run, work, manage = "Run the service", "Work with jobs", "Manage"
    for panel, name, command in (
        (run, "up", serve.up),
        (run, "api", serve.api),
        (run, "worker", serve.worker),
        (run, "migrate", serve.migrate),
        (run, "doctor", doctor.doctor),
        (run, "health", doctor.health),
        (work, "submit", jobs.submit),
        (work, "watch", jobs.watch),
        (work, "list", jobs.list_jobs),
        (work, "show", jobs.show),
        (work, "cancel", jobs.cancel),
        (work, "pause", jobs.pause),
        (work, "resume", jobs.resume),
        (work, "retry", jobs.retry),
        (work, "result", results.result),
        (work, "export", results.export),
    ):
        app.command(name, rich_help_panel=panel, epilog=_EPILOG)(_ending(command))
    dataset = typer.Typer(help="Upload and look at datasets.", no_args_is_help=True)
    dataset.command("add")(_ending(datasets.add_dataset))
    dataset.command("list")(_ending(datasets.list_datasets))
    dataset.command("show")(_ending(datasets.show_dataset))
    app.add_typer(dataset, name="dataset", rich_help_panel=manage)
    key = typer.Typer(help="Make and revoke API keys, directly in the database.", no_args_is_help=True)
    key.command("create")(_ending(keys.create_key))
    key.command("list")(_ending(keys.list_keys))
    key.command("revoke")(_ending(keys.revoke_key))
    app.add_typer(key, name="key", rich_help_panel=manage)
    return app


def _version(
    *,
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            help="Print the version and leave.",
            is_eager=True,
            callback=lambda given: _print_version(given),
        ),
    ] = False,
) -> None:
    del version


def _print_version(asked: bool) -> None:  # noqa: FBT001  typer calls it with one argument
    if not asked:
        return
    out.print(this_version())
    raise typer.Exit


def main() -> NoReturn:
    """Run the program with the arguments of this process."""
    try:
        make_app()(prog_name="hyperdial")
    except CommandError as error:
        tell(error)
        sys.exit(error.code)
    sys.exit(ExitCode.OK)


def tell(error: CommandError) -> None:
    """Print what went wrong and what to do, for people."""
    err.print("error:", style="bold red", end=" ")
    err.print(error.message, soft_wrap=True)
    for pointer, detail in error.details:
        err.print(f"  {pointer or '/'}: {detail}", soft_wrap=True)
    if error.hint:
        err.print(f"  {error.hint}", style="dim", soft_wrap=True)
