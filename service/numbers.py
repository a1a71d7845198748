"""Numbers in JSON, which has no NaN and no infinity."""

import math
from typing import Final

_WORDS: Final = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def jsonable(number: float) -> float | str:
    """Return `number`, or `NaN`, `Infinity` or `-Infinity` as a string when it is not finite."""
    if math.isfinite(number):
        return number
    if math.isnan(number):
        return "NaN"
    return "Infinity" if number > 0 else "-Infinity"


def from_jsonable(number: float | str) -> float:
    """Return the number that `jsonable` was given.

    Raises:
        ValueError: a string other than the three words.
    """
    if not isinstance(number, str):
        return float(number)
    if number not in _WORDS:
        raise ValueError("a string that stands for a number must be NaN, Infinity or -Infinity")
    return _WORDS[number]
