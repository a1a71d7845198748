"""How jobs, trajectories and results look on a terminal."""

import math
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Final, final

from pydantic import JsonValue
from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from service.cli.views import JobView, PointView, ResultView, Spread, StatusEvent

COLORS: Final = {
    "queued": "cyan",
    "running": "blue",
    "pausing": "yellow",
    "paused": "yellow",
    "cancelling": "yellow",
    "succeeded": "green",
    "failed": "red",
    "cancelled": "magenta",
}
VERDICT_COLORS: Final = {"optimum": "green", "at_bound": "green", "descending": "yellow", "not_checked": "yellow"}
_BARS: Final = "▁▂▃▄▅▆▇█"
_ID_WIDTH: Final = 30
"""Of an id, which must not be cut: it is there to be copied."""


def status_text(status: str) -> Text:
    """A status in its colour."""
    return Text(status, style=COLORS.get(status, ""))


def number(value: float | None) -> str:
    """A number with four digits, or a dash."""
    return "–" if value is None else f"{value:.4g}"


def seconds(value: float | None) -> str:
    """A duration in its natural unit, or a dash."""
    if value is None or not math.isfinite(value):
        return "–"
    if value < 60:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def age(moment: datetime | None) -> str:
    """How long ago something was, or a dash."""
    if moment is None:
        return "–"
    passed = datetime.now(UTC) - moment
    return f"{passed.days} days ago" if passed.days > 1 else f"{seconds(max(0.0, passed.total_seconds()))} ago"


def sparkline(values: Sequence[float], *, width: int = 32, logarithmic: bool = False) -> str:
    """The course of `values` as a line of bars; a value that is not finite is a cross."""
    if len(values) > width:
        # Keep the last value: it is the one that is also shown as a number.
        values = [values[round((len(values) - 1) * place / (width - 1))] for place in range(width)]
    scaled = [math.log(value) if logarithmic and value > 0 else value for value in values]
    finite = [value for value in scaled if math.isfinite(value)]
    low, high = (min(finite), max(finite)) if finite else (0.0, 0.0)
    span = high - low or 1.0
    return "".join(
        _BARS[min(len(_BARS) - 1, int((value - low) / span * len(_BARS)))] if math.isfinite(value) else "×"
        for value in scaled
    )


def strength_text(value: float | Spread) -> str:
    """A strength, or where many strengths lie."""
    if isinstance(value, Spread):
        return f"{number(value.min)} … {number(value.median)} … {number(value.max)}  ({value.size})"
    return number(value)


def _middle(value: float | Spread) -> float:
    return value.median if isinstance(value, Spread) else value


@final
class Progress:
    """A job as it goes on, fed by its events; rich can render it at any moment."""

    def __init__(self, job: JobView, *, title: str | None = None) -> None:
        """Begin with the job as it stands."""
        self.job = job
        self.points: list[PointView] = []
        self.notes: list[str] = []
        self._title = title or job.name or job.id

    def point(self, point: PointView) -> None:
        """Take a step of learning."""
        self.points.append(point)
        progress = self.job.progress.model_copy(update={"step": point.step + 1})
        self.job = self.job.model_copy(update={"latest": point, "progress": progress})

    def status(self, event: StatusEvent) -> None:
        """Take a change of status."""
        self.job = self.job.model_copy(
            update={
                "status": event.status,
                "attempt": event.attempt,
                "status_reason": event.reason,
                "failure": event.failure,
            }
        )

    def note(self, line: str) -> None:
        """Take a line of the job's log."""
        self.notes.append(line)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        job, step, total = self.job, self.job.progress.step, max(self.job.progress.of, 1)
        head = Table.grid(expand=True, padding=(0, 1))
        head.add_column(ratio=1)
        head.add_column(justify="right")
        head.add_row(Text(job.id, style="dim"), status_text(job.status))
        bar = Table.grid(expand=True, padding=(0, 1))
        bar.add_column(ratio=1)
        bar.add_column(justify="right")
        done = job.status == "succeeded"  # a tolerance that is met ends a job before its budget
        bar.add_row(
            ProgressBar(total=total, completed=total if done else step), f"step {step} of at most {job.progress.of}"
        )
        parts: list[Table | Text] = [head, bar, *self._numbers()]
        if (reason := job.failure or job.status_reason) is not None:
            parts.append(Text(f"{reason.code}: {reason.detail}", style="red" if job.failure else "dim"))
        parts.extend(Text(note, style="dim", overflow="ellipsis", no_wrap=True) for note in self.notes[-3:])
        yield Panel(Group(*parts), title=Text(self._title), border_style=COLORS.get(job.status, ""))

    def _numbers(self) -> list[Table]:
        latest = self.job.latest
        if latest is None:
            return []
        table = Table.grid(padding=(0, 2))
        table.add_column(style="bold")
        table.add_column(justify="left")
        table.add_column(style="cyan", no_wrap=True)
        for name, value in latest.hyperparameters.items():
            course = [_middle(point.hyperparameters[name]) for point in self.points if name in point.hyperparameters]
            table.add_row(Text(name), strength_text(value), sparkline(course, logarithmic=True))
        curves: list[tuple[str, bool, Callable[[PointView], float | None]]] = [
            ("training loss", False, lambda point: point.train_loss),
            ("validation loss", False, lambda point: point.valid_loss),
            ("hypergradient", True, lambda point: point.hypergradient_norm),
        ]
        for name, logarithmic, read in curves:
            known = [loss for point in self.points if (loss := read(point)) is not None]
            if any(map(math.isfinite, known)):
                table.add_row(name, number(known[-1]), sparkline(known, logarithmic=logarithmic))
        return [table]


def point_line(point: PointView, of: int) -> str:
    """A step as one line of text, for logs and pipes."""
    strengths = "  ".join(f"{name}={strength_text(value)}" for name, value in point.hyperparameters.items())
    return (
        f"step {point.step + 1}/{of}  train {number(point.train_loss)}  valid {number(point.valid_loss)}  "
        f"hypergradient {number(point.hypergradient_norm)}  {strengths}"
    )


def jobs_table(jobs: Sequence[JobView]) -> Table:
    """Jobs, one a row."""
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    for name in ("id", "name", "status", "method", "step", "valid. loss", "created"):
        table.add_column(
            name,
            no_wrap=name in ("id", "status"),
            min_width={"id": _ID_WIDTH, "status": len("cancelling")}.get(name),
            justify="right" if name in ("step", "valid. loss") else "left",
        )
    for job in jobs:
        table.add_row(
            Text(job.id),
            Text(job.name, overflow="ellipsis"),
            status_text(job.status),
            Text(job.method),
            f"{job.progress.step}/{job.progress.of}",
            number(job.latest.valid_loss if job.latest else None),
            age(job.created_at),
        )
    return table


def summary(values: JsonValue) -> str:
    """A learned value, or the numbers of many, in one line."""
    match values:
        case bool() | None:
            return str(values)
        case int() | float():
            return number(float(values))
        case list():
            shown = ", ".join(summary(value) for value in values[:10])
            return f"[{shown}{', …' if len(values) > 10 else ''}]"
        case dict():
            return ", ".join(f"{name} {summary(value)}" for name, value in values.items())
        case _:
            return str(values)


def learned_values(value: JsonValue) -> list[tuple[str, float]]:
    """A learned strength's values by name, a single one without a name; empty when only their spread is told."""
    match value:
        case int() | float():
            return [("", float(value))]
        case {"values": list(values), **rest}:
            given = rest.get("names")
            names = given if isinstance(given, list) else list(range(len(values)))
            return [
                (str(name), float(item))
                for name, item in zip(names, values, strict=True)
                if isinstance(item, int | float | str)
            ]
        case _:
            return []


def learned_text(value: JsonValue) -> str:
    """A learned strength, or the first of many by name."""
    values = learned_values(value)
    if not values:
        return summary(value)
    shown = ", ".join(f"{name}: {number(item)}" if name else number(item) for name, item in values[:20])
    return shown + (f", … ({len(values)})" if len(values) > 20 else "")


def result_view(result: ResultView) -> Group:
    """What a job learned, how good it is, and why that may be trusted."""
    learned = Table.grid(padding=(0, 2))
    for name, value in result.hyperparameters.items():
        learned.add_row(Text(name, style="bold"), Text(learned_text(value)))
    parts: list[Table | Text] = [learned]
    names = sorted({name for values in result.metrics.values() for name in values})
    if names:
        metrics = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
        metrics.add_column("")
        for name in names:
            metrics.add_column(Text(name), justify="right")
        for part, values in result.metrics.items():
            metrics.add_row(Text(part), *(Text(summary(values.get(name))) for name in names))
        parts.append(metrics)
    verdict = result.evidence.verdict
    parts.append(Text.assemble((verdict, VERDICT_COLORS.get(verdict, "")), f": {result.evidence.sentence}"))
    cost = result.cost
    parts.append(
        Text(
            f"{seconds(cost.wall_s)}, {cost.inner_iterations or 0} inner iterations, "
            f"{cost.hessian_vector_products or 0} Hessian-vector products",
            style="dim",
        )
    )
    return Group(*parts)


def rows_table(rows: Sequence[Mapping[str, str]], columns: Sequence[str]) -> Table:
    """Rows of text under `columns`."""
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    for name in columns:
        table.add_column(name, no_wrap=name == "id", min_width=_ID_WIDTH if name == "id" else None)
    for row in rows:
        table.add_row(*(Text(row.get(name, "")) for name in columns))
    return table
