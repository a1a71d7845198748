import threading

import pytest
from sqlalchemy import func, select, update

from service.errors import NotFound
from service.records import FileRecord, JobStatus, StoredAnswer
from service.store import IdempotencyClaim, OutboxKind, Store
from service.store.clock import database_now
from service.tables import idempotency_keys, jobs, leaders, sweeps
from tests.service.store.samples import LEASE, claimed, job_in, let_lease_run_out, points, spec


def test_one_leads_until_its_time_runs_out(store: Store) -> None:
    lead = store.maintenance.lead
    assert lead("sweep", "a", 60.0)
    assert not lead("sweep", "b", 60.0)
    assert lead("sweep", "a", 60.0)
    assert lead("prune", "b", 60.0)
    with store.database.write() as connection:
        connection.execute(update(leaders).values(expires_at=database_now(-0.01)))
    assert lead("sweep", "b", 60.0)
    assert not lead("sweep", "a", 60.0)
    store.maintenance.resign("sweep", "a")
    assert not lead("sweep", "a", 60.0)
    store.maintenance.resign("sweep", "b")
    assert lead("sweep", "a", 60.0)


def test_of_many_who_want_to_lead_one_does(store: Store) -> None:
    led: list[bool] = []
    start = threading.Barrier(8)

    def run(holder: str) -> None:
        start.wait()
        led.append(store.maintenance.lead("sweep", holder, 60.0))

    threads = [threading.Thread(target=run, args=(str(number),)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(led) == [False] * 7 + [True]


def test_what_is_done_leaves_the_outbox(store: Store) -> None:
    ids = [store.jobs.create(spec()).id for _ in range(3)]
    pending = store.maintenance.outbox_pending(2)
    assert [(entry.kind, entry.subject) for entry in pending] == [(OutboxKind.RING, job_id) for job_id in ids[:2]]
    store.maintenance.outbox_done([entry.id for entry in pending])
    store.maintenance.outbox_done([entry.id for entry in pending])
    store.maintenance.outbox_done([])
    assert [entry.subject for entry in store.maintenance.outbox_pending(9)] == ids[2:]


def test_the_time_since_a_sweep_is_the_databases(store: Store) -> None:
    assert store.maintenance.last_sweep() is None
    store.maintenance.mark_sweep()
    first = store.maintenance.last_sweep()
    assert first is not None
    assert 0 <= first < 30
    with store.database.write() as connection:
        connection.execute(update(sweeps).values(at=database_now(-90.0)))
    assert store.maintenance.last_sweep() == pytest.approx(90, abs=10)
    # A clock that was set back does not make the past negative.
    with store.database.write() as connection:
        connection.execute(update(sweeps).values(at=database_now(3600.0)))
    assert store.maintenance.last_sweep() == 0
    store.maintenance.mark_sweep()
    assert store.maintenance.last_sweep() == pytest.approx(0, abs=10)


def test_the_depth_counts_jobs_that_could_be_claimed_now(store: Store) -> None:
    lease = claimed(store).lease
    assert store.maintenance.queued_depth() == 0
    let_lease_run_out(store, lease.job_id)
    store.leases.reap(lease_seconds=LEASE, backoff_seconds=1000.0)
    assert store.maintenance.queued_depth() == 0
    store.jobs.create(spec())
    assert store.maintenance.queued_depth() == 1


def test_pruning_takes_only_what_ended_long_ago(store: Store) -> None:
    lease = claimed(store).lease
    store.leases.record(lease, points(0, 3), lease_seconds=LEASE)
    store.leases.succeed(lease, result={}, files=[FileRecord("w", "files/w", "0" * 64, 1)], log_tail="")
    recent = job_in(store, JobStatus.FAILED)
    alive = job_in(store, JobStatus.RUNNING)
    with store.database.write() as connection:
        connection.execute(update(jobs).where(jobs.c.id == lease.job_id).values(ended_at=database_now(-86_400.0 * 31)))
        connection.execute(update(jobs).where(jobs.c.id == alive.id).values(created_at=database_now(-86_400.0 * 99)))
    assert store.maintenance.prune(retention_days=None, idempotency_hours=24.0) == []
    assert store.maintenance.prune(retention_days=32.0, idempotency_hours=24.0) == []
    assert store.maintenance.prune(retention_days=30.0, idempotency_hours=24.0) == ["files/w"]
    with pytest.raises(NotFound):
        store.jobs.get(lease.job_id)
    assert {job.id for job in store.jobs.list(limit=9)} == {recent.id, alive.id}
    assert "files/w" in [entry.subject for entry in store.maintenance.outbox_pending(99)]


def test_pruning_forgets_old_answers_but_not_requests_under_way(store: Store) -> None:
    for key in ("old", "new", "busy"):
        claim = store.idempotency.begin("key_1", key, "f")
        assert isinstance(claim, IdempotencyClaim)
        if key != "busy":
            store.idempotency.finish(claim, StoredAnswer(200, {}, ""))
    with store.database.write() as connection:
        old = idempotency_keys.c.key != "new"
        connection.execute(update(idempotency_keys).where(old).values(created_at=database_now(-3600.0 * 25)))
    store.maintenance.prune(retention_days=None, idempotency_hours=24.0)
    with store.database.read() as connection:
        assert set(connection.scalars(select(idempotency_keys.c.key))) == {"new", "busy"}
        assert connection.scalar(select(func.count()).select_from(idempotency_keys)) == 2
