"""Many at once, in threads and processes: nobody gets what another has, and nobody hears of a lock."""

import multiprocessing
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pytest
from sqlalchemy import select, text

from service.errors import LeaseLost
from service.records import JobStatus, Lease
from service.store import Database, Store
from service.store.claiming import take_next
from service.store.reaping import take_silent
from service.store.recording import record
from service.tables import jobs
from tests.service.store.samples import LEASE, claimed, let_lease_run_out, points, spec


def _in_threads(calls: list[Callable[[], None]]) -> None:
    """Run all at once; raise what one of them raised."""
    failures: list[BaseException] = []

    def run(call: Callable[[], None]) -> None:
        try:
            call()
        except BaseException as error:  # noqa: BLE001  (raised again below)
            failures.append(error)

    threads = [threading.Thread(target=run, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


def _claim_all(url: str, name: str, answers: "multiprocessing.SimpleQueue[list[str]]") -> None:
    """Two claimers in one process; answers with the jobs they got."""
    database = Database(url)
    store = Store(database)
    got: list[str] = []

    def claim(worker_id: str) -> None:
        while taken := store.leases.claim(worker_id, device="cpu", lease_seconds=LEASE):
            got.append(taken.lease.job_id)

    _in_threads([partial(claim, f"{name}_{number}") for number in range(2)])
    database.close()
    answers.put(got)


def test_eight_claimers_share_all_jobs_and_none_twice(store: Store, database_url: str) -> None:
    ids = {store.jobs.create(spec()).id for _ in range(8 * 40)}
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.service.store.test_concurrency"])
    answers = context.SimpleQueue()
    processes = [context.Process(target=_claim_all, args=(database_url, f"wk_{n}", answers)) for n in range(4)]
    for process in processes:
        process.start()
    shares = [answers.get() for _ in processes]
    for process in processes:
        process.join()
    got = Counter(job_id for share in shares for job_id in share)
    assert set(got) == ids
    assert set(got.values()) == {1}
    assert store.jobs.counts()[JobStatus.RUNNING] == len(ids)
    assert all(len(store.jobs.attempts(job_id)) == 1 for job_id in list(ids)[:20])


def test_a_claimer_does_not_wait_for_a_job_that_another_is_just_taking(postgresql_database: Database) -> None:
    store = Store(postgresql_database)
    first, second = store.jobs.create(spec()), store.jobs.create(spec())
    with store.database.write() as connection:
        taken = take_next(connection, "wk_1", device="cpu", lease_seconds=LEASE)
        assert taken is not None
        assert taken.lease.job_id == first.id
        other = store.leases.claim("wk_2", device="cpu", lease_seconds=LEASE)
        assert other is not None
        assert other.lease.job_id == second.id


@dataclass
class Load:
    """What writers and readers met."""

    writes: int = 0
    reads: int = 0
    slowest_write: float = 0.0
    slowest_read: float = 0.0


def _bustle(url: str, seconds: float, answers: "multiprocessing.SimpleQueue[Load | str]") -> None:
    """Two writers and sixteen readers in one process."""
    database = Database(url, pool_size=18)
    store = Store(database)
    load = Load()
    end = time.monotonic() + seconds

    def timed(call: Callable[[], object]) -> float:
        begin = time.monotonic()
        call()
        return time.monotonic() - begin

    def write() -> None:
        while time.monotonic() < end:
            job_id = store.jobs.create(spec()).id
            claim = store.leases.claim("wk", device="cpu", lease_seconds=LEASE)
            if claim is None:
                continue
            for step in range(5):
                took = timed(partial(store.leases.record, claim.lease, points(step, step + 1), lease_seconds=LEASE))
                load.slowest_write = max(load.slowest_write, took)
            store.leases.succeed(claim.lease, result={}, files=[], log_tail="")
            store.jobs.get(job_id)
            load.writes += 1

    def read() -> None:
        while time.monotonic() < end:
            listed = store.jobs.list(limit=5)
            for job in listed:
                took = timed(partial(store.jobs.events, job.id, after=0, limit=10))
                load.slowest_read = max(load.slowest_read, took)
            load.reads += 1

    try:
        _in_threads([write] * 2 + [read] * 16)
    except BaseException as error:  # noqa: BLE001  (the test shows it)
        answers.put(repr(error))
    else:
        answers.put(load)
    finally:
        database.close()


def _bustle_in_two_processes(url: str, seconds: float) -> None:
    context = multiprocessing.get_context("forkserver")
    answers = context.SimpleQueue()
    processes = [context.Process(target=_bustle, args=(url, seconds, answers)) for _ in range(2)]
    for process in processes:
        process.start()
    loads = [answers.get() for _ in processes]
    for process in processes:
        process.join()
    for load in loads:
        assert isinstance(load, Load), load
        assert load.writes > 0
        assert load.reads > 0
        # Well below the 30 s after which a writer gives up: taking turns starves nobody.
        assert load.slowest_write < 10.0


def test_four_writers_and_thirty_two_readers_never_hear_of_a_lock(store: Store, database_url: str) -> None:
    _bustle_in_two_processes(database_url, 3.0)
    assert store.jobs.counts()[JobStatus.RUNNING] == 0


@pytest.mark.slow
def test_nor_do_they_in_a_minute(store: Store, database_url: str) -> None:
    _bustle_in_two_processes(database_url, 60.0)


def test_points_and_steering_at_once_leave_one_order_of_events(store: Store) -> None:
    lease = claimed(store).lease

    def record_all() -> None:
        for step in range(60):
            store.leases.record(lease, points(step, step + 1), lease_seconds=LEASE)

    def steer() -> None:
        for _ in range(20):
            store.jobs.request_pause(lease.job_id)
            store.jobs.request_resume(lease.job_id)

    def follow() -> None:
        after = 0
        seen: list[int] = []
        while len([1 for _ in seen]) < 2 + 60 + 40:
            page = store.jobs.events(lease.job_id, after=after, limit=7)
            seen += [event.seq for event in page]
            after = seen[-1]
        assert seen == list(range(1, 103))

    _in_threads([record_all, steer, follow, follow])


@pytest.fixture
def expired(store: Store) -> Lease:
    """A lease that has run out while its worker is alive."""
    lease = claimed(store).lease
    let_lease_run_out(store, lease.job_id)
    return lease


def test_a_writer_that_came_before_the_reaper_keeps_its_job(store: Store, expired: Lease) -> None:
    writing, reaped = threading.Event(), threading.Event()

    def write() -> None:
        with store.database.write() as connection:
            record(connection, expired, points(0, 1), lease_seconds=LEASE, logs=())
            writing.set()
            # On SQLite the reaper has to wait for the end of this.
            reaped.wait(0.2 if store.database.is_sqlite else 30.0)

    def reap() -> None:
        writing.wait()
        assert store.leases.reap(lease_seconds=LEASE, backoff_seconds=0.0) == []
        reaped.set()

    _in_threads([write, reap])
    assert reaped.is_set()
    assert store.leases.renew(expired, lease_seconds=LEASE) is JobStatus.RUNNING
    assert store.jobs.get(expired.job_id).steps_done == 1


def test_a_writer_that_came_after_the_reaper_has_lost_its_job(store: Store, expired: Lease) -> None:
    reaping, tried = threading.Event(), threading.Event()

    def reap() -> None:
        with store.database.write() as connection:
            assert take_silent(connection, backoff_seconds=0.0) == [expired.job_id]
            reaping.set()
            if store.database.is_sqlite:
                assert not tried.wait(0.2)
            else:
                _until_somebody_waits_for_a_lock(store)

    def write() -> None:
        reaping.wait()
        with pytest.raises(LeaseLost):
            store.leases.record(expired, points(0, 1), lease_seconds=LEASE)
        tried.set()

    _in_threads([reap, write])
    job = store.jobs.get(expired.job_id)
    assert (job.status, job.steps_done, job.lost_attempts) == (JobStatus.QUEUED, 0, 1)


def _until_somebody_waits_for_a_lock(store: Store) -> None:
    waiting = text("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = 'work'")
    deadline = time.monotonic() + 30
    while True:
        with store.database.read() as connection:
            if connection.scalar(waiting):
                return
        assert time.monotonic() < deadline


def test_a_worker_stopped_within_a_transaction_does_not_stop_the_reaper(
    postgresql_database: Database,
) -> None:
    store = Store(postgresql_database)
    frozen = claimed(store).lease
    dead = claimed(store).lease
    for lease in (frozen, dead):
        let_lease_run_out(store, lease.job_id)
    with store.database.write() as connection:
        connection.execute(select(jobs.c.id).where(jobs.c.id == frozen.job_id).with_for_update())
        assert store.leases.reap(lease_seconds=LEASE, backoff_seconds=0.0) == [dead.job_id]
        store.leases.extend_all(LEASE)
    let_lease_run_out(store, frozen.job_id)
    assert store.leases.reap(lease_seconds=LEASE, backoff_seconds=0.0) == [frozen.job_id]


def test_of_two_clients_that_update_the_same_version_one_is_told_that_it_is_stale(store: Store) -> None:
    job = store.jobs.create(spec())
    refused: list[str] = []
    start = threading.Barrier(4)

    def update(name: str) -> None:
        start.wait()
        try:
            store.jobs.update(job.id, version=job.version, name=name)
        except Exception as error:  # noqa: BLE001  (which ones come is the question)
            refused.append(type(error).__name__)

    _in_threads([partial(update, name) for name in "abcd"])
    assert refused == ["StaleVersion"] * 3
    assert store.jobs.get(job.id).version == 2
