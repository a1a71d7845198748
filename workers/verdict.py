"""What checks of an answer amount to: a word for programs and a sentence for people."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from workers.learn.verification import Neighbour

_SLACK: Final = 10.0
"""A change of the objective by up to so many tolerances is none: the run's own solves were looser."""

_CURVATURE: Final = 0.05
"""Of the objective along the logarithm of a strength, relative to its value; more where the strength matters."""

_AGREEMENT: Final = 1e-2
"""Up to so large an error a hypergradient and central differences say the same."""


class Verdict(StrEnum):
    """What the evidence says, in a word."""

    OPTIMUM = "optimum"
    """Nothing nearby does better."""
    DESCENDING = "descending"
    """The objective can still be lowered from here."""
    AT_BOUND = "at_bound"
    """Nothing nearby does better within the box, but something beyond it would."""
    NOT_CHECKED = "not_checked"
    """Not looked at, or what was seen neither confirms nor refutes the answer."""


@dataclass(frozen=True)
class Findings:
    """What was measured at an answer and around it."""

    objective: float
    size: float
    """What changes of the objective are relative to: its value, unless that is next to nothing."""
    slope: float
    """Largest slope per unit of a strength's logarithm that the box leaves."""
    analytic: float
    """Slope along a random direction, from the hypergradient."""
    difference: float
    """The same by central differences."""
    uncertainty: float
    """How far the difference may be off because inner problems were not solved any further."""
    neighbours: Sequence[Neighbour]
    blocked: int
    """Strengths that a bound keeps from going on down."""
    at_low: tuple[str, ...]
    at_high: tuple[str, ...]
    strengths: int
    """Number of all learned strengths."""
    tolerance: float

    @property
    def flat(self) -> float:
        """The slope that counts as none: a slope s leaves a decrease of about s²/2c, this one next to nothing."""
        return math.sqrt(2.0 * _CURVATURE * _SLACK * self.tolerance) * self.size

    @property
    def relative_error(self) -> float:
        """Of the hypergradient, relative to the larger of both slopes, or to the one that counts as none."""
        return abs(self.difference - self.analytic) / max(abs(self.difference), abs(self.analytic), self.flat)


def judge(found: Findings) -> tuple[Verdict, str]:
    """Return the verdict and a sentence for the person who asked."""
    if not math.isfinite(found.objective) or not math.isfinite(found.relative_error):
        return Verdict.NOT_CHECKED, "The answer could not be checked: the objective is not finite at it or next to it."
    scale = max(abs(found.difference), abs(found.analytic), found.flat)
    if not found.uncertainty <= 0.1 * scale:
        return Verdict.NOT_CHECKED, (
            "The answer could not be checked: with strengths so small, training cannot be repeated precisely enough to "
            "compare objectives. A larger lower bound keeps the problem well-conditioned."
        )
    error = found.relative_error
    if error > _AGREEMENT + 2.0 * found.uncertainty / scale:
        return Verdict.NOT_CHECKED, (
            "The answer could not be confirmed: its hypergradient and central differences of the objective differ by "
            f"{_percent(error)}."
        )
    agreement = f"the hypergradient agrees with central differences to {error:.1g}"
    slack = max(_SLACK * found.tolerance, 1e-9)
    lowest = min(found.neighbours, key=lambda neighbour: neighbour.value, default=None)
    if lowest is not None and (found.objective - lowest.value) / found.size > slack:
        return Verdict.DESCENDING, (
            f"The objective is lower next to the answer: with {lowest.name} times {lowest.factor:.3g} by "
            f"{_percent((found.objective - lowest.value) / found.size)}. More outer steps or another start will do "
            f"better; {agreement}."
        )
    if found.slope > found.flat:
        return Verdict.DESCENDING, (
            f"The objective still falls at the answer, by {_percent(found.slope / found.size)} for each factor e in "
            f"the steepest strength: more outer steps, or a smaller tolerance, will do better; {agreement}."
        )
    if found.blocked:
        return Verdict.AT_BOUND, (
            f"{_held(found)}, and the objective would fall on beyond it: a wider box may do better. Within the box "
            f"nothing nearby does; {agreement}."
        )
    rise = (lowest.value - found.objective) / found.size if lowest is not None else 0.0
    tried = len({neighbour.name for neighbour in found.neighbours})
    who = "the strength" if found.strengths == 1 else f"any of the {tried} strengths tried"
    how = f"raises the objective by {_percent(rise)} or more" if rise > slack else "changes next to nothing"
    return Verdict.OPTIMUM, f"Halving or doubling {who} {how}, and {agreement}."


def _held(found: Findings) -> str:
    bound = "lower" if not found.at_high else "upper" if not found.at_low else "lower or upper"
    if found.strengths == 1:
        return f"{(*found.at_low, *found.at_high)[0]} lies on the {bound} bound"
    return (
        f"{found.blocked} of {found.strengths} strengths {'lies' if found.blocked == 1 else 'lie'} on the {bound} bound"
    )


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.2g} %"
