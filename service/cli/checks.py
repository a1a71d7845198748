"""What `doctor` checks, and what it says to do about it. Loaded only when asked for: it needs the store."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from importlib.metadata import PackageNotFoundError, version
from typing import Final
from urllib.parse import urlsplit

import httpx
from sqlalchemy import select

from service.cli.display import number
from service.cli.exits import CommandError, ExitCode
from service.errors import QueueUnavailable, StoreUnavailable
from service.files import FileStore, job_key
from service.queue import make_bell
from service.records import WorkerRecord, WorkerState
from service.settings import QueueKind, Settings
from service.store import Store
from service.store.clock import database_now
from service.store.database import Database
from service.store.schema import is_at_head
from service.version import version as this_version

_SKEW_S: Final = 2.0
_LITTLE_DISK: Final = 2 * 2**30
_NO_DISK: Final = 200 * 2**20
_PACKAGES: Final = ("hyperdial", "fastapi", "pydantic", "sqlalchemy", "redis", "rq", "obstore", "pyarrow")
_ASK_TORCH: Final = """
import json, torch
devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
print(json.dumps({"torch": torch.__version__, "cuda": torch.version.cuda, "devices": devices}))
"""


class Verdict(StrEnum):
    """How a check went."""

    GOOD = "good"
    WARNING = "warning"
    BAD = "bad"


@dataclass(frozen=True)
class Finding:
    """What a check found, and what to do about it."""

    check: str
    verdict: Verdict
    found: str
    remedy: str = ""


def examine(chosen: Settings, url: str) -> Iterator[Finding]:
    """Yield what every check finds; none of them raises."""
    yield _versions()
    yield from _database_findings(chosen)
    yield _queue(chosen)
    yield _files(chosen)
    yield _disk(chosen)
    yield _devices()
    yield _server(url)


def _versions() -> Finding:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    python = ".".join(map(str, sys.version_info[:3]))
    text = ", ".join([f"Python {python}", *(f"{name} {number}" for name, number in found.items())])
    missing = [name for name, number in found.items() if number == "not installed"]
    if missing:
        return Finding("versions", Verdict.WARNING, text, "install with: pip install 'hyperdial[worker,embedded]'")
    return Finding("versions", Verdict.GOOD, text)


@contextmanager
def _database(chosen: Settings) -> Iterator[Database]:
    try:
        database = Database(chosen.database)
    except ValueError as error:
        raise CommandError(str(error), code=ExitCode.USAGE) from error
    try:
        yield database
    finally:
        database.close()


def _database_findings(chosen: Settings) -> Iterator[Finding]:
    sqlite = chosen.database_url is None
    if sqlite and not (chosen.data_dir / "hyperdial.sqlite").exists():
        yield Finding(
            "database",
            Verdict.BAD,
            f"there is no database in {chosen.data_dir.absolute()}",
            "`hyperdial up` or `hyperdial migrate` makes it; HYPERDIAL_DATA_DIR names another folder",
        )
        return
    try:
        with _database(chosen) as database:
            began = time.perf_counter()
            database.ping()
            milliseconds = (time.perf_counter() - began) * 1e3
            kind = "SQLite" if database.is_sqlite else "PostgreSQL"
            yield Finding("database", Verdict.GOOD, f"{kind} answers in {number(milliseconds)} ms")
            if is_at_head(database):
                yield Finding("tables", Verdict.GOOD, "up to date")
                yield _clock(database)
                yield _workers(Store(database), chosen)
            else:
                yield Finding("tables", Verdict.BAD, "of another version than this program", "run `hyperdial migrate`")
    except CommandError as error:
        yield Finding("database", Verdict.BAD, error.message, "correct HYPERDIAL_DATABASE_URL")
    except StoreUnavailable as error:
        remedy = (
            "check that the data folder can be read and written, and that its disk is not full"
            if sqlite
            else "check HYPERDIAL_DATABASE_URL, that the server runs, and that it can be reached from here"
        )
        yield Finding("database", Verdict.BAD, f"cannot be reached: {_first_line(error.__cause__ or error)}", remedy)


def _clock(database: Database) -> Finding:
    before = datetime.now(UTC)
    with database.read() as connection:
        there = connection.execute(select(database_now())).scalar_one()
    after = datetime.now(UTC)
    skew = (there - (before + (after - before) / 2)).total_seconds()
    text = f"the database's clock is {skew:+.3f} s off this machine's"
    if abs(skew) > _SKEW_S:
        return Finding("clock", Verdict.WARNING, text, "leases are safe, but times look wrong: set both clocks by NTP")
    return Finding("clock", Verdict.GOOD, text)


def live_workers(chosen: Settings) -> list[WorkerRecord]:
    """The workers that were heard of lately.

    Raises:
        CommandError: the database cannot be reached.
    """
    with _database(chosen) as database:
        try:
            return _online(Store(database), chosen)
        except StoreUnavailable as error:
            raise CommandError("the database cannot be reached", code=ExitCode.UNREACHABLE) from error


def _online(store: Store, chosen: Settings) -> list[WorkerRecord]:
    workers = store.workers.list(timeout_seconds=chosen.worker_timeout_seconds)
    return [worker for worker in workers if worker.state is not WorkerState.OFFLINE]


def _workers(store: Store, chosen: Settings) -> Finding:
    workers = _online(store, chosen)
    if not workers:
        return Finding(
            "workers",
            Verdict.WARNING,
            "none is online: jobs wait",
            "start one with `hyperdial worker` or `hyperdial up`",
        )
    others = {worker.version for worker in workers} - {this_version()}
    text = ", ".join(f"{worker.host} {worker.device} {worker.state}" for worker in workers[:8])
    if others:
        return Finding(
            "workers", Verdict.WARNING, f"{text}; of version {', '.join(sorted(others))}", "bring all to one version"
        )
    return Finding("workers", Verdict.GOOD, text)


def _queue(chosen: Settings) -> Finding:
    if chosen.queue is QueueKind.DATABASE:
        return Finding("queue", Verdict.GOOD, f"none: workers look every {chosen.poll_seconds:g} s")
    address = urlsplit(chosen.redis_url.get_secret_value())
    where = address.path if address.scheme == "unix" else f"{address.hostname}:{address.port or 6379}"
    try:
        make_bell(chosen).ping()
    except (QueueUnavailable, ValueError) as error:
        embedded = chosen.database_url is None and "redis_url" not in chosen.model_fields_set
        return Finding(
            "queue",
            # Embedded mode has a server of its own, on a socket that only its children are told of.
            Verdict.WARNING if embedded else Verdict.BAD,
            f"Redis at {where} cannot be reached: {_first_line(error)}",
            "`hyperdial up` brings its own; else check HYPERDIAL_REDIS_URL, or set HYPERDIAL_QUEUE=database. "
            "Jobs run without it, after a delay of at most HYPERDIAL_POLL_SECONDS",
        )
    return Finding("queue", Verdict.GOOD, f"Redis answers at {where}")


def _files(chosen: Settings) -> Finding:
    if chosen.files_url is None and not chosen.data_dir.exists():
        return Finding("files", Verdict.GOOD, f"{chosen.data_dir.absolute()} will be made when it is needed")
    key, content = job_key("job_doctor", f"probe-{os.getpid()}"), os.urandom(64)
    try:
        store = FileStore(chosen.files)
        store.put(key, content)
        same = b"".join(store.open_range(key)) == content
        store.delete([key])
    except (OSError, ValueError) as error:
        return Finding(
            "files",
            Verdict.BAD,
            f"{_without_secret(chosen.files)} cannot be used: {_first_line(error)}",
            "check HYPERDIAL_FILES_URL, its credentials (AWS_*), and that it may be written to",
        )
    if not same:
        return Finding("files", Verdict.BAD, "what was written was not read back", "the file store is not consistent")
    return Finding("files", Verdict.GOOD, f"{_without_secret(chosen.files)} can be written, read and deleted")


def _disk(chosen: Settings) -> Finding:
    folder = chosen.data_dir.absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    text = f"{free / 2**30:.1f} GiB free at {folder}"
    remedy = "make room, or set HYPERDIAL_RETENTION_DAYS to have old jobs deleted"
    if free < _NO_DISK:
        return Finding("disk", Verdict.BAD, text, remedy)
    return Finding(
        "disk", Verdict.WARNING if free < _LITTLE_DISK else Verdict.GOOD, text, remedy if free < _LITTLE_DISK else ""
    )


def _devices() -> Finding:
    # In a process of its own: this one stays free of torch, and survives a driver that does not.
    try:
        asked = subprocess.run(
            [sys.executable, "-c", _ASK_TORCH], capture_output=True, text=True, timeout=120, check=False
        )
    except subprocess.TimeoutExpired:
        return Finding("devices", Verdict.BAD, "PyTorch does not come up within two minutes", "check the GPU's driver")
    if asked.returncode != 0:
        reason = asked.stderr.strip().splitlines()[-1] if asked.stderr.strip() else f"exit status {asked.returncode}"
        return Finding(
            "devices",
            Verdict.WARNING,
            f"no worker can run here: {reason}",
            "for a worker: pip install 'hyperdial[worker]'; an API server needs no PyTorch",
        )
    told = json.loads(asked.stdout.strip().splitlines()[-1])
    devices = [f"cuda:{index} {name}" for index, name in enumerate(told["devices"])]
    text = f"PyTorch {told['torch']}: cpu ({os.cpu_count()} cores){''.join(', ' + name for name in devices)}"
    if shutil.which("nvidia-smi") and not devices:
        return Finding(
            "devices",
            Verdict.WARNING,
            text,
            "there is an NVIDIA driver, but this PyTorch cannot use it: see docs/operate.md",
        )
    return Finding("devices", Verdict.GOOD, text)


def _server(url: str) -> Finding:
    try:
        answer = httpx.get(f"{url.rstrip('/')}/readyz", timeout=5.0, trust_env=False)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        return Finding(
            "server",
            Verdict.WARNING,
            f"none answers at {url}: {_first_line(error)}",
            "start one with `hyperdial up` or `hyperdial api`",
        )
    if not answer.is_success:
        return Finding("server", Verdict.BAD, f"{url} is not ready ({answer.status_code})", "see what is wrong above")
    return Finding("server", Verdict.GOOD, f"{url} is ready")


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def _without_secret(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname or ''}{parts.path}"
