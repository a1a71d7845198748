"""`make demo`: learn the penalties of a real data set while you watch, and compare with what one gets without."""

import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from pydantic import JsonValue
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from demo.baselines import Outcome, default, grid, without_penalty
from demo.comparison import Comparison
from demo.embedded import DidNotStart, running
from demo.jobs import JOBS, SPECS, Demonstrated
from demo.rows import parts_of
from service.cli.client import Client
from service.cli.display import Progress, learned_text, learned_values, sparkline
from service.cli.exits import CommandError
from service.cli.views import JobView, ResultView
from service.cli.watching import apply

GRID_POINTS = 50
PIPE_WIDTH = 130
WIDE = 140
"""Columns that two jobs beside each other need."""
GOOD_VERDICTS = ("optimum", "at_bound")


def main() -> int:
    """Run the demo; 0 if all jobs succeeded with answers that their evidence supports."""
    console = Console(width=width_of(sys.stdout.isatty(), os.environ), highlight=False, markup=False, emoji=False)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="hyperdial-demo-") as folder:
        console.print("starting the service: database, queue, API and two workers in a temporary folder …")
        try:
            with running(Path(folder), workers=2) as url, Client(url, key=None) as client:
                console.print(f"ready at {url} after {time.monotonic() - began:.1f} s; submitting {len(SPECS)} jobs\n")
                jobs = watch(console, url, [client.submit(job) for job in SPECS])
                results = [result_of(client, job) for job in jobs]
        except DidNotStart as error:
            console.print(f"the service did not start:\n{error}", style="red")
            return 1
        except CommandError as error:
            console.print(f"{error.message} {error.hint or ''}", style="red")
            return 1
    good = report(console, jobs, results)
    console.print(f"\n{time.monotonic() - began:.0f} s in all. Next: `hyperdial up`, README.md and docs/quickstart.md.")
    return 0 if good else 1


def width_of(is_terminal: bool, environment: Mapping[str, str]) -> int | None:  # noqa: FBT001
    """How wide to print: as the terminal is (None), or so that nothing need be folded where there is none."""
    return None if is_terminal or environment.get("COLUMNS") else PIPE_WIDTH


def watch(console: Console, url: str, jobs: list[JobView]) -> list[JobView]:
    """Show jobs side by side until all have ended."""
    panels = [Progress(job) for job in jobs]
    failures: list[CommandError] = []

    def follow(panel: Progress) -> None:
        try:
            with Client(url, key=None) as client:
                for event in client.events(panel.job.id):
                    apply(event, panel)
        except CommandError as error:
            failures.append(error)

    threads = [threading.Thread(target=follow, args=(panel,), daemon=True) for panel in panels]
    for thread in threads:
        thread.start()
    beside = Table.grid(expand=True)
    for _ in range(2):
        beside.add_column(ratio=1)
    for left, right in zip(panels[::2], panels[1::2], strict=True):
        beside.add_row(left, right)
    layout = beside if console.is_terminal and console.width >= WIDE else Group(*panels)
    with Live(layout, console=console, refresh_per_second=10):
        for thread in threads:
            thread.join()
    if failures:
        raise failures[0]
    with Client(url, key=None) as client:
        return [client.job(panel.job.id) for panel in panels]


def result_of(client: Client, job: JobView) -> ResultView | None:
    """What a job learned, if it succeeded."""
    if job.status != "succeeded":
        return None
    return ResultView.model_validate_json(client.call("GET", f"/v1/jobs/{job.id}/result").content)


def report(console: Console, jobs: list[JobView], results: list[ResultView | None]) -> bool:
    """Print what was learned beside what one gets without; True if all is well."""
    console.print("\ntraining the baselines on the same rows …")
    parts = parts_of(SPECS[0])
    began = time.monotonic()
    outcomes = [without_penalty(parts), default(parts), grid(parts, points=GRID_POINTS, low=1e-4, high=10.0)]
    outcomes += [
        learned(one, job, result) for one, job, result in zip(JOBS, jobs, results, strict=True) if result is not None
    ]
    console.print(Comparison(outcomes, training_rows=len(parts.train.y)))
    console.print(
        f"(baselines by scikit-learn, {time.monotonic() - began:.1f} s; a learned strength's trainings begin where the "
        "one before ended, and the checks behind its verdict train some more)",
        style="dim",
    )
    good = True
    for job, result in zip(jobs, results, strict=True):
        console.print()
        if result is None:
            good = False
            failure = f": {job.failure.code}: {job.failure.detail}" if job.failure else ""
            console.print(Text(f"✘ {job.name}: {job.status}{failure}", style="red"))
            continue
        trusted = result.evidence.verdict in GOOD_VERDICTS
        good = good and trusted
        console.print(
            Text(f"{'✔' if trusted else '✘'} {job.name}: {result.evidence.verdict}", "green" if trusted else "red")
        )
        console.print(f"  {result.evidence.sentence}")
        for name, value in result.hyperparameters.items():
            console.print(f"  {name}: {learned_text(value)}")
    return good


def learned(one: Demonstrated, job: JobView, result: ResultView) -> Outcome:
    """A job's answer, as the baselines are told; of several penalties and noises, the smallest and largest number."""
    valid, test = result.metrics.get("valid", {}), result.metrics.get("test", {})
    value = next(iter(result.hyperparameters.values()), None)
    values = [item for each in result.hyperparameters.values() for _, item in learned_values(each)]
    return Outcome(
        approach=f"{one.family}: {job.name}",
        strength=f"{min(values):.3g} {sparkline(values, logarithmic=True)} {max(values):.3g}"
        if len(values) > 1
        else learned_text(value),
        trainings=one.trainings(job, result),
        valid_loss=number(valid.get("loss")),
        valid_accuracy=number(valid.get("accuracy")),
        test_loss=number(test.get("loss")),
        test_accuracy=number(test.get("accuracy")),
    )


def number(value: JsonValue) -> float:
    """A number as it travels; NaN for what is none."""
    return float(value) if isinstance(value, int | float | str) else float("nan")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
