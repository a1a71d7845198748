"""Start the embedded service as a child, as a person would, and stop it."""

import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

_READY = re.compile(r"hyperdial is ready at (\S+)")


class DidNotStart(RuntimeError):
    """The service did not start; the message is what it said."""


@contextmanager
def running(folder: Path, *, workers: int, more: tuple[str, ...] = ()) -> Iterator[str]:
    """Run `hyperdial up` in `folder` on a free port; yields its address.

    Raises:
        DidNotStart: it ended before it was ready.
    """
    command = [sys.executable, "-m", "service", "up", "--data-dir", str(folder), "--port", "0"]
    process = subprocess.Popen(
        [*command, "--workers", str(workers), *more], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    said: list[str] = []
    drain: threading.Thread | None = None
    try:
        for line in process.stdout or ():
            said.append(line)
            if match := _READY.search(line):
                # What it says from here on must not fill the pipe.
                drain = threading.Thread(target=_drain, args=(process.stdout,))
                drain.start()
                yield match[1]
                return
        raise DidNotStart("".join(said).strip() or f"exit status {process.wait()}")
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()
        if drain is not None:
            drain.join()
        if process.stdout is not None:
            process.stdout.close()


def _drain(stream: IO[str] | None) -> None:
    for _ in stream or ():
        pass
