"""The demo's table says all it has to say at any width."""

import io
import math
import re

import pytest
from rich.console import Console

from demo.__main__ import PIPE_WIDTH, width_of
from demo.baselines import Outcome
from demo.comparison import Comparison

OUTCOMES = [
    Outcome("no penalty", "0", 1, 0.5123, 0.951, 0.4104, 0.943),
    Outcome("scikit-learn's default, C = 1", "0.00111", 1, 0.1311, 0.962, 0.1422, 0.964),
    Outcome("best of a grid of 50", "0.0123", 50, 0.1101, 0.973, 0.1212, 0.975),
    Outcome("learned: one strength for the whole model", "0.0131", 9, 0.1102, 0.974, 0.1213, 0.976),
    Outcome(
        "learned: one strength for each of ten classes", "0.00312 ▁▂▃▄▅▆▇█▁▂ 0.0412", 14, 0.108, 0.978, 0.1199, 0.979
    ),
]
OUTCOMES.append(Outcome("by evidence: no validation rows", "0.004", 4, math.nan, math.nan, 0.19, 0.964))


def printed(width: int) -> list[str]:
    sink = io.StringIO()
    Console(file=sink, width=width, highlight=False, markup=False, emoji=False).print(
        Comparison(OUTCOMES, training_rows=898)
    )
    return sink.getvalue().splitlines()


@pytest.mark.parametrize("width", [20, 30, 40, 60, 70, 75, 80, 90, 100, 120, PIPE_WIDTH, 200])
def test_no_number_and_no_word_is_cut_at_any_width(width: int) -> None:
    lines = printed(width)
    assert all(len(line) <= width for line in lines)
    text = " ".join(lines)
    assert "…" not in text
    for outcome in OUTCOMES:
        valid = "–" if math.isnan(outcome.valid_loss) else f"{outcome.valid_loss:.4f}"
        for number in (valid, f"{outcome.test_loss:.4f}", f"{outcome.test_accuracy:.1%}"):
            assert re.search(rf"(?<![\d.]){re.escape(number)}", text), number
        for word in (*outcome.approach.split(), *outcome.strength.split()):
            assert word in text


def test_where_there_is_room_each_approach_has_one_line() -> None:
    lines = printed(PIPE_WIDTH)
    assert len(lines) == 1 + 2 + len(OUTCOMES)
    assert re.search(r"ten classes +0\.00312 \S+ 0\.0412 +14 +0\.1080 +97\.8% +0\.1199 +97\.9%", lines[-2])


def test_eighty_columns_are_enough_for_a_table() -> None:
    assert any("trainings" in line and "strength" in line for line in printed(80))


def test_without_a_terminal_nothing_is_folded_unless_one_asks_for_it() -> None:
    assert width_of(True, {}) is None
    assert width_of(False, {}) == PIPE_WIDTH
    assert width_of(False, {"COLUMNS": "80"}) is None


def test_rows_that_were_trained_on_have_no_validation_loss_and_are_never_the_best() -> None:
    assert re.search(r"no validation rows +0\.004 +4 +– +– +0\.1900 +96\.4%", printed(PIPE_WIDTH)[-1])
