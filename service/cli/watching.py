"""Watch a job: its events as they happen, on a terminal or as lines in a pipe."""

import sys
from collections.abc import Iterator
from typing import Final

from pydantic import ValidationError
from rich.live import Live

from service.cli.client import Client, Event
from service.cli.display import Progress, point_line, result_view, status_text
from service.cli.exits import CommandError, ExitCode
from service.cli.options import err, out
from service.cli.views import JobView, LogEvent, PointView, ResultView, StatusEvent

_REFRESH_HZ: Final = 8


def apply(event: Event, progress: Progress) -> PointView | StatusEvent | LogEvent | None:
    """Feed an event to `progress` and return what it said; None for kinds that this program does not know."""
    try:
        match event.kind:
            case "point":
                point = PointView.model_validate_json(event.data)
                progress.point(point)
                return point
            case "status":
                status = StatusEvent.model_validate_json(event.data)
                progress.status(status)
                return status
            case "log":
                log = LogEvent.model_validate_json(event.data)
                progress.note(log.line)
                return log
            case _:
                return None
    except ValidationError as error:
        raise CommandError(
            f"the server sent a {event.kind!r} event that this program does not understand",
            code=ExitCode.UNREACHABLE,
            hint="use the same version of hyperdial on both sides",
        ) from error


def follow(client: Client, job: JobView) -> JobView:
    """Show a job until it ends, print what it learned, and return it as it ended."""
    progress = Progress(job)
    try:
        if out.is_terminal:
            with Live(progress, console=out, refresh_per_second=_REFRESH_HZ):
                for event in client.events(job.id):
                    apply(event, progress)
        else:
            for line in _lines(client, progress):
                # Not by rich, which takes longer for a line than a fast job for a step.
                sys.stdout.write(f"{line}\n")
                sys.stdout.flush()
    except KeyboardInterrupt:
        err.print(
            f"stopped watching; the job goes on. `hyperdial watch {job.id}` takes it up again, "
            f"`hyperdial cancel {job.id}` ends it."
        )
        raise
    ended = client.job(job.id)
    report(client, ended)
    return ended


def _lines(client: Client, progress: Progress) -> Iterator[str]:
    for event in client.events(progress.job.id):
        match apply(event, progress):
            case PointView() as point:
                yield point_line(point, progress.job.progress.of)
            case StatusEvent() as status:
                reason = status.failure or status.reason
                yield f"{status.status}" + (f": {reason.code}: {reason.detail}" if reason else "")
            case LogEvent() as log:
                yield log.line
            case None:
                pass


def report(client: Client, job: JobView) -> None:
    """Print how a job ended."""
    if job.status == "succeeded":
        out.print(result_view(ResultView.model_validate_json(client.call("GET", f"/v1/jobs/{job.id}/result").content)))
        return
    out.print(status_text(job.status), f"({job.id})")
    if (failure := job.failure) is not None:
        again = f"; `hyperdial retry {job.id}` goes on from its last checkpoint" if failure.retryable else ""
        err.print(f"{failure.code}: {failure.detail}{again}", style="red")


def exit_code(job: JobView) -> ExitCode:
    """What the shell should see of a job that has ended."""
    return ExitCode.OK if job.status == "succeeded" else ExitCode.JOB_FAILED
