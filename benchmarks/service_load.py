"""Many clients at once against one HTTP server, with as little of a client as possible: it shares the machine."""

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit


@dataclass(frozen=True)
class Load:
    """How a server did under a number of clients that each ask again as soon as they have an answer."""

    clients: int
    requests: int
    errors: int
    """Answers that were not 2xx."""
    p50_ms: float
    p99_ms: float
    per_second: float


def measure(url: str, requests: Callable[[], Iterator[bytes]], *, clients: int, seconds: float) -> Load:
    """Let `clients` connections send requests, each taken from its own `requests()`, for some seconds."""
    return asyncio.run(_measure(url, requests, clients=clients, seconds=seconds))


def get(url: str, path: str) -> bytes:
    """A GET request."""
    return f"GET {path} HTTP/1.1\r\nHost: {urlsplit(url).netloc}\r\n\r\n".encode()


def post(url: str, path: str, body: bytes) -> bytes:
    """A POST request with a JSON body."""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {urlsplit(url).netloc}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def _measure(url: str, requests: Callable[[], Iterator[bytes]], *, clients: int, seconds: float) -> Load:
    place = urlsplit(url)
    took: list[float] = []
    errors = 0

    async def client(until: float) -> None:
        nonlocal errors
        reader, writer = await asyncio.open_connection(place.hostname, place.port)
        try:
            for request in requests():
                began = time.perf_counter()
                writer.write(request)
                head = await reader.readuntil(b"\r\n\r\n")
                await reader.readexactly(_length(head))
                ended = time.perf_counter()
                took.append(ended - began)
                errors += head[9:10] != b"2"
                if ended > until:
                    return
        finally:
            writer.close()
            await writer.wait_closed()

    began = time.perf_counter()
    await asyncio.gather(*(client(began + seconds) for _ in range(clients)))
    wall = time.perf_counter() - began
    took.sort()
    return Load(
        clients=clients,
        requests=len(took),
        errors=errors,
        p50_ms=1e3 * took[len(took) // 2],
        p99_ms=1e3 * took[min(len(took) - 1, int(len(took) * 0.99))],
        per_second=len(took) / wall,
    )


def _length(head: bytes) -> int:
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return int(value)
    raise ValueError("an answer without a length")
