"""Talk to a server over HTTP, and turn every way in which that can fail into one error for people."""

import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Final, Self, final

import httpx
from pydantic import JsonValue, TypeAdapter, ValidationError

from service.cli.exits import CommandError, ExitCode
from service.cli.views import JobView, ProblemView

JSON: Final[TypeAdapter[JsonValue]] = TypeAdapter(JsonValue)
_GIVE_UP_S: Final = 60.0
"""How long a broken event stream is tried again before the server counts as gone."""
_PATIENCE_S: Final = 30.0
"""How long one call waits, in all, for a rate limit to let it through."""


@dataclass(frozen=True)
class Event:
    """One server-sent event."""

    id: str
    kind: str
    data: str


@final
class Client:
    """A connection to one server. Every method raises `CommandError` and nothing else."""

    def __init__(self, url: str, *, key: str | None, timeout_s: float = 30.0) -> None:
        """Take the server's address and an API key."""
        self.url = url.rstrip("/")
        headers = {"Accept": "application/json", "User-Agent": "hyperdial-cli"}
        if key:
            headers["Authorization"] = f"Bearer {key}"
        try:
            self._http = httpx.Client(base_url=self.url, headers=headers, timeout=timeout_s)
        except (httpx.InvalidURL, ValueError) as error:
            raise CommandError(f"{url!r} is not an address: {error}", code=ExitCode.USAGE) from error
        if not self.url.startswith(("http://", "https://")):
            raise CommandError(
                f"{url!r} is not an address of a server", code=ExitCode.USAGE, hint="begin it with http://"
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def call(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str | int | list[str]] | None = None,
        body: JsonValue = None,
        headers: Mapping[str, str] | None = None,
    ) -> httpx.Response:
        """Return the answer; a refusal or a failure raises. A request that comes too early waits and is sent again."""
        patience_s = _PATIENCE_S
        while True:
            with self._translated():
                response = self._http.request(
                    method, path, params=params, headers=headers, json=body if body is not None else None
                )
            if response.status_code != httpx.codes.TOO_MANY_REQUESTS or (pause := _retry_after(response)) > patience_s:
                check(response)
                return response
            time.sleep(pause)
            patience_s -= pause

    def job(self, job_id: str) -> JobView:
        """The job as it stands."""
        return JobView.model_validate_json(self.call("GET", f"/v1/jobs/{job_id}").content)

    def submit(self, spec: JsonValue, *, key: str | None = None, tries: int = 3) -> JobView:
        """Create a job and return it; safe to try again, since every try carries the same idempotency key."""
        key = key or str(uuid.uuid4())
        for left in reversed(range(tries)):
            try:
                answer = self.call("POST", "/v1/jobs", body=spec, headers={"Idempotency-Key": key})
            except CommandError as error:
                if error.code is not ExitCode.UNREACHABLE or not left:
                    raise
                time.sleep(0.5)
            else:
                return JobView.model_validate_json(answer.content)
        raise AssertionError("a loop over tries either returns or raises")

    def upload(self, file: Path, *, name: str, kind: str) -> httpx.Response:
        """Send a file as a dataset."""
        try:
            with file.open("rb") as stream, self._translated():
                response = self._http.post(
                    "/v1/datasets",
                    data={"name": name, "format": kind},
                    files={"file": (file.name, stream)},
                    timeout=httpx.Timeout(30.0, read=600.0, write=600.0),
                )
        except OSError as error:
            raise CommandError(f"{file} cannot be read: {error.strerror}", code=ExitCode.USAGE) from error
        check(response)
        return response

    def download(self, path: str, out: BinaryIO, *, accept: str) -> None:
        """Write the body of an answer to `out`, in pieces."""
        with self._translated(), self._http.stream("GET", path, headers={"Accept": accept}) as response:
            if response.is_error:
                response.read()
            check(response)
            for piece in response.iter_bytes():
                out.write(piece)

    def events(self, job_id: str, *, after: str | None = None) -> Iterator[Event]:
        """Yield what happens to a job, each event once, until its end.

        A stream that breaks is taken up after the last event that arrived, for up to a minute without a server.
        """
        last, silent_since = after, time.monotonic()
        while True:
            pause = 1.0
            headers = {"Accept": "text/event-stream", "Cache-Control": "no-store"}
            if last is not None:
                headers["Last-Event-ID"] = last
            try:
                with self._http.stream(
                    "GET", f"/v1/jobs/{job_id}/events", headers=headers, timeout=httpx.Timeout(30.0, read=60.0)
                ) as response:
                    if response.status_code == httpx.codes.NO_CONTENT:
                        return
                    if response.status_code in (httpx.codes.TOO_MANY_REQUESTS, httpx.codes.SERVICE_UNAVAILABLE):
                        pause = _retry_after(response)
                    else:
                        if response.is_error:
                            response.read()
                        check(response)
                        for event in parse_events(response.iter_lines()):
                            silent_since = time.monotonic()
                            last = event.id or last
                            yield event
                            if event.kind == "end":
                                return
            except httpx.TransportError as error:
                if time.monotonic() - silent_since > _GIVE_UP_S:
                    raise self._unreachable(error) from error
            time.sleep(pause)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except httpx.TransportError as error:
            raise self._unreachable(error) from error
        except httpx.HTTPError as error:
            raise CommandError(f"the request failed: {error}", code=ExitCode.UNREACHABLE) from error
        except httpx.InvalidURL as error:
            raise CommandError(f"not an address: {error}", code=ExitCode.USAGE) from error

    def _unreachable(self, error: httpx.TransportError) -> CommandError:
        if isinstance(error, httpx.TimeoutException):
            return CommandError(
                f"the server at {self.url} does not answer", code=ExitCode.UNREACHABLE, hint="try again in a moment"
            )
        return CommandError(
            f"no server answers at {self.url}: {error}",
            code=ExitCode.UNREACHABLE,
            hint="start one with `hyperdial up`, or name another with --url or HYPERDIAL_URL",
        )


def check(response: httpx.Response) -> None:
    """Raise what a refused or failed request means; do nothing for one that was served."""
    if not response.is_error:
        return
    try:
        problem = ProblemView.model_validate_json(response.content)
    except ValidationError:
        problem = ProblemView(title=response.reason_phrase or "error", status=response.status_code)
    message = ": ".join(part for part in (problem.title, problem.detail) if part)
    details = [(entry.pointer, entry.detail) for entry in problem.errors]
    server_failed = response.status_code >= httpx.codes.INTERNAL_SERVER_ERROR
    raise CommandError(
        f"{message} ({response.status_code})",
        code=ExitCode.UNREACHABLE if server_failed else ExitCode.REFUSED,
        hint=_hint(response),
        details=details,
    )


def _hint(response: httpx.Response) -> str | None:
    match response.status_code:
        case httpx.codes.UNAUTHORIZED:
            return "set HYPERDIAL_API_KEY to a key made with `hyperdial key create`"
        case httpx.codes.FORBIDDEN:
            return "the key's scope does not allow this: take one made with `hyperdial key create --scope …`"
        case httpx.codes.TOO_MANY_REQUESTS | httpx.codes.SERVICE_UNAVAILABLE:
            return f"try again in {_retry_after(response):g} s"
        case code if code >= httpx.codes.INTERNAL_SERVER_ERROR:
            return "look into the server's log, or run `hyperdial doctor` beside it"
        case _:
            return None


def _retry_after(response: httpx.Response) -> float:
    given = response.headers.get("Retry-After", "")
    return float(min(int(given), 60)) if given.isdecimal() else 1.0


def parse_events(lines: Iterator[str]) -> Iterator[Event]:
    """Yield the events of a stream of lines. Source: WHATWG HTML, 9.2.6 "Interpreting an event stream"."""
    last, kind, data = "", "", list[str]()
    for line in lines:
        if not line:
            if data:
                yield Event(id=last, kind=kind or "message", data="\n".join(data))
            kind, data = "", []
            continue
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        match field:
            case "id" if "\0" not in value:
                last = value
            case "event":
                kind = value
            case "data":
                data.append(value)
            case _:
                pass  # comments keep the connection open; `retry` is for browsers
