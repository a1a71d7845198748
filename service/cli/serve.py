"""Commands that run the service: the API, a worker, the migrations, or all of it in one folder."""

import importlib.util
import logging
import os
import socket
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.live import Live
from rich.text import Text

from service.cli.display import rows_table, seconds
from service.cli.exits import CommandError, ExitCode
from service.cli.options import out, settings
from service.errors import StoreUnavailable
from service.settings import Settings

if TYPE_CHECKING:
    from service.embedded.children import Child

Insecure = Annotated[
    bool, typer.Option("--insecure", help="Allow HYPERDIAL_AUTH=off on an address that others can reach.")
]
Device = Annotated[str, typer.Option(help="Where jobs run: auto, cpu or cuda:N.")]


def up(
    *,
    data_dir: Annotated[
        Path | None, typer.Option(help="Where everything is kept.", envvar="HYPERDIAL_DATA_DIR")
    ] = None,
    workers: Annotated[int, typer.Option(min=0, max=256, help="How many jobs may run at once.")] = 1,
    host: Annotated[str | None, typer.Option(help="The address to listen on.", envvar="HYPERDIAL_HOST")] = None,
    port: Annotated[
        int | None,
        typer.Option(min=0, max=65535, help="The port to listen on; 0 takes a free one.", envvar="HYPERDIAL_PORT"),
    ] = None,
    device: Annotated[
        list[str] | None,
        typer.Option(help="Where jobs run: auto, cpu or cuda:N; given again, workers take turns.", show_default="auto"),
    ] = None,
    insecure: Insecure = False,
) -> int:
    """Run everything in one folder: database, queue, API and workers. Ctrl-C saves running jobs and stops."""
    # Here, not above: other commands start faster without Redis.
    from service.embedded.up import CannotStart, Plan, run

    if workers:
        _require_torch()
    plan = Plan(
        settings=settings(data_dir=data_dir, host=host, port=port),
        workers=workers,
        devices=tuple(device or ["auto"]),
        migrate=_upgrade,
        insecure=insecure,
    )
    status = _Status()
    try:
        run(plan, status)
    except CannotStart as error:
        raise CommandError(str(error), code=ExitCode.JOB_FAILED) from error
    finally:
        status.close()
    return ExitCode.OK


class _Status:
    """Says what happens: a table that is kept up to date on a terminal, lines elsewhere."""

    def __init__(self) -> None:
        # Refreshed by hand: a thread that draws must not be there when children are forked.
        self._live = Live(console=out, auto_refresh=False, transient=True) if out.is_terminal else None
        self._started = False
        self._next = 0.0

    def say(self, line: str) -> None:
        out.print(line, soft_wrap=True)
        if not out.is_terminal:
            sys.stdout.flush()

    def show(self, children: "list[Child]") -> None:
        if self._live is None or time.monotonic() < self._next:
            return
        self._next = time.monotonic() + 0.5
        if not self._started:
            self._live.start()
            self._started = True
        rows = [
            {
                "process": child.program.name,
                "state": child.state.value,
                "pid": str(child.pid or "–"),
                "for": seconds(child.up_seconds) if child.pid else "–",
                "deaths": str(child.deaths),
                "log": str(child.program.log),
            }
            for child in children
        ]
        columns = ("process", "state", "pid", "for", "deaths", "log")
        self._live.update(rows_table(rows, columns) if rows else Text(""), refresh=True)

    def close(self) -> None:
        if self._live is not None and self._started:
            self._live.stop()


def api(
    *,
    host: Annotated[str | None, typer.Option(help="The address to listen on.", envvar="HYPERDIAL_HOST")] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="The port to listen on.", envvar="HYPERDIAL_PORT")
    ] = None,
    insecure: Insecure = False,
    fd: Annotated[int | None, typer.Option(help="A socket that listens already, by its number.", hidden=True)] = None,
) -> int:
    """Run the API server. Any number of them may share a database."""
    # Here, not above: no other command needs the web framework.
    from service.api.server import Exposed, serve
    from service.embedded.listener import CannotListen, listen

    chosen = settings(host=host, port=port)
    try:
        listener = socket.socket(fileno=fd) if fd is not None else listen(chosen.host, chosen.port)
    except CannotListen as error:
        raise CommandError(str(error), code=ExitCode.JOB_FAILED) from error
    try:
        serve(chosen, sock=listener, insecure=insecure)
    except (Exposed, ValueError) as error:  # ValueError: no database or file store has such a URL
        raise CommandError(str(error), code=ExitCode.USAGE) from error
    finally:
        listener.close()
    # Everything is closed by now. Taking the interpreter apart takes seconds on a busy machine, in which whoever
    # stopped this process waits, and a stop is to be over in ten.
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(ExitCode.OK)


def worker(*, device: Device = "auto") -> int:
    """Run a worker: it takes one job after another. SIGTERM makes it save its job and leave."""
    _require_torch()
    settings()  # a wrong setting is told here, in words
    argv = [sys.executable, "-m", "workers", "--device", device]
    sys.stdout.flush()
    # The worker takes this process over, so that signals and its exit status need no passing on.
    os.execv(argv[0], argv)  # noqa: S606


def migrate() -> int:
    """Bring the database's tables up to date. Safe to run again, and by several at once."""
    chosen = settings()
    if chosen.database_url is None:
        try:
            chosen.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise CommandError(
                f"{chosen.data_dir} cannot be made: {error.strerror}",
                code=ExitCode.USAGE,
                hint="name another folder with HYPERDIAL_DATA_DIR",
            ) from error
    _upgrade(chosen)
    out.print("the database is up to date")
    return ExitCode.OK


def _upgrade(chosen: Settings) -> None:
    # Here, not above: commands that only talk to a server start faster without SQLAlchemy and Alembic.
    from service.store.backup import BackupFailed
    from service.store.database import Database
    from service.store.schema import SchemaTooNew, upgrade

    try:
        database = Database(chosen.database)
    except ValueError as error:  # another kind of database, or SQLite on a network file system
        raise CommandError(
            str(error), code=ExitCode.USAGE, hint="see HYPERDIAL_DATABASE_URL in docs/operate.md"
        ) from error
    try:
        upgrade(database, saved=lambda copy: out.print(f"the database as it was is in {copy}", soft_wrap=True))
    except (SchemaTooNew, BackupFailed) as error:
        raise CommandError(str(error), code=ExitCode.JOB_FAILED) from error
    except StoreUnavailable as error:
        raise CommandError(
            "the database cannot be reached",
            code=ExitCode.UNREACHABLE,
            hint="check HYPERDIAL_DATABASE_URL; `hyperdial doctor` says more",
        ) from error
    finally:
        database.close()


def _require_torch() -> None:
    if importlib.util.find_spec("torch") is None:
        raise CommandError(
            "a worker needs PyTorch, which is not installed here",
            code=ExitCode.USAGE,
            hint="pip install 'hyperdial[worker,embedded]'",
        )
