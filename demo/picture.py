"""`make picture`: draw a real job's trajectory, as anyone would who fetched it over HTTP.

python -m demo.picture FILE.svg
"""

import json
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from pydantic import JsonValue

from demo.__main__ import number
from demo.baselines import Outcome, grid
from demo.embedded import running
from demo.jobs import SPECS
from demo.rows import parts_of
from service.cli.client import Client
from service.cli.display import learned_values
from service.cli.views import PointView, ResultView

POINTS_OF_GRID = 50


def main(file: Path) -> None:
    """Learn one strength, and one for each class; draw both beside a grid search."""
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="hyperdial-picture-"))
        url = stack.enter_context(running(Path(folder), workers=2))
        with Client(url, key=None) as client:
            jobs = [client.submit(spec) for spec in SPECS[:2]]
            for job in jobs:
                for _ in client.events(job.id):
                    pass
            trajectories = [trajectory(client, job.id) for job in jobs]
            results = [
                ResultView.model_validate_json(client.call("GET", f"/v1/jobs/{job.id}/result").content) for job in jobs
            ]
    searched = grid(parts_of(SPECS[0]), points=POINTS_OF_GRID, low=1e-4, high=10.0)
    file.parent.mkdir(parents=True, exist_ok=True)
    # Text stays text, and the same job gives the same file.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "hyperdial", "font.size": 10}):
        draw(trajectories, results, searched).savefig(file, metadata={"Date": None})


def trajectory(client: Client, job_id: str) -> list[PointView]:
    """All points of a job."""
    answer = client.call("GET", f"/v1/jobs/{job_id}/trajectory", headers={"Accept": "application/x-ndjson"})
    return [PointView.model_validate(json.loads(line)) for line in answer.text.splitlines() if line]


def draw(trajectories: list[list[PointView]], results: list[ResultView], searched: Outcome) -> Figure:
    """Validation loss over trainings, the single strength on its way, and the strengths of the classes."""
    figure = Figure(figsize=(9.6, 3.2), layout="constrained")
    losses, strengths, classes = figure.subplots(1, 3)
    one, ten = "#1f6feb", "#d1570a"
    for points, color, label in zip(trajectories, (one, ten), ("one strength", "one for each class"), strict=True):
        losses.plot(
            [point.step + 1 for point in points],
            [point.valid_loss for point in points],
            marker="o",
            markersize=3,
            color=color,
            label=f"learned: {label}",
        )
    losses.axhline(searched.valid_loss, color="0.5", linestyle="--", label=f"best of {searched.trainings} on a grid")
    losses.set(xlabel="trainings", ylabel="validation loss", yscale="log")
    losses.legend(frameon=False, fontsize=8)
    strengths.plot(
        [point.step + 1 for point in trajectories[0]],
        [middle(point) for point in trajectories[0]],
        marker="o",
        markersize=3,
        color=one,
    )
    strengths.set(xlabel="trainings", ylabel="strength λ", yscale="log")
    values = learned_values(first(results[1]))
    classes.bar([name for name, _ in values], [value for _, value in values], color=ten)
    classes.axhline(number(first(results[0])), color=one, linewidth=1)
    classes.set(xlabel="digit", ylabel="learned strength λ", yscale="log")
    losses.set_yticks([0.1, 0.2, 0.4], ["0.1", "0.2", "0.4"])
    losses.minorticks_off()
    for axes in (losses, strengths):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    classes.set_ylim(bottom=5e-5)
    for axes in (losses, strengths, classes):
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def middle(point: PointView) -> float:
    """The single strength of a point."""
    value = next(iter(point.hyperparameters.values()))
    return value if isinstance(value, float) else value.median


def first(result: ResultView) -> JsonValue:
    """The learned value of the only regularizer."""
    return next(iter(result.hyperparameters.values()))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m demo.picture FILE.svg")
    main(Path(sys.argv[1]))
