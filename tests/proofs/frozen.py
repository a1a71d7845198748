"""A worker is frozen for longer than its lease and wakes up late: `python tests/proofs/frozen.py`.

SIGSTOP holds the worker and its runner, as a paused virtual machine would, at random moments. Another worker takes the
job. SIGCONT then finds the first one in the middle of what it did: it must write nothing more, to no place, and end
its runner.
"""

import argparse
import random
import sqlite3
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).parents[2]))

from service.records import AttemptOutcome, JobStatus
from tests.workers.fleet import Fleet, Postgres, Worker, eventually


def prove(*, rounds: int, postgres: bool, lease_seconds: float = 4.0, seed: int = 0) -> Mapping[str, object]:
    """Freeze a worker in each round; return the figures.

    Raises:
        AssertionError: the late worker has left a trace.
    """
    server = Postgres() if postgres else None
    try:
        with (
            tempfile.TemporaryDirectory() as folder,
            Fleet(Path(folder), database_url=server.url if server else None, lease_seconds=lease_seconds) as fleet,
        ):
            awake: list[float] = []
            chance = random.Random(seed)
            for number in range(rounds):
                awake.append(_round(fleet, number, pause=chance.uniform(0.0, 0.5)))
            return {
                "rounds": rounds,
                "lease (s)": lease_seconds,
                "points written by a late worker": 0,
                "files left by a late worker": 0,
                "late runner ended after (s), at most": round(max(awake), 2),
            }
    finally:
        if server is not None:
            server.close()


def _round(fleet: Fleet, number: int, *, pause: float) -> float:
    steps = 250
    late = fleet.worker()
    job_id = fleet.submit(steps=steps, seed=number, labels={"pause": "0.02"})
    fleet.steps(job_id, 20)
    time.sleep(pause)
    runner = late.runners()[0]
    _freeze(fleet, late)
    other = fleet.worker()
    eventually(lambda: fleet.job(job_id).attempt == 2, what="another worker takes the job")
    fleet.steps(job_id, fleet.store.jobs.attempts(job_id)[1].steps_from + 5)
    late.thaw()
    began = time.monotonic()
    eventually(lambda: not runner.is_running() or runner.status() == psutil.STATUS_ZOMBIE, what="the late runner ends")
    seconds = time.monotonic() - began

    fleet.reaches(job_id, JobStatus.SUCCEEDED)
    first, second = fleet.store.jobs.attempts(job_id)
    assert (first.outcome, second.outcome) == (AttemptOutcome.LOST, AttemptOutcome.SUCCEEDED)
    points = list(fleet.store.points.iterate(job_id))
    assert [point.step for point in points] == list(range(steps))
    own = [point.attempt for point in points]
    assert own == [1] * second.steps_from + [2] * (steps - second.steps_from), "a late point was written"
    mine = {file.key for file in fleet.store.jobs.files(job_id)}
    eventually(lambda: set(fleet.files.keys(f"jobs/{job_id}/")) == mine, what="only the files of the result are left")
    assert fleet.trajectory(job_id) == fleet.undisturbed(steps=steps, seed=number)
    for worker in (late, other):
        worker.kill()
    return seconds


def _freeze(fleet: Fleet, worker: Worker) -> None:
    """Stop a worker, but not while it holds the one lock that SQLite has.

    It would hold up everybody then, which no lease can change; on the one machine that has a SQLite database all
    processes are stopped together. PostgreSQL ends the session of whoever sits on a lock.
    """
    worker.freeze()
    if not fleet.database.is_sqlite:
        return
    with closing(sqlite3.connect(str(fleet.database.engine.url.database), timeout=0.1)) as connection:
        while True:
            try:
                connection.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError:
                worker.thaw()
                time.sleep(0.01)
                worker.freeze()
            else:
                connection.execute("ROLLBACK")
                return


def main() -> None:
    """Read the command line, run, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--postgres", action="store_true")
    parser.add_argument("--lease-seconds", type=float, default=4.0)
    for name, figure in prove(**vars(parser.parse_args())).items():
        print(f"{name}: {figure}")


if __name__ == "__main__":
    main()
