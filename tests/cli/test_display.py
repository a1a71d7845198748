"""What people see."""

import io
import math
from datetime import UTC, datetime, timedelta

from rich.console import Console

from service.cli.display import (
    Progress,
    age,
    jobs_table,
    number,
    point_line,
    result_view,
    rows_table,
    seconds,
    sparkline,
    summary,
)
from service.cli.views import FailureView, JobView, PointView, ProgressView, ResultView, StatusEvent


def text_of(renderable: object) -> str:
    stream = io.StringIO()
    Console(file=stream, width=120, color_system=None).print(renderable)
    return stream.getvalue()


def test_a_sparkline_shows_the_course_and_keeps_its_ends() -> None:
    assert sparkline([0, 1, 2, 3]) == "▁▃▆█"
    assert sparkline([1, 10, 100], logarithmic=True) == "▁▅█"
    assert sparkline([2.0, 2.0]) == "▁▁"
    assert sparkline([]) == ""
    long = sparkline([float(value) for value in range(1000)], width=10)
    assert len(long) == 10
    assert (long[0], long[-1]) == ("▁", "█")


def test_numbers_that_are_not_finite_are_seen() -> None:
    assert sparkline([1.0, math.nan, 2.0]) == "▁×█"
    point = PointView.model_validate_json('{"step": 0, "valid_loss": "NaN", "hyperparameters": {"l2": "Infinity"}}')
    assert point_line(point, 10) == "step 1/10  train –  valid nan  hypergradient –  l2=inf"


def test_durations_have_their_natural_unit() -> None:
    assert [seconds(value) for value in (None, 0.25, 61, 3700)] == ["–", "0.2 s", "1 min 01 s", "1 h 01 min"]


def test_a_job_is_shown_as_it_moves() -> None:
    progress = Progress(JobView(id="job_1", name="digits", status="queued", progress=ProgressView(of=20)))
    progress.status(StatusEvent(status="running", attempt=1))
    for step, strength in enumerate((0.01, 0.03, 0.04)):
        progress.point(PointView(step=step, hyperparameters={"l2": strength}, valid_loss=1.0 / (step + 1)))
    shown = text_of(progress)
    assert "running" in shown
    assert "step 3 of at most 20" in shown
    assert "0.04" in shown
    assert "▁▇█" in shown


def test_what_a_method_does_not_know_has_no_line() -> None:
    progress = Progress(JobView(id="job_1", status="running"))
    progress.point(PointView(step=0, hyperparameters={"l2": 0.1}, train_loss=1.0, hypergradient_norm=math.nan))
    shown = text_of(progress)
    assert "training loss" in shown
    assert "hypergradient" not in shown
    assert "validation loss" not in shown


def test_a_failure_says_why() -> None:
    progress = Progress(JobView(id="job_1", status="running"))
    progress.status(StatusEvent(status="failed", failure=FailureView(code="diverged", detail="the loss is NaN")))
    assert "diverged: the loss is NaN" in text_of(progress)


def test_text_of_a_job_is_never_read_as_markup() -> None:
    name = "[bold]not bold[/bold] [/]"
    assert name in text_of(jobs_table([JobView(id="job_1", name=name, status="queued")]))
    assert name in text_of(Progress(JobView(id="job_1", name=name, status="queued")))
    log = Progress(JobView(id="job_1", status="running"))
    log.note(name)
    assert name in text_of(log)


def test_an_id_is_never_cut() -> None:
    job_id = "job_01m7y7xxm7eb9vgvw1nkt6ej42"
    narrow = io.StringIO()
    console = Console(file=narrow, width=60, color_system=None)
    console.print(jobs_table([JobView(id=job_id, name="a long name " * 5, status="cancelling", method="implicit")]))
    console.print(rows_table([{"id": job_id, "name": "a long name " * 5}], ("id", "name")))
    assert narrow.getvalue().count(job_id) == 2


def test_times_are_told_in_their_unit() -> None:
    assert age(datetime.now(UTC) - timedelta(days=400)) == "400 days ago"
    assert age(datetime.now(UTC) - timedelta(minutes=90)) == "1 h 30 min ago"
    assert age(None) == "–"


def test_a_result_shows_metrics_and_evidence() -> None:
    result = ResultView.model_validate(
        {
            "hyperparameters": {"l2": [0.1, 0.2]},
            "metrics": {"valid": {"loss": 0.5, "accuracy": 0.9}, "test": {"loss": 0.6, "accuracy": 0.8}},
            "evidence": {"verdict": "optimum", "sentence": "No neighbour is better."},
        }
    )
    shown = text_of(result_view(result))
    for expected in ("[0.1, 0.2]", "accuracy", "0.6", "optimum", "No neighbour is better."):
        assert expected in shown


def test_scores_of_probabilities_stand_beside_the_loss() -> None:
    scores = {"loss": 0.5, "accuracy": 0.9, "nll": 0.5, "brier": 0.25, "ece": 0.0625}
    bins = [{"low": 0.0, "high": 1.0, "count": 0, "confidence": None, "accuracy": None}]
    result = ResultView.model_validate(
        {
            "metrics": {"valid": scores, "test": {**scores, "nll": "Infinity"}},
            "calibration": {"test": {"nll": "Infinity", "bins": bins}},
        }
    )
    lines = text_of(result_view(result)).splitlines()
    assert ["accuracy", "brier", "ece", "loss", "nll"] in [line.split() for line in lines]
    assert ["test", "0.9", "0.25", "0.0625", "0.5", "Infinity"] in [line.split() for line in lines]


def test_long_lists_are_cut_and_objects_named() -> None:
    assert summary(list(range(12))).endswith(", …]")
    assert summary({"size": 3, "min": 0.5}) == "size 3, min 0.5"
    assert summary("NaN") == "NaN"
    assert number(None) == "–"
