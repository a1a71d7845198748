"""Commands that look whether an installation is well, and say what to do where it is not."""

import json
import socket
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import httpx
import typer
from rich.table import Table
from rich.text import Text

from service.cli.exits import CommandError, ExitCode
from service.cli.options import DEFAULT_URL, AsJson, Url, print_json, print_table, settings

if TYPE_CHECKING:
    from service.cli.checks import Finding


def doctor(*, url: Url = DEFAULT_URL, as_json: AsJson = False) -> int:
    """Check the installation: settings, database, queue, files, devices, clock, disk, workers, and the server."""
    # Here, not above: other commands start faster without the store.
    from service.cli.checks import Verdict, examine

    findings = list(examine(settings(), url))
    if as_json:
        print_json(json.dumps([asdict(finding) for finding in findings]).encode())
    else:
        print_table(_table(findings))
    return ExitCode.JOB_FAILED if any(finding.verdict is Verdict.BAD for finding in findings) else ExitCode.OK


def health(
    *,
    url: Url = DEFAULT_URL,
    worker: Annotated[bool, typer.Option("--worker", help="Ask for this machine's worker instead of the API.")] = False,
) -> int:
    """Say in an exit code whether the API, or this machine's worker, is well; for container health checks."""
    if not worker:
        try:
            answer = httpx.get(f"{url.rstrip('/')}/readyz", timeout=5.0, trust_env=False)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise CommandError(f"no server answers at {url}", code=ExitCode.UNREACHABLE) from error
        if not answer.is_success:
            raise CommandError(f"the server is not ready: {answer.text[:200]}", code=ExitCode.UNREACHABLE)
        return ExitCode.OK
    from service.cli.checks import live_workers

    here = socket.gethostname()
    if all(found.host != here for found in live_workers(settings())):
        raise CommandError(f"no worker of {here} is alive", code=ExitCode.JOB_FAILED)
    return ExitCode.OK


def _table(findings: "list[Finding]") -> Table:
    signs = {"good": Text("✔", "green"), "warning": Text("!", "yellow"), "bad": Text("✘", "red")}
    table = Table.grid(padding=(0, 2))
    for finding in findings:
        said = Text(finding.found)
        if finding.remedy:
            said.append(f"\n→ {finding.remedy}", style="cyan")
        table.add_row(signs[finding.verdict], Text(finding.check, style="bold"), said)
    return table
