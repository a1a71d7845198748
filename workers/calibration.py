"""How far a result's predictions can be believed, as the result tells it."""

from collections.abc import Iterable, Mapping
from typing import assert_never

from pydantic import JsonValue
from torch import Tensor

from service.numbers import jsonable
from service.records import JsonObject
from workers.learn.calibration import Bin, Calibration, GaussianCalibration, class_calibration
from workers.learn.losses.squared import Squared
from workers.learn.problem import Part
from workers.learn.problems.linear import LinearProblem
from workers.learn.problems.network import NetworkProblem

AnyCalibration = Calibration | GaussianCalibration
"""Of class probabilities, or of numbers with predicted standard deviations."""


def calibrations(
    problem: LinearProblem | NetworkProblem, w: Tensor, parts: Iterable[Part]
) -> dict[str, AnyCalibration]:
    """Return by part how far the class probabilities at `w` [p] can be believed; nothing where there are no classes.

    With folds the predictions of all models are pooled, those on validation rows being one for each row.
    """
    if isinstance(problem.loss, Squared):
        return {}
    return {part.value: class_calibration(*problem.outputs_on(w, part)) for part in parts}


def with_scores(
    metrics: Mapping[str, Mapping[str, float]], found: Mapping[str, AnyCalibration]
) -> dict[str, dict[str, float]]:
    """Return metrics by part and name, with the scores of predicted probabilities among them."""
    return {part: {**values, **(_scores(found[part]) if part in found else {})} for part, values in metrics.items()}


def calibration_body(found: Mapping[str, AnyCalibration]) -> JsonObject | None:
    """The `calibration` of a result: of the parts that were held back, or of `train` where none was.

    None where nothing predicts probabilities.
    """
    held_back = {part: one for part, one in found.items() if part != Part.TRAIN.value}
    return {part: _body(one) for part, one in (held_back or found).items()} or None


def _scores(found: AnyCalibration) -> dict[str, float]:
    match found:
        case Calibration():
            return {"nll": found.nll, "brier": found.brier, "ece": found.ece}
        case GaussianCalibration():
            return {"nll": found.nll}
        case _:
            assert_never(found)


def _body(found: AnyCalibration) -> JsonObject:
    match found:
        case Calibration():
            return {
                "nll": jsonable(found.nll),
                "brier": jsonable(found.brier),
                "ece": jsonable(found.ece),
                "accuracy": jsonable(found.accuracy),
                "bins": [_bin(part) for part in found.bins],
            }
        case GaussianCalibration():
            return {
                "nll": jsonable(found.nll),
                "rmse": jsonable(found.rmse),
                "coverage": [
                    {"level": one.level, "covered": jsonable(one.covered), "width": jsonable(one.width)}
                    for one in found.coverage
                ],
            }
        case _:
            assert_never(found)


def _bin(part: Bin) -> JsonValue:
    mean: dict[str, JsonValue] = {"confidence": None, "accuracy": None}  # of nothing there is none
    if part.count:
        mean = {"confidence": jsonable(part.confidence), "accuracy": jsonable(part.accuracy)}
    return {"low": part.low, "high": part.high, "count": part.count, **mean}
