"""Rows, claims, a table and a plot of the linear benchmark."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

mpl.use("Agg")
from matplotlib import pyplot as plt

TARGET = 1e-3
"""A contender has arrived when its answer's validation loss is within this fraction of the best known."""


@dataclass(frozen=True)
class Point:
    """The true validation loss of a contender's answer once it had spent so much."""

    gradient_equivalents: int
    seconds: float
    valid_loss: float


@dataclass(frozen=True)
class Row:
    """One contender on one problem."""

    dataset: str
    per: str
    strengths: int
    contender: str
    gradients: int
    hessian_vector_products: int
    cross_products: int
    gradient_equivalents: int
    seconds: float
    arrival: Point | None
    """First answer within `TARGET` of the best known loss that no later answer leaves again."""
    best_known: float
    valid_loss: float
    test_loss: float
    steps: int
    ended: str
    log_error: float | None
    """|log λ − log λ*| in spacings of the 20-point grid; of one strength only."""
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Claim:
    """Something that is said of the method, and whether this run bears it out."""

    dataset: str
    per: str
    says: str
    measured: str
    passes: bool


@dataclass
class Report:
    """All rows and claims, and what they were measured with."""

    settings: dict[str, Any]
    rows: list[Row] = field(default_factory=list)
    claims: list[Claim] = field(default_factory=list)
    colds: dict[str, dict[str, float]] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Write linear.json, linear.md and linear.png."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "linear.json").write_text(json.dumps(asdict(self), indent=1) + "\n")
        (folder / "linear.md").write_text(self.markdown())
        plot(self, folder / "linear.png")

    def markdown(self) -> str:
        """Return the table of claims and the table of rows."""
        lines = ["# Learned strengths of linear models", ""]
        lines += [f"- {name}: {value}" for name, value in self.settings.items()]
        lines += ["", "| claim | | data | per | measured |", "| --- | --- | --- | --- | --- |"]
        for claim in self.claims:
            verdict = "PASS" if claim.passes else "FAIL"
            lines.append(f"| {claim.says} | {verdict} | {claim.dataset} | {claim.per} | {claim.measured} |")
        lines += ["", *self._trainings(), "", *self._contenders(), ""]
        return "\n".join(lines)

    def _trainings(self) -> list[str]:
        lines = [
            "One training from zero at the best single strength:",
            "",
            "| data | with | gradients | seconds | valid loss |",
            "| --- | --- | ---: | ---: | ---: |",
        ]
        for key, cold in self.colds.items():
            dataset, contender = key.split(": ", 1)
            lines.append(
                f"| {dataset} | {contender} | {cold['gradients']:.0f} | {cold['seconds']:.2f} "
                f"| {cold['valid_loss']:.5f} |"
            )
        return lines

    def _contenders(self) -> list[str]:
        lines = [
            f"“until” is the cost at which the answer is within {TARGET:.1%} of the best known loss for good; "
            "a gradient-equivalent is a gradient, half a Hessian product or half a cross product; seconds are "
            "in units of scikit-learn's training above.",
            "",
            "| data | per | strengths | contender | gradients | HVPs | cross | total | until | seconds | until "
            "| valid loss | above best | test loss | log error / spacing |",
            "| --- | --- | ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        ]
        for row in self.rows:
            unit = self.colds[f"{row.dataset}: scikit-learn"]["seconds"]
            until = ("—", "—")
            if row.arrival is not None:
                until = (str(row.arrival.gradient_equivalents), f"{row.arrival.seconds / unit:.1f}")
            error = "" if row.log_error is None else f"{row.log_error:.3f}"
            lines.append(
                f"| {row.dataset} | {row.per} | {row.strengths} | {row.contender} | {row.gradients} "
                f"| {row.hessian_vector_products} | {row.cross_products} | {row.gradient_equivalents} | {until[0]} "
                f"| {row.seconds / unit:.1f} | {until[1]} | {row.valid_loss:.5f} "
                f"| {row.valid_loss / row.best_known - 1:.2%} | {row.test_loss:.5f} | {error} |"
            )
        return lines


def arrival(points: Sequence[Point], best: float) -> Point | None:
    """Return the first point from which on all are within `TARGET` of the best known loss."""
    reached: Point | None = None
    for point in points:
        if point.valid_loss > best * (1 + TARGET):
            reached = None
        elif reached is None:
            reached = point
    return reached


def plot(report: Report, file: Path) -> None:
    """Draw, for each problem, how far above the best known loss each answer is against what it cost."""
    problems = list(dict.fromkeys((row.dataset, row.per) for row in report.rows))
    columns = min(3, len(problems))
    lines = -(-len(problems) // columns)
    figure, axes = plt.subplots(lines, columns, figsize=(5.6 * columns, 4.2 * lines), squeeze=False)
    for axis in axes.flat[len(problems) :]:
        axis.set_visible(False)
    for axis, (dataset, per) in zip(axes.flat, problems, strict=False):
        for row in report.rows:
            if (row.dataset, row.per) != (dataset, per):
                continue
            cost = [point.gradient_equivalents for point in row.points] + [row.gradient_equivalents]
            above = [max(point.valid_loss / row.best_known - 1, 1e-6) for point in row.points]
            ours = row.contender.startswith("implicit")
            axis.step(
                cost,
                [*above, above[-1]],
                where="post",
                label=row.contender,
                linewidth=2.2 if ours else 1.2,
                zorder=3 if ours else 2,
            )
        cold = report.colds[f"{dataset}: scikit-learn"]["gradients"]
        for times in (1, 5):
            axis.axvline(cold * times, color="0.7", linestyle=":", zorder=1)
            axis.annotate(f"{times}×", (cold * times, 1.0), xycoords=("data", "axes fraction"), color="0.5")
        axis.axhline(TARGET, color="0.85", zorder=1)
        axis.set(xscale="log", yscale="log", title=f"{dataset}, one strength per {per}")
        axis.set_xlabel("gradient-equivalents (dotted: 1 and 5 cold trainings)")
        axis.set_ylabel("validation loss above the best known")
        axis.set_ylim(top=float(np.clip(axis.get_ylim()[1], 1e-2, 1e2)))
        axis.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(file, dpi=130)
    plt.close(figure)
