"""The table at the end of the demo: approaches beside each other, or below each other where there is no room."""

from collections.abc import Iterable, Sequence
from math import isnan
from typing import Final, final

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from demo.baselines import Outcome

_LEAST_NAME: Final = 22
"""Columns for an approach's name, which may go on in the next line; narrower it is no table any more."""

_GAP: Final = 2
_HEADS: Final = ("trainings", "valid.\nloss", "valid.\nacc.", "test\nloss", "test\nacc.")

_BEST_WITHIN: Final = 1.0005
"""Of the lowest validation loss."""


@final
class Comparison:
    """Outcomes, as wide as they may be. No number is ever cut."""

    def __init__(self, outcomes: Sequence[Outcome], *, training_rows: int) -> None:
        """Take what is compared."""
        self._outcomes = outcomes
        self._title = Text(f"handwritten digits, {training_rows} training rows", style="italic")
        self._best = min(outcome.valid_loss for outcome in outcomes if not isnan(outcome.valid_loss))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw a table if one fits, else a list."""
        yield self._title
        widths = self._widths(options.max_width)
        yield from self._list() if widths is None else [self._table(*widths)]

    def _widths(self, available: int) -> tuple[int, int] | None:
        """Widths for names and strengths, which may be folded between words; None if there is no room for them."""
        numbers = sum(map(max, zip(*([len(cell) for cell in row] for row in self._numbers()), strict=True)))
        left = available - numbers - _GAP * (len(_HEADS) + 2)
        names, strengths = ([text(outcome) for outcome in self._outcomes] for text in (_approach, _strength))
        for strength in (_longest(strengths), _longest(word for text in strengths for word in text.split())):
            if left - strength >= min(_LEAST_NAME, _longest(names)):
                return min(_longest(names), left - strength), strength
        return None

    def _table(self, name: int, strength: int) -> Table:
        table = Table(box=None, header_style="bold", padding=(0, _GAP, 0, 0))
        table.add_column("", width=name)
        table.add_column("strength", justify="right", width=strength)
        for head in _HEADS:
            table.add_column(head, justify="right", no_wrap=True)
        for outcome, numbers in zip(self._outcomes, self._numbers()[1:], strict=True):
            trainings, _, *others = numbers
            table.add_row(outcome.approach, outcome.strength, trainings, self._loss(outcome), *others)
        return table

    def _numbers(self) -> list[list[str]]:
        """The cells of the other columns, below the words in their heads."""
        heads = [max(head.split(), key=len) for head in _HEADS]
        return [
            heads,
            *(
                [
                    str(outcome.trainings),
                    _loss(outcome.valid_loss),
                    _share(outcome.valid_accuracy),
                    _loss(outcome.test_loss),
                    _share(outcome.test_accuracy),
                ]
                for outcome in self._outcomes
            ),
        ]

    def _list(self) -> RenderResult:
        for outcome in self._outcomes:
            yield Text(outcome.approach, style="bold")
            yield Text(f"  strength {outcome.strength}")
            yield Text(f"  {outcome.trainings} training{'' if outcome.trainings == 1 else 's'}")
            yield Text.assemble(
                "  validation loss ", self._loss(outcome), f", accuracy {_share(outcome.valid_accuracy)}"
            )
            yield Text(f"  test loss {outcome.test_loss:.4f}, accuracy {outcome.test_accuracy:.1%}")

    def _loss(self, outcome: Outcome) -> Text:
        is_best = outcome.valid_loss <= self._best * _BEST_WITHIN
        return Text(_loss(outcome.valid_loss), "bold green" if is_best else "")


def _loss(value: float) -> str:
    """A loss; a dash where rows were trained on."""
    return "–" if isnan(value) else f"{value:.4f}"


def _share(value: float) -> str:
    return "–" if isnan(value) else f"{value:.1%}"


def _approach(outcome: Outcome) -> str:
    return outcome.approach


def _strength(outcome: Outcome) -> str:
    return outcome.strength


def _longest(texts: Iterable[str]) -> int:
    return max(map(len, texts))
