"""Runners are killed, stopped and woken at random moments: every job still runs once, every step is there once."""

import contextlib
import itertools
import multiprocessing
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.context import ForkServerProcess

import pytest
from sqlalchemy import select

from service.errors import StoreUnavailable
from service.records import AttemptOutcome, JobStatus
from service.spec.job import JobSpec
from service.store import Database, Store
from service.tables import jobs
from tests.service.store import stand_in_runner
from tests.service.store.stand_in_runner import LEASE_LOST, Settings, value

_LEASE = 1.0
_DEADLINE = 100.0

Start = Callable[..., ForkServerProcess]


@pytest.fixture(scope="module")
def context() -> multiprocessing.context.ForkServerContext:
    """Processes that begin with everything imported, so that they can be killed often."""
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(["tests.service.store.stand_in_runner"])
    return found


@pytest.fixture
def start(context: multiprocessing.context.ForkServerContext, database_url: str) -> Iterator[Start]:
    """Start a stand-in runner; all are killed in the end."""
    started: list[ForkServerProcess] = []

    def start_one(*, step_seconds: float, ends_with_its_lease: bool = False) -> ForkServerProcess:
        number = len(started)
        settings = Settings(
            url=database_url,
            worker_id=f"wk_{number}",
            seed=number,
            lease_seconds=_LEASE,
            step_seconds=step_seconds,
            ends_with_its_lease=ends_with_its_lease,
        )
        process = context.Process(target=stand_in_runner.run, args=(settings,), daemon=True)
        process.start()
        started.append(process)
        return process

    yield start_one
    for process in started:
        process.kill()
        process.join()
        process.close()


@pytest.fixture
def reaped(store: Store) -> Iterator[list[str]]:
    """A reaper at work; gives the ids of the jobs that it took."""
    stop = threading.Event()
    found: list[str] = []
    failures: list[BaseException] = []

    def reap() -> None:
        while not stop.wait(0.1):
            try:
                found.extend(store.leases.reap(lease_seconds=_LEASE, backoff_seconds=0.01))
            except StoreUnavailable:
                continue
            except BaseException as error:
                failures.append(error)
                raise

    thread = threading.Thread(target=reap)
    thread.start()
    yield found
    stop.set()
    thread.join()
    assert failures == []


def _spec(steps: int) -> JobSpec:
    return JobSpec.model_validate(
        {"data": {"dataset": "builtin:digits"}, "max_attempts": 1000, "budget": {"outer_steps": steps}}
    )


def _wait(until: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _DEADLINE
    while not until():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.02)


def _all_ended(store: Store, count: int) -> bool:
    return store.jobs.counts()[JobStatus.SUCCEEDED] == count


def _check(store: Store, job_id: str, steps: int) -> None:
    """The history of a job, told by whoever survived, is that of one that nothing happened to."""
    job = store.jobs.get(job_id)
    assert (job.status, job.steps_done, job.result) == (JobStatus.SUCCEEDED, steps, {"steps": steps})
    events = store.jobs.events(job_id, after=0, limit=10_000)
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    points = list(store.points.iterate(job_id))
    assert [point.step for point in points] == list(range(steps))
    assert [point.body for point in points] == [value(job_id, step) for step in range(steps)]
    assert all(one.attempt <= next_.attempt for one, next_ in itertools.pairwise(points))
    told = [event.body.get("status") for event in events if event.kind == "status"]
    assert told.count("succeeded") == 1
    assert told[-1] == "succeeded"
    # What an attempt wrote lies between its beginning and the next one's: nothing came late.
    begun = 0
    for event in events:
        if event.kind == "status" and event.body["status"] == "running":
            begun += 1
        assert event.body["attempt"] == begun
    attempts = store.jobs.attempts(job_id)
    assert [attempt.outcome for attempt in attempts] == [
        *[AttemptOutcome.LOST] * (len(attempts) - 1),
        AttemptOutcome.SUCCEEDED,
    ]


def _kill_at_random(store: Store, start: Start, *, jobs: int, steps: int, kills: int) -> None:
    chance = random.Random(0)
    ids = [store.jobs.create(_spec(steps)).id for _ in range(jobs)]
    runners = [start(step_seconds=0.01) for _ in range(3)]
    for _ in range(kills):
        time.sleep(chance.uniform(0.02, 0.4))
        victim = chance.randrange(len(runners))
        runners[victim].kill()
        runners[victim].join()
        runners[victim] = start(step_seconds=0.01)
        if _all_ended(store, jobs):
            break
    _wait(lambda: _all_ended(store, jobs))
    for job_id in ids:
        _check(store, job_id, steps)
    assert sum(store.jobs.get(job_id).lost_attempts for job_id in ids) > 0


def test_runners_killed_at_any_moment_lose_no_step_and_repeat_none(
    store: Store, start: Start, reaped: list[str]
) -> None:
    _kill_at_random(store, start, jobs=8, steps=60, kills=25)
    assert reaped


@pytest.mark.slow
def test_runners_killed_a_hundred_times_lose_no_step_and_repeat_none(
    store: Store, start: Start, reaped: list[str]
) -> None:
    _kill_at_random(store, start, jobs=40, steps=100, kills=150)
    assert reaped


def test_a_runner_that_sleeps_past_its_lease_writes_nothing_when_it_wakes(
    store: Store, start: Start, reaped: list[str], database_url: str
) -> None:
    job = store.jobs.create(_spec(40))
    sleeper = start(step_seconds=0.03, ends_with_its_lease=True)
    _wait(lambda: store.jobs.get(job.id).steps_done >= 3)
    _stop_between_transactions(sleeper, database_url, job.id)
    _wait(lambda: job.id in reaped)
    start(step_seconds=0.001)
    _wait(lambda: store.jobs.get(job.id).status is JobStatus.SUCCEEDED)
    before = (store.jobs.get(job.id), store.jobs.events(job.id, after=0, limit=999), store.jobs.attempts(job.id))
    assert sleeper.pid is not None
    os.kill(sleeper.pid, signal.SIGCONT)
    sleeper.join(_DEADLINE)
    assert sleeper.exitcode == LEASE_LOST
    after = (store.jobs.get(job.id), store.jobs.events(job.id, after=0, limit=999), store.jobs.attempts(job.id))
    assert after == before
    _check(store, job.id, 40)


def _stop_between_transactions(process: ForkServerProcess, url: str, job_id: str) -> None:
    """Stop a process while it holds no lock; else nobody could write meanwhile, on SQLite to anything."""
    assert process.pid is not None
    probe = Database(url, pool_size=1, busy_seconds=0.1)
    row = select(jobs.c.id).where(jobs.c.id == job_id).with_for_update(skip_locked=True)
    while True:
        os.kill(process.pid, signal.SIGSTOP)
        with contextlib.suppress(StoreUnavailable), probe.write() as connection:
            if connection.scalar(row) is not None:
                break
        os.kill(process.pid, signal.SIGCONT)
    probe.close()


def test_a_cancel_is_heard_by_a_runner_and_by_the_reaper_of_a_dead_one(
    store: Store, start: Start, reaped: list[str]
) -> None:
    alive, dead = store.jobs.create(_spec(10_000)), store.jobs.create(_spec(10_000))
    runners = {}
    for job in (alive, dead):
        runners[job.id] = start(step_seconds=0.01)
        _wait(lambda job=job: store.jobs.get(job.id).steps_done > 0)
    runners[dead.id].kill()
    for job in (alive, dead):
        store.jobs.request_cancel(job.id)
    _wait(lambda: store.jobs.counts()[JobStatus.CANCELLED] == 2)
    outcomes = [store.jobs.attempts(job.id)[-1].outcome for job in (alive, dead)]
    assert outcomes == [AttemptOutcome.CANCELLED, AttemptOutcome.LOST]
