"""Commands that submit, watch and steer jobs."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from pydantic import JsonValue
from rich.console import Group
from rich.table import Table
from rich.text import Text

from service.cli.client import JSON, Client
from service.cli.display import Progress, age, jobs_table, status_text
from service.cli.exits import CommandError, ExitCode
from service.cli.options import DEFAULT_URL, AsJson, JobId, Url, connect, err, out, print_json, print_table
from service.cli.views import JobPage, JobView
from service.cli.watching import exit_code, follow, report

_PAGE = 200


def submit(
    spec: Annotated[
        str, typer.Argument(metavar="SPEC.json|-", help="The job's specification; - reads standard input.")
    ],
    *,
    url: Url = DEFAULT_URL,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Show the job until it ends.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check it and print it with all defaults filled in; nothing is stored.")
    ] = False,
    idempotency_key: Annotated[
        str | None, typer.Option(help="Submitting again with the same key gives the same job.")
    ] = None,
    as_json: AsJson = False,
) -> int:
    """Submit a job; prints its id."""
    body = read_spec(spec)
    with connect(url) as client:
        if dry_run:
            return _dry_run(client, body)
        job = client.submit(body, key=idempotency_key)
        if as_json:
            print_json(client.call("GET", f"/v1/jobs/{job.id}").content)
        else:
            out.print(job.id)
        return exit_code(follow(client, job)) if watch else ExitCode.OK


def read_spec(source: str) -> JsonValue:
    """The JSON in a file, or on standard input for `-`."""
    try:
        text = sys.stdin.read() if source == "-" else Path(source).read_text(encoding="utf-8")
    except OSError as error:
        raise CommandError(f"{source} cannot be read: {error.strerror}", code=ExitCode.USAGE) from error
    except UnicodeDecodeError as error:
        raise CommandError(f"{source} is not UTF-8 text", code=ExitCode.USAGE) from error
    try:
        return JSON.validate_python(json.loads(text))
    except json.JSONDecodeError as error:
        where = "standard input" if source == "-" else source
        raise CommandError(
            f"{where} is not JSON: {error.msg} at line {error.lineno}, column {error.colno}", code=ExitCode.USAGE
        ) from error


def _dry_run(client: Client, body: JsonValue) -> int:
    answer = client.call("POST", "/v1/jobs", params={"dry_run": "true"}, body=body)
    print_json(answer.content)
    verdict = JSON.validate_json(answer.content)
    warnings = verdict.get("warnings") if isinstance(verdict, dict) else None
    for warning in warnings if isinstance(warnings, list) else []:
        err.print(f"warning: {warning}", style="yellow", soft_wrap=True)
    return ExitCode.OK


def watch(job_id: JobId, *, url: Url = DEFAULT_URL) -> int:
    """Show a job live until it ends: progress, strengths and losses as they move."""
    with connect(url) as client:
        job = client.job(job_id)
        if not job.is_ended:
            job = follow(client, job)
        else:
            report(client, job)
        return exit_code(job)


def list_jobs(
    *,
    url: Url = DEFAULT_URL,
    status: Annotated[list[str] | None, typer.Option(help="Only jobs of this status; may be given again.")] = None,
    method: Annotated[str | None, typer.Option(help="Only jobs of this method.")] = None,
    label: Annotated[list[str] | None, typer.Option(metavar="KEY:VALUE", help="Only jobs with this label.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many, newest first.")] = 20,
    as_json: AsJson = False,
) -> int:
    """List jobs, newest first."""
    params: dict[str, str | int | list[str]] = {}
    if status:
        params["status"] = status
    if method:
        params["method"] = method
    if label:
        params["label"] = [given.replace("=", ":", 1) if ":" not in given else given for given in label]
    jobs: list[JobView] = []
    raw: list[JsonValue] = []
    with connect(url) as client:
        cursor: str | None = None
        while len(jobs) < limit:
            more: dict[str, str | int | list[str]] = {"limit": min(_PAGE, limit - len(jobs))}
            answer = client.call("GET", "/v1/jobs", params={**params, **more, **({"cursor": cursor} if cursor else {})})
            page = JobPage.model_validate_json(answer.content)
            jobs.extend(page.items)
            body = JSON.validate_json(answer.content)
            items = body.get("items") if isinstance(body, dict) else None
            raw.extend(items if isinstance(items, list) else [])
            cursor = page.next_cursor
            if cursor is None:
                break
    if as_json:
        print_json(json.dumps(raw).encode())
    elif jobs:
        print_table(jobs_table(jobs))
    else:
        err.print("no jobs: submit one with `hyperdial submit SPEC.json`")
    return ExitCode.OK


def show(job_id: JobId, *, url: Url = DEFAULT_URL, as_json: AsJson = False) -> int:
    """Show a job as it stands."""
    with connect(url) as client:
        answer = client.call("GET", f"/v1/jobs/{job_id}")
    if as_json:
        print_json(answer.content)
        return ExitCode.OK
    job = JobView.model_validate_json(answer.content)
    facts = Table.grid(padding=(0, 2))
    for name, value in (
        ("method", job.method),
        ("attempt", str(job.attempt)),
        ("created", age(job.created_at)),
        ("started", age(job.started_at)),
        ("ended", age(job.ended_at)),
        ("labels", ", ".join(f"{key}:{value}" for key, value in job.labels.items()) or "–"),
    ):
        facts.add_row(Text(name, style="bold"), Text(value))
    out.print(Group(Progress(job), facts))
    return ExitCode.OK


def _steer(job_id: str, url: str, verb: str) -> int:
    with connect(url) as client:
        job = JobView.model_validate_json(client.call("POST", f"/v1/jobs/{job_id}/{verb}").content)
    out.print(job.id, status_text(job.status))
    return ExitCode.OK


def cancel(job_id: JobId, *, url: Url = DEFAULT_URL) -> int:
    """Cancel a job: it ends after its current step, and keeps what it recorded."""
    return _steer(job_id, url, "cancel")


def pause(job_id: JobId, *, url: Url = DEFAULT_URL) -> int:
    """Pause a job: it saves itself and gives its worker free."""
    return _steer(job_id, url, "pause")


def resume(job_id: JobId, *, url: Url = DEFAULT_URL) -> int:
    """Let a paused job go on from where it stopped."""
    return _steer(job_id, url, "resume")


def retry(job_id: JobId, *, url: Url = DEFAULT_URL) -> int:
    """Let a failed or cancelled job go on from its last checkpoint."""
    return _steer(job_id, url, "retry")
