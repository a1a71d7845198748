"""The API as a process of its own, served by uvicorn as operators serve it."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2

_MAIN = "from service.settings import Settings; from service.api.server import serve; serve(Settings())"


@dataclass
class Server:
    """A process that serves."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path

    def terminate(self, seconds: float = 20.0) -> int:
        """Ask it to end and return its exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(seconds)


@contextmanager
def serving(folder: Path, **settings: object) -> Iterator[Server]:
    """Serve on a free port; `settings` are those of `service.settings`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    given = {"data_dir": folder, "queue": "database", "port": port} | settings
    env: Mapping[str, str] = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(sys.path),
        **{f"HYPERDIAL_{name.upper()}": str(value) for name, value in given.items()},
    }
    log = folder / "server.log"
    with log.open("wb") as stream:
        process = subprocess.Popen([sys.executable, "-c", _MAIN], env=env, stdout=stream, stderr=stream)
    server = Server(f"http://127.0.0.1:{port}", process, log)
    try:
        _wait_until_it_answers(server)
        yield server
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def _wait_until_it_answers(server: Server, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and server.process.poll() is None:
        try:
            httpx2.get(f"{server.url}/healthz", timeout=5)
        except httpx2.TransportError:
            time.sleep(0.05)
        else:
            return
    raise AssertionError(f"the server did not come up: {server.log.read_text()}")


@dataclass(frozen=True)
class Event:
    """A server-sent event."""

    kind: str
    id: str
    data: str


def events(response: httpx2.Response) -> Iterator[Event]:
    """Events of a stream, as they arrive. Source: WHATWG HTML, 9.2.6."""
    kind, last, data = "message", "", list[str]()
    for line in response.iter_lines():
        if not line:
            if data:
                yield Event(kind, last, "\n".join(data))
            kind, data = "message", []
            continue
        name, _, value = line.partition(":")
        match name:
            case "event":
                kind = value.strip()
            case "id":
                last = value.strip()
            case "data":
                data.append(value.removeprefix(" "))
