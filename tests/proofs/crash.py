"""Workers are killed at random moments, and no job shows it: `python tests/proofs/crash.py`.

Real jobs of several methods run on the CPU while SIGKILL hits supervisors, runners at work and runners in waiting.
Afterwards every job must have succeeded exactly once, with steps 0 … n − 1 without a gap or a repeat, every number of
its trajectory and its learned strengths equal, to the last bit, to those of a run that was left alone.
"""

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from itertools import cycle, islice
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).parents[2]))

from service.records import AttemptOutcome, JobStatus
from tests.workers.fleet import REAL, Fleet, Postgres, Worker

ADAM = {"kind": "adam"}
NYSTROM = {"kind": "nystrom"}


def _job(dataset: str, method: Mapping[str, object], steps: int, **more: object) -> dict[str, object]:
    data = {"dataset": f"builtin:{dataset}", "target": "target"}
    return {"data": data, "method": method, "steps": steps, "budget": {"tolerance": 1e-12}, **more}


JOBS = (
    _job("breast_cancer", {"kind": "implicit", "step": ADAM}, 200),
    _job("breast_cancer", {"kind": "hoag"}, 400),
    _job("wine", {"kind": "hoag"}, 250),
    _job("diabetes", {"kind": "implicit", "step": ADAM}, 500, loss="squared_error"),
    _job("breast_cancer", {"kind": "implicit", "solver": NYSTROM, "step": ADAM}, 200, seed=1),
    _job("digits", {"kind": "implicit", "step": ADAM}, 120),
)
"""Each some seconds long."""


def prove(*, jobs: int, kills: int, workers: int, postgres: bool, seed: int) -> Mapping[str, object]:
    """Run it all; return the figures.

    Raises:
        AssertionError: a job shows that it was disturbed.
    """
    server = Postgres() if postgres else None
    settings = {"lease_seconds": 5.0, "checkpoint_seconds": 0.5, "checkpoint_steps": 10, "backoff_seconds": 0.01}
    url = None if server is None else server.url
    try:
        with (
            tempfile.TemporaryDirectory() as folder,
            Fleet(Path(folder), database_url=url, command=REAL, **settings) as fleet,
        ):
            return _prove(fleet, jobs=jobs, kills=kills, workers=workers, random=random.Random(seed))
    finally:
        if server is not None:
            server.close()


def _prove(fleet: Fleet, *, jobs: int, kills: int, workers: int, random: random.Random) -> Mapping[str, object]:
    kinds = [dict(job) for job in islice(cycle(JOBS), jobs)]
    calm = fleet.worker()
    twins = [fleet.submit(**dict(job)) for job in JOBS[: min(jobs, len(JOBS))]]  # type: ignore[arg-type]
    for twin in twins:
        fleet.reaches(twin, JobStatus.SUCCEEDED, seconds=300.0)
    calm.drain()
    calm.process.wait()

    ids = [fleet.submit(max_attempts=1000, **job) for job in kinds]  # type: ignore[arg-type]
    began = time.monotonic()
    team = [fleet.worker() for _ in range(workers)]
    killed: Counter[str] = Counter()
    while fleet.store.jobs.counts().get(JobStatus.SUCCEEDED, 0) < jobs + len(twins):
        team = [worker if worker.process.poll() is None else fleet.worker() for worker in team]
        if killed.total() < kills and _is_busy(fleet):
            time.sleep(random.uniform(0.0, 2.0))
            if (target := _victim(fleet, team, random)) is not None:
                killed[_kill(target)] += 1
        time.sleep(0.1)
        assert fleet.store.jobs.counts().get(JobStatus.FAILED, 0) == 0, "a job failed"
        assert time.monotonic() - began < 3600, "it took more than an hour"
    seconds = time.monotonic() - began

    attempts = lost = recomputed = points = 0
    for number, job_id in enumerate(ids):
        history = fleet.store.jobs.attempts(job_id)
        assert sum(attempt.outcome is AttemptOutcome.SUCCEEDED for attempt in history) == 1
        attempts += len(history)
        lost += sum(attempt.outcome is AttemptOutcome.LOST for attempt in history)
        trajectory, twin = fleet.trajectory(job_id), fleet.trajectory(twins[number % len(JOBS)])
        assert [step for step, _ in trajectory] == list(range(len(twin))), "a gap or a repeat"
        assert trajectory == twin, "the trajectory is another"
        mine, its = fleet.job(job_id).result, fleet.job(twins[number % len(JOBS)]).result
        assert mine is not None
        assert its is not None
        assert mine["hyperparameters"] == its["hyperparameters"], "the answer is another"
        events = fleet.store.jobs.events(job_id, after=0, limit=100_000)
        assert [event.seq for event in events] == list(range(1, len(events) + 1)), "the events have a gap"
        assert sum(event.body.get("status") == JobStatus.SUCCEEDED for event in events) == 1
        points += len(trajectory)
        recomputed += sum(_steps_lost(fleet, job_id))
    stored = {file.key for job_id in (*ids, *twins) for file in fleet.store.jobs.files(job_id)}
    time.sleep(3 * fleet.settings.sweep_seconds)
    return {
        "jobs": jobs,
        "kills": dict(killed),
        "attempts": attempts,
        "attempts lost": lost,
        "points": points,
        "points computed twice": recomputed,
        "files of lost attempts left over": len(set(fleet.files.keys("jobs/")) - stored),
        "seconds": round(seconds, 1),
    }


def _steps_lost(fleet: Fleet, job_id: str) -> list[int]:
    """How many recorded steps each attempt had to compute again."""
    lines = [str(event.body.get("text", "")) for event in fleet.store.jobs.events(job_id, after=0, limit=100_000)]
    resumed = {
        int(words[1]): int(words[-1]) for words in (line.split() for line in lines if "goes on from step" in line)
    }
    return [
        attempt.steps_from - resumed.get(attempt.number, 0)
        for attempt in fleet.store.jobs.attempts(job_id)
        if attempt.number in resumed or attempt.outcome is AttemptOutcome.SUCCEEDED
    ]


def _is_busy(fleet: Fleet) -> bool:
    return fleet.store.jobs.counts().get(JobStatus.RUNNING, 0) > 0


def _victim(fleet: Fleet, team: list[Worker], random: random.Random) -> tuple[str, psutil.Process] | None:
    """Choose whom to kill: a runner at work, its supervisor, or whoever is there."""
    busy = {worker.pid for worker in fleet.store.workers.list(timeout_seconds=60.0) if worker.job_id is not None}
    victims: dict[str, list[psutil.Process]] = {"runner at work": [], "its supervisor": [], "idle process": []}
    for worker in team:
        with suppress(psutil.NoSuchProcess):
            supervisor, runners = psutil.Process(worker.pid), worker.runners()
            if worker.pid in busy and runners:
                victims["runner at work"].append(runners.pop(0))
                victims["its supervisor"].append(supervisor)
            else:
                victims["idle process"].append(supervisor)
            victims["idle process"] += runners
    kind = random.choices(list(victims), weights=[6, 3, 1])[0]
    return (kind, random.choice(victims[kind])) if victims[kind] else None


def _kill(target: tuple[str, psutil.Process]) -> str:
    with suppress(psutil.NoSuchProcess):
        target[1].kill()
    return target[0]


def main() -> None:
    """Read the command line, run, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=30)
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--postgres", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    for name, figure in prove(**vars(parser.parse_args())).items():
        print(f"{name}: {figure}")


if __name__ == "__main__":
    main()
