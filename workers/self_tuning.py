"""What the result of a self-tuning network tells beside an answer: its schedule, and what it predicts around it."""

from dataclasses import replace
from typing import Final

import torch

from service.numbers import jsonable
from service.records import JsonObject
from workers.learn.methods.stn import STN
from workers.learn.methods.stn_state import STNState
from workers.learn.problems.batches import Batch
from workers.learn.problems.network import NetworkProblem

_MOST_NAMES: Final = 20
"""Hyperparameters that are told of; those of a deep network can be many more."""

_POINTS: Final = 11
"""Of a curve: an odd number, so that the answer is in its middle."""

_MOST_ROWS: Final = 2048
"""Validation rows that curves are predicted on: they cost as many passes as they have points."""


def self_tuning_body(method: object, problem: NetworkProblem, state: object) -> JsonObject | None:
    """The `self_tuning` of a result; None if the method was another one.

    Args:
        method: of the run.
        problem: that the job posed.
        state: that the run ended with.
    """
    if not isinstance(method, STN) or not isinstance(state, STNState):
        return None
    names = problem.space.scalar_names()[:_MOST_NAMES]
    points = state.schedule.points()
    rows = _evenly(problem.validation)
    seen = replace(problem, valid=rows)
    curves = [method.response_curve(seen, state, coordinate=place, points=_POINTS) for place, _ in enumerate(names)]
    return {
        "schedule": {
            name: [[step, jsonable(values[place])] for step, values in points] for place, name in enumerate(names)
        },
        "response_curves": {
            curve.name: {
                "strength": [jsonable(value) for value in curve.values],
                "predicted_valid_loss": [jsonable(loss) for loss in curve.losses],
            }
            for curve in curves
        },
        "valid_rows": rows.rows,
    }


def _evenly(rows: Batch) -> Batch:
    stride = -(-rows.rows // _MOST_ROWS)
    return rows if stride == 1 else rows.take(torch.arange(0, rows.rows, stride, device=rows.x.device))
