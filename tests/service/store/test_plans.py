"""Queries that run often read no more rows than they must: seen in the plans of both databases."""

from datetime import UTC, datetime

import pytest
from sqlalchemy import event, text
from sqlalchemy.engine import Connection

from service.records import JobStatus
from service.store import Database, Store
from tests.service.store.samples import LEASE, points, spec

_LATER = datetime(2100, 1, 1, tzinfo=UTC)


@pytest.fixture
def crowded(database: Database) -> Store:
    """A store with some jobs, and a database that knows how many there are."""
    store = Store(database)
    for number in range(60):
        store.jobs.create(spec(labels={"number": str(number % 3)}))
    for _ in range(30):
        claim = store.leases.claim("wk_1", device="cpu", lease_seconds=LEASE)
        assert claim is not None
        store.leases.record(claim.lease, points(0, 5), lease_seconds=LEASE)
    with database.write() as connection:
        connection.execute(text("ANALYZE"))
    # SQLite reads statistics when it opens a database: connections from before plan by those of an earlier test.
    database.engine.dispose()
    return store


def _plans(store: Store, call) -> list[str]:
    """The plans of all statements that `call` runs."""
    found: list[str] = []

    def explain(connection: Connection, cursor: object, statement: str, parameters: object, *_: object) -> None:
        if not statement.startswith(("SELECT", "UPDATE")):
            return
        raw = connection.connection.driver_connection
        assert raw is not None
        if store.database.is_sqlite:
            rows = raw.execute(f"EXPLAIN QUERY PLAN {statement}", parameters).fetchall()
            found.append("\n".join(row[3] for row in rows))
        else:
            # On tables as small as these a scan is cheapest: ask whether an index could serve at all.
            raw.execute("SET LOCAL enable_seqscan = off")
            raw.execute("SET LOCAL enable_bitmapscan = off")
            rows = raw.execute(f"EXPLAIN {statement}", parameters).fetchall()
            found.append("\n".join(row[0] for row in rows))

    event.listen(store.database.engine, "before_cursor_execute", explain)
    try:
        call(store)
    finally:
        event.remove(store.database.engine, "before_cursor_execute", explain)
    assert found
    return found


def _uses(plan: str, index: str) -> bool:
    return f"USING INDEX {index}" in plan or f"USING COVERING INDEX {index}" in plan or f"using {index}" in plan


@pytest.mark.parametrize(
    ("filters", "index"),
    [
        ({}, "ix_jobs_created_at"),
        ({"before": (_LATER, "job_x")}, "ix_jobs_created_at"),
        ({"statuses": [JobStatus.RUNNING]}, "ix_jobs_status"),
        ({"method": "implicit"}, "ix_jobs_method"),
        ({"method": "implicit", "before": (_LATER, "job_x")}, "ix_jobs_method"),
    ],
)
def test_a_list_walks_an_index_and_sorts_nothing(crowded: Store, filters: dict[str, object], index: str) -> None:
    plan = _plans(crowded, lambda store: store.jobs.list(limit=5, **filters))[0]
    assert _uses(plan, index), plan
    assert "TEMP B-TREE" not in plan, plan
    assert "Sort" not in plan, plan


def test_jobs_with_a_label_are_found_by_an_index(crowded: Store) -> None:
    plan = _plans(crowded, lambda store: store.jobs.list(limit=5, labels={"number": "1"}))[0]
    assert "SCAN job_labels" not in plan
    assert "Seq Scan" not in plan


@pytest.mark.parametrize(("device", "index"), [("cpu", "ix_jobs_queue"), ("cuda:0", "ix_jobs_gpu_queue")])
def test_the_next_job_comes_from_the_index_of_the_queue(crowded: Store, device: str, index: str) -> None:
    chosen = _plans(crowded, lambda store: store.leases.claim("wk_1", device=device, lease_seconds=LEASE))
    for plan in chosen[:2] if crowded.database.is_sqlite else chosen[:1]:
        assert _uses(plan, index), plan
        assert "TEMP B-TREE" not in plan, plan
        assert "Sort" not in plan, plan


def test_the_reaper_looks_at_held_jobs_only(crowded: Store) -> None:
    plans = _plans(crowded, lambda store: store.leases.reap(lease_seconds=LEASE, backoff_seconds=1.0))
    assert any(_uses(plan, "ix_jobs_held") for plan in plans), plans


def test_a_trajectory_and_events_are_read_in_the_order_in_which_they_lie(crowded: Store) -> None:
    job_id = crowded.jobs.list(limit=1, statuses=[JobStatus.RUNNING])[0].id
    for call in (
        lambda store: store.points.page(job_id, after=2, limit=5),
        lambda store: store.jobs.events(job_id, after=2, limit=5),
    ):
        plan = _plans(crowded, call)[0]
        assert "SCAN points" not in plan, plan
        assert "SCAN events" not in plan, plan
        assert "Seq Scan" not in plan, plan


def test_versions_of_many_jobs_are_one_query(crowded: Store) -> None:
    ids = [job.id for job in crowded.jobs.list(limit=50)]
    assert len(_plans(crowded, lambda store: store.jobs.versions(ids))) == 1
