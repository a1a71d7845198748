"""How fast the service itself is: requests, the start of a job, and recording.

    python -m benchmarks.service [--seconds 3]

One API process, on SQLite and on PostgreSQL, under 1, 8 and 32 clients on the same machine; the time from a
submission to a running job with an idle worker; and what recording a trajectory costs the job. Writes
`benchmarks/results/service.json` and `.md`, and prints the latter.
"""

import argparse
import itertools
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import httpx
import psutil
import psycopg

from benchmarks.service_load import Load, get, measure, post
from demo.embedded import running
from service.cli.client import Client
from service.embedded.listener import listen
from service.files import FileStore
from service.spec.job import JobSpec
from service.store import Database, NewPoint, Store, schema
from workers.recorder import Recorder
from workers.spool import Spool

RESULTS = Path(__file__).resolve().parent / "results"
CLIENTS = (1, 8, 32)
TINY = {
    "data": {"dataset": "builtin:wine"},
    "regularizers": [{"kind": "l2", "strength": {"init": 0.01}}],
    "budget": {"outer_steps": 1},
    "verify": False,
}
POINT = {
    "hyperparameters": {"l2": 0.0012},
    "train_loss": 0.0366,
    "valid_loss": 0.1325,
    "hypergradient_norm": 3.1e-05,
    "metrics": {"valid_accuracy": 0.9621, "inner_error": 1e-05, "accepted": 1.0},
    "inner": {"iterations": 12, "residual": 1e-06},
    "certificate": None,
}
TARGET_START_S = 0.2
TARGET_SHARE = 0.02
_QUIET_PERCENT = 5.0


@dataclass(frozen=True)
class Requests:
    """One kind of request on one database."""

    database: str
    request: str
    loads: list[Load]


@dataclass(frozen=True)
class Start:
    """From a submission until the job runs, by the database's clock, with an idle worker."""

    jobs: int
    median_s: float
    worst_s: float


@dataclass(frozen=True)
class Recording:
    """What recording costs."""

    database: str
    points_per_second: float
    """As fast as one worker can."""
    share_at_100_steps: float
    """CPU time of the runner's process for recording, of the wall time, at 100 steps a second."""


def main() -> None:
    """Measure everything and write it down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3.0, help="for each number")
    seconds: float = parser.parse_args().seconds
    loads: list[Requests] = []
    recordings: list[Recording] = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hyperdial-bench-")))
        for name, database in stack.enter_context(databases(folder)).items():
            recordings.append(recording(name, database, folder / name, seconds=3 * seconds))
            loads += requests(name, database, folder / name, seconds=seconds)
        start = start_of_jobs(folder / "start", jobs=20)
    cpu = platform.processor() or platform.machine()
    found = {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{cpu}, {os.cpu_count()} CPUs, Python {platform.python_version()}",
        "load_average": os.getloadavg()[0],
        "requests": [asdict(entry) for entry in loads],
        "start": asdict(start),
        "recording": [asdict(entry) for entry in recordings],
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "service.json").write_text(json.dumps(found, indent=1) + "\n")
    text = report(loads, start, recordings, machine=str(found["machine"]), load=os.getloadavg()[0])
    (RESULTS / "service.md").write_text(text)
    sys.stdout.write(text)


@contextmanager
def databases(folder: Path) -> Iterator[dict[str, str]]:
    """A database of each kind, upgraded; yields their addresses by name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a session without a runtime folder
        import pgserver  # type: ignore[import-untyped]  # not there for every Python

        server = pgserver.get_server(folder / "postgresql", cleanup_mode="stop")
    try:
        with psycopg.connect(server.get_uri("postgres"), autocommit=True) as connection:
            connection.execute("CREATE DATABASE bench")
        found = {"SQLite": f"sqlite:///{folder / 'bench.sqlite'}", "PostgreSQL": server.get_uri("bench")}
        for url in found.values():
            database = Database(url)
            schema.upgrade(database)
            database.close()
        yield found
    finally:
        server.cleanup()


def requests(name: str, database: str, folder: Path, *, seconds: float) -> list[Requests]:
    """Load one API process with submissions and with questions after a job."""
    body = json.dumps(TINY).encode()
    with api(database, folder) as url:
        job_id = httpx.post(f"{url}/v1/jobs", json=TINY).raise_for_status().json()["id"]
        kinds = {
            "GET /v1/jobs/{id}": get(url, f"/v1/jobs/{job_id}"),
            "POST /v1/jobs": post(url, "/v1/jobs", body),
        }
        found = []
        for request, sent in kinds.items():
            loads = [
                measure(url, lambda sent=sent: itertools.repeat(sent), clients=clients, seconds=seconds)
                for clients in CLIENTS
            ]
            found.append(Requests(name, request, loads))
        return found


@contextmanager
def api(database: str, folder: Path) -> Iterator[str]:
    """Run one API process on `database`; yields its address."""
    folder.mkdir(parents=True, exist_ok=True)
    environment = {
        **os.environ,
        "HYPERDIAL_DATABASE_URL": database,
        "HYPERDIAL_DATA_DIR": str(folder),
        "HYPERDIAL_QUEUE": "database",
        "HYPERDIAL_LOG_LEVEL": "WARNING",
    }
    with listen("127.0.0.1", 0) as listener, (folder / "api.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "service", "api", "--fd", str(listener.fileno())],
            env=environment,
            pass_fds=[listener.fileno()],
            stdout=log,
            stderr=log,
        )
        try:
            url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            httpx.get(f"{url}/readyz", timeout=60.0).raise_for_status()
            yield url
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait()


def start_of_jobs(folder: Path, *, jobs: int) -> Start:
    """Submit tiny jobs one by one to an embedded service whose worker is idle."""
    took = []
    with running(folder, workers=1) as url, Client(url, key=None) as client:
        for _ in range(jobs):
            settle(int((folder / "lock").read_text()))
            job = client.submit(TINY)
            for _event in client.events(job.id):
                pass
            ended = client.job(job.id)
            if ended.status != "succeeded" or ended.created_at is None or ended.started_at is None:
                raise RuntimeError(f"a tiny job ended as {ended.status}: {ended.failure}")
            took.append((ended.started_at - ended.created_at).total_seconds())
    return Start(jobs=jobs, median_s=statistics.median(took), worst_s=max(took))


def settle(pid: int) -> None:
    """Wait until a service does nothing: then its worker has a runner that has imported everything."""
    quiet = 0
    while quiet < 3:
        processes = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
        before = {process.pid: used(process) for process in processes}
        time.sleep(0.3)
        spent = sum(used(process) - before[process.pid] for process in processes)
        quiet = quiet + 1 if 100 * spent / 0.3 < _QUIET_PERCENT else 0


def used(process: psutil.Process) -> float:
    """CPU seconds that a process has used; 0 when it is gone."""
    try:
        times = process.cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return float(times.user + times.system)


def recording(name: str, url: str, folder: Path, *, seconds: float) -> Recording:
    """Record points as a runner does: as fast as it goes, then a hundred a second."""
    database = Database(url)
    store = Store(database)
    files = FileStore((folder / "files").as_uri())
    try:
        rates = []
        for pace in (None, 100.0):
            store.jobs.create(JobSpec.model_validate(TINY))
            claim = store.leases.claim("worker_bench", device="cpu", lease_seconds=60.0)
            if claim is None:
                raise RuntimeError("the job that was just made could not be claimed")
            spool = Spool(folder / "spool", claim.lease, limit_bytes=1 << 24)
            recorder = Recorder(store.leases, files, claim.lease, spool, lease_seconds=60.0, record_seconds=0.25)
            began, cpu, step = time.perf_counter(), time.process_time(), 0
            while time.perf_counter() - began < seconds:
                recorder.point(NewPoint(step=step, elapsed_s=0.01 * step, body=dict(POINT)), wait=_nothing)
                step += 1
                if pace is not None:
                    time.sleep(max(0.0, began + step / pace - time.perf_counter()))
            recorder.close()
            wall = time.perf_counter() - began
            rates.append(step / wall if pace is None else (time.process_time() - cpu) / wall)
    finally:
        database.close()
    return Recording(database=name, points_per_second=rates[0], share_at_100_steps=rates[1])


def _nothing() -> None:
    pass


def report(loads: list[Requests], start: Start, recordings: list[Recording], *, machine: str, load: float) -> str:
    """Everything as Markdown."""
    lines = [
        "# The service's speed",
        "",
        f"{machine}; load average {load:.1f}. One API process; the clients run on the same machine.",
        "",
        "| database | request | clients | p50 | p99 | requests/s | errors |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    lines += [
        f"| {entry.database} | `{entry.request}` | {load.clients} | {load.p50_ms:.1f} ms | {load.p99_ms:.1f} ms "
        f"| {load.per_second:.0f} | {load.errors} |"
        for entry in loads
        for load in entry.loads
    ]
    lines += [
        "",
        f"From a submission to a running job, worker idle: median {start.median_s:.3f} s, worst {start.worst_s:.3f} s "
        f"of {start.jobs} (target: median at most {TARGET_START_S:g} s).",
        "",
        "| database | points/s that one worker can record | CPU share of recording at 100 steps/s |",
        "| --- | ---: | ---: |",
    ]
    lines += [
        f"| {entry.database} | {entry.points_per_second:.0f} | {entry.share_at_100_steps:.2%} |" for entry in recordings
    ]
    lines += ["", f"(Target: a share of at most {TARGET_SHARE:.0%}.)", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
