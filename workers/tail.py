"""The end of a runner's log, kept for the record of its attempt."""

import logging
import time
from collections import deque
from typing import Final, final

_STANDARD: Final = frozenset(vars(logging.LogRecord("", 0, "", 0, "", None, None))) | {"message", "asctime", "job_id"}
_MOST_LINES: Final = 200
_MOST_BYTES: Final = 16_384


@final
class Tail(logging.Handler):
    """Keeps the last lines that were logged, in a form for people."""

    def __init__(self) -> None:
        """Begin empty, with `info` and above."""
        logging.Handler.__init__(self, logging.INFO)
        self._lines: deque[str] = deque(maxlen=_MOST_LINES)
        formatter = logging.Formatter("%(asctime)s.%(msecs)03dZ %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%S")
        formatter.converter = time.gmtime
        self.setFormatter(formatter)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record, its `extra` as `name=value`."""
        line = self.format(record)
        extra = " ".join(f"{name}={value}" for name, value in vars(record).items() if name not in _STANDARD)
        head, newline, trace = line.partition("\n")
        self._lines.append(f"{head} {extra}".rstrip() + newline + trace)

    def text(self) -> str:
        """Return what was kept, oldest first."""
        return "\n".join(self._lines)[-_MOST_BYTES:]
