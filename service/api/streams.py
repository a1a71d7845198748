"""The event streams that are open, and how many there may be."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import final

from service.api.refusals import TooManyStreams
from service.metrics import Metrics


@final
class Streams:
    """Counts open streams. Used from the event loop only."""

    def __init__(self, *, most: int, metrics: Metrics) -> None:
        """Take how many there may be."""
        self._most = most
        self._metrics = metrics
        self._open = 0

    @contextmanager
    def one(self) -> Iterator[None]:
        """Hold a place for a stream while it is open.

        Raises:
            TooManyStreams: all places are taken.
        """
        if self._open >= self._most:
            raise TooManyStreams
        self._open += 1
        self._metrics.set_streams(self._open)
        try:
            yield
        finally:
            self._open -= 1
            self._metrics.set_streams(self._open)
