"""What Redis, PostgreSQL, restarts and clocks do to jobs, which is nothing: `python tests/proofs/outages.py`.

- Redis is killed, its data wiped, with jobs in the queue: all succeed, once.
- PostgreSQL is stopped and started again under load: no accepted job is lost, no healthy one taken for dead, no
  answer is a 500.
- The API is restarted with event streams open and a job running: it is gone in ten seconds, and clients go on with
  Last-Event-ID without a gap or a repeat.
- The clocks of workers are an hour off: nobody's job is taken away.
"""

import argparse
import json
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import Event, Thread

import httpx

sys.path.insert(0, str(Path(__file__).parents[2]))

from service.records import AttemptOutcome, JobStatus
from tests.workers.fleet import ROOT, Fleet, Postgres, Redis, eventually, shifted_clock

Figures = Mapping[str, object]


class Api:
    """The API as a process, on one port for all its lives."""

    def __init__(self, fleet: Fleet) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._fleet = fleet
        self.start()

    def start(self) -> None:
        with self._fleet.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "service", "api", "--port", str(self.port)],
                env=self._fleet.env,
                cwd=ROOT,
                stderr=log,
            )

        def answers() -> bool:
            try:
                return httpx.get(f"{self.url}/healthz", timeout=5.0).is_success
            except httpx.TransportError:
                return False

        eventually(answers, what="the API answers")

    def stop(self) -> float:
        """SIGTERM; return the seconds until it is gone."""
        began = time.monotonic()
        self.process.terminate()
        self.process.wait(60)
        return time.monotonic() - began

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


@contextmanager
def _fleet(*, postgres: bool, redis: bool, workers: int, **settings: object) -> Iterator[tuple[Fleet, list[object]]]:
    """Servers and stand-in workers; yields the fleet and the servers in the order asked for."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        servers: list[object] = []
        url = bell = None
        if postgres:
            server = Postgres()
            stack.callback(server.close)
            servers.append(server)
            url = server.url
        if redis:
            bell = Redis(folder)
            stack.callback(bell.kill)
            servers.append(bell)
        fleet = stack.enter_context(Fleet(folder, database_url=url, redis=bell, **settings))
        for _ in range(workers):
            fleet.worker()
        yield fleet, servers


def redis_is_wiped(*, jobs: int, away_seconds: float, workers: int = 2) -> Figures:
    """Kill Redis with jobs in the queue, let more come while it is away, start it again empty."""
    with _fleet(postgres=False, redis=True, workers=workers) as (fleet, [redis]):
        assert isinstance(redis, Redis)
        ids = [fleet.submit(steps=5) for _ in range(jobs // 2)]
        began = time.monotonic()
        eventually(lambda: _succeeded(fleet) >= jobs // 4, seconds=600.0)
        redis.kill()
        ids += [fleet.submit(steps=5) for _ in range(jobs - len(ids))]
        time.sleep(away_seconds)
        redis.start()
        eventually(lambda: _succeeded(fleet) == jobs, seconds=1200.0)
        for job_id in ids:
            _assert_once(fleet, job_id, steps=5)
        return {"jobs": jobs, "Redis away (s)": away_seconds, "seconds": round(time.monotonic() - began, 1)}


def postgres_is_away(*, away_seconds: float, lease_seconds: float, steps: int, workers: int = 2) -> Figures:
    """Stop PostgreSQL under load for a while, and start it again."""
    with _fleet(postgres=True, redis=True, workers=workers, lease_seconds=lease_seconds) as (fleet, [postgres, _]):
        assert isinstance(postgres, Postgres)
        api = Api(fleet)
        try:
            load = Load(api.url, steps=steps)
            eventually(lambda: fleet.store.jobs.counts().get(JobStatus.RUNNING, 0) == workers)
            eventually(lambda: _points_of_running(fleet) > 0)
            postgres.stop()
            time.sleep(away_seconds)
            postgres.start()
            eventually(lambda: load.answers_since_last[202] > 0, seconds=120.0, what="jobs are accepted again")
            time.sleep(2.0)
            load.end()
            accepted = load.accepted
            eventually(lambda: _ended(fleet) == len(accepted), seconds=1200.0, what="all accepted jobs ended")
        finally:
            api.close()
        for job_id in accepted:
            _assert_once(fleet, job_id, steps=steps)
        assert all(status < 500 or status == 503 for status in load.answers), f"answers: {load.answers}"
        return {
            "PostgreSQL away (s)": away_seconds,
            "lease (s)": lease_seconds,
            "jobs accepted, all succeeded at the first attempt": len(accepted),
            "answers": dict(sorted(load.answers.items())),
        }


class Load:
    """A client that submits a job twice a second and reads all the while."""

    def __init__(self, url: str, *, steps: int) -> None:
        self._url = url
        self._steps = steps
        self.accepted: list[str] = []
        self.answers: Counter[int] = Counter()
        self.answers_since_last: Counter[int] = Counter()
        self._ending = Event()
        self._thread = Thread(target=self._work)
        self._thread.start()

    def end(self) -> None:
        self._ending.set()
        self._thread.join()

    def _work(self) -> None:
        with httpx.Client(base_url=self._url, timeout=60.0) as client:
            while not self._ending.wait(0.5):
                if len(self.accepted) < 12 or self.answers_since_last[202] == 0:
                    answer = self._noted(client.post("/v1/jobs", json=self._spec()))
                    if answer.status_code == 202:
                        self.accepted.append(answer.json()["id"])
                self._noted(client.get("/v1/jobs", params={"limit": 5}))
                self._noted(client.get("/readyz"))
                if self.accepted:
                    self._noted(client.get(f"/v1/jobs/{self.accepted[-1]}"))

    def _noted(self, answer: httpx.Response) -> httpx.Response:
        if answer.status_code == 503:
            self.answers_since_last.clear()  # from here on, only what comes after the last refusal
        self.answers[answer.status_code] += 1
        self.answers_since_last[answer.status_code] += 1
        return answer

    def _spec(self) -> dict[str, object]:
        return {
            "data": {"dataset": "builtin:wine", "target": "target"},
            "budget": {"outer_steps": self._steps},
            "labels": {"pause": "0.05"},
        }


def api_is_restarted(*, steps: int, streams: int) -> Figures:
    """SIGTERM the API with streams open and a job running; clients go on where they were."""
    with _fleet(postgres=False, redis=True, workers=1) as (fleet, _):
        api = Api(fleet)
        try:
            job_id = fleet.submit(steps=steps, labels={"pause": "0.02"})
            readers = [Reader(api.url, job_id) for _ in range(streams)]
            eventually(lambda: all(len(reader.ids) > steps // 5 for reader in readers), seconds=120.0)
            seconds = api.stop()
            assert fleet.job(job_id).status is JobStatus.RUNNING
            api.start()
            fleet.reaches(job_id, JobStatus.SUCCEEDED, seconds=120.0)
            for reader in readers:
                reader.thread.join(60.0)
                assert not reader.thread.is_alive()
                assert reader.ids == list(range(1, len(reader.ids) + 1)), "a gap or a repeat in the events"
                assert reader.steps == list(range(steps)), "a gap or a repeat in the points"
            _assert_once(fleet, job_id, steps=steps)
        finally:
            api.close()
        assert seconds < 10.0, f"the API took {seconds:.1f} s to leave"
        return {
            "streams": streams,
            "points each": steps,
            "connections each": [reader.connections for reader in readers],
            "API gone after (s)": round(seconds, 2),
        }


class Reader:
    """A client of an event stream, which comes back with the last id that it saw."""

    def __init__(self, url: str, job_id: str) -> None:
        self._url = f"{url}/v1/jobs/{job_id}/events"
        self.ids: list[int] = []
        self.steps: list[int] = []
        self.connections = 0
        self.thread = Thread(target=self._read, daemon=True)
        self.thread.start()

    def _read(self) -> None:
        while True:
            headers = {"Last-Event-ID": str(self.ids[-1])} if self.ids else {}
            try:
                with httpx.stream("GET", self._url, headers=headers, timeout=60.0) as answer:
                    if answer.status_code == 204:
                        return
                    self.connections += 1
                    if self._take(answer.iter_lines()):
                        return
            except httpx.TransportError:
                time.sleep(0.1)

    def _take(self, lines: Iterator[str]) -> bool:
        kind = number = data = ""
        for line in lines:
            name, _, value = line.partition(": ")
            match name:
                case "event":
                    kind = value
                case "id":
                    number = value
                case "data":
                    data = value
                case "":
                    if kind in ("status", "point", "log"):
                        self.ids.append(int(number))
                    if kind == "point":
                        self.steps.append(json.loads(data)["step"])
                    if kind == "end":
                        return True
                    kind = number = data = ""
        return False


def clocks_are_off(*, lease_seconds: float, steps: int) -> Figures:
    """Let one worker live an hour ago, and the one that looks for lost jobs an hour from now."""
    with _fleet(postgres=True, redis=False, workers=0, lease_seconds=lease_seconds) as (fleet, _):
        fleet.worker(**shifted_clock(-3600, fleet.folder))
        slow = fleet.submit(steps=steps, labels={"pause": "0.02"})
        fleet.steps(slow, 5)
        fleet.worker(**shifted_clock(3600, fleet.folder))
        quick = [fleet.submit(steps=5) for _ in range(3)]
        for job_id in (slow, *quick):
            fleet.reaches(job_id, JobStatus.SUCCEEDED, seconds=300.0)
        _assert_once(fleet, slow, steps=steps)
        for job_id in quick:
            _assert_once(fleet, job_id, steps=5)
        return {"lease (s)": lease_seconds, "clocks off by (s)": [-3600, 3600], "jobs taken away": 0}


def _succeeded(fleet: Fleet) -> int:
    return fleet.store.jobs.counts().get(JobStatus.SUCCEEDED, 0)


def _ended(fleet: Fleet) -> int:
    return sum(count for status, count in fleet.store.jobs.counts().items() if status.is_final)


def _points_of_running(fleet: Fleet) -> int:
    running = fleet.store.jobs.list(statuses=[JobStatus.RUNNING], limit=10, before=None)
    return min((job.steps_done for job in running), default=0)


def _assert_once(fleet: Fleet, job_id: str, *, steps: int) -> None:
    attempts = fleet.store.jobs.attempts(job_id)
    assert [attempt.outcome for attempt in attempts] == [AttemptOutcome.SUCCEEDED], f"{job_id}: {attempts}"
    assert [step for step, _ in fleet.trajectory(job_id)] == list(range(steps))


PROOFS: Mapping[str, Callable[[], Figures]] = {
    "Redis killed and wiped": lambda: redis_is_wiped(jobs=100, away_seconds=5.0),
    "PostgreSQL away for 10 s": lambda: postgres_is_away(away_seconds=10.0, lease_seconds=60.0, steps=300),
    "PostgreSQL away for 90 s": lambda: postgres_is_away(away_seconds=90.0, lease_seconds=60.0, steps=300),
    "API restarted": lambda: api_is_restarted(steps=1000, streams=10),
    "clocks an hour off": lambda: clocks_are_off(lease_seconds=5.0, steps=1000),
}


def main() -> None:
    """Read the command line, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=list(PROOFS))
    only = parser.parse_args().only
    for name, proof in PROOFS.items():
        if only in (None, name):
            began = time.monotonic()
            figures = proof()
            print(f"{name} ({time.monotonic() - began:.0f} s)")
            for what, figure in figures.items():
                print(f"  {what}: {figure}")


if __name__ == "__main__":
    main()
