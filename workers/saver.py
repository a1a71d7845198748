"""When a run's state is saved: often enough to lose little, seldom enough to cost nothing."""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Final, final

from workers.checkpoint import Seal, dump
from workers.learn.method import State, Status
from workers.recorder import Snapshot

_LARGEST_SHARE: Final = 0.02
"""Of a run's time, that turning its state into bytes may take."""

_LEAST_SECONDS: Final = 1.0
"""A state is not saved if losing it would cost less than this."""


@final
class Saver:
    """Turns states into bytes, and hands them on to be stored in the background."""

    def __init__(
        self,
        keep: Callable[[Snapshot], None],
        seal: Seal,
        *,
        steps: int,
        seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take the pace.

        Args:
            keep: stores a checkpoint, after all points before it; must not block.
            seal: of the state that the attempt began with.
            steps: save after so many steps,
            seconds: or after so long, whichever comes first.
            clock: tells the time in seconds.
        """
        self._keep = keep
        self._seal = seal
        self._steps = steps
        self._seconds = seconds
        self._clock = clock
        self._saved_at = clock()
        self._cost_seconds = 0.0
        self._is_saved = False

    def consider(self, state: State, status: Status, *, is_last: bool = False) -> None:
        """Save if it is time to.

        Args:
            state: after the last point.
            status: of the run after it.
            is_last: the steps are over: what follows is a check that may take long.
        """
        waited = self._clock() - self._saved_at
        if waited < max(min(_LEAST_SECONDS, self._seconds), self._cost_seconds / _LARGEST_SHARE):
            return
        if is_last or waited >= self._seconds or state.step - self._seal.step >= self._steps:
            self.save(state, status)

    def save(self, state: State, status: Status) -> None:
        """Save, unless this state was the last to be saved."""
        seal = replace(self._seal, step=state.step, status=status.value)
        if self._is_saved and seal == self._seal:
            return
        began = self._clock()
        self._keep(Snapshot(state.step, dump(state, seal)))
        self._seal, self._is_saved, self._saved_at = seal, True, self._clock()
        self._cost_seconds = self._saved_at - began
