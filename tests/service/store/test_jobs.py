from datetime import timedelta, timezone

import pytest
from sqlalchemy import select, update

from service.errors import NotFound, StaleVersion, StateConflict
from service.records import (
    AttemptOutcome,
    FailureCode,
    FileRecord,
    JobStatus,
    ReasonCode,
    StoredAnswer,
    WorkerState,
)
from service.store import IdempotencyClaim, NewWorker, OutboxKind, Store
from service.tables import attempts, checkpoints, events, files, job_labels, jobs
from service.tables import points as point_rows
from tests.service.store.samples import LEASE, checkpoint, claimed, job_in, let_lease_run_out, points, spec


def test_a_created_job_is_queued_with_all_defaults_filled_in(store: Store) -> None:
    given = spec(name="digits", labels={"team": "vision"}, priority=3)
    job = store.jobs.create(given)
    assert job == store.jobs.get(job.id)
    assert job.id.startswith("job_")
    assert len(job.id) == len("job_") + 26
    assert (job.status, job.name, job.labels, job.priority) == (JobStatus.QUEUED, "digits", {"team": "vision"}, 3)
    assert (job.version, job.attempt, job.steps_done, job.steps_of) == (1, 0, 0, 100)
    assert job.spec == given.model_dump(mode="json")
    assert job.method == "implicit"
    assert job.created_at.utcoffset() == timedelta(0)
    assert (job.latest, job.result, job.failure, job.worker_id, job.started_at, job.ended_at) == (None,) * 6


def test_a_created_job_leaves_a_ring_and_an_event(store: Store) -> None:
    job = store.jobs.create(spec())
    assert [(entry.kind, entry.subject) for entry in store.maintenance.outbox_pending(10)] == [
        (OutboxKind.RING, job.id)
    ]
    (event,) = store.jobs.events(job.id, after=0, limit=10)
    assert (event.seq, event.kind, event.body["status"], event.body["attempt"]) == (1, "status", "queued", 0)


def test_ids_sort_by_the_time_of_creation(store: Store) -> None:
    ids = [store.jobs.create(spec()).id for _ in range(20)]
    assert ids == sorted(ids)


@pytest.mark.parametrize(
    "call",
    [
        lambda jobs: jobs.get("job_x"),
        lambda jobs: jobs.request_cancel("job_x"),
        lambda jobs: jobs.request_pause("job_x"),
        lambda jobs: jobs.request_resume("job_x"),
        lambda jobs: jobs.retry("job_x"),
        lambda jobs: jobs.update("job_x", version=1, name="n"),
        lambda jobs: jobs.delete("job_x"),
        lambda jobs: jobs.attempts("job_x"),
        lambda jobs: jobs.events("job_x", after=0, limit=1),
        lambda jobs: jobs.files("job_x"),
    ],
)
def test_what_does_not_exist_is_not_found(store: Store, call) -> None:
    with pytest.raises(NotFound):
        call(store.jobs)


_VERBS = {
    "request_cancel": {
        "queued": "cancelled",
        "running": "cancelling",
        "pausing": "cancelling",
        "paused": "cancelled",
        "cancelling": "cancelling",
        "cancelled": "cancelled",
    },
    "request_pause": {"queued": "paused", "running": "pausing", "pausing": "pausing", "paused": "paused"},
    "request_resume": {"paused": "queued", "pausing": "running", "queued": "queued", "running": "running"},
    "retry": {"failed": "queued", "cancelled": "queued", "queued": "queued", "running": "running"},
}


@pytest.mark.parametrize("verb", _VERBS)
@pytest.mark.parametrize("status", JobStatus)
def test_a_verb_leads_where_the_table_says_or_is_refused(store: Store, verb: str, status: JobStatus) -> None:
    job = job_in(store, status)
    before = store.jobs.events(job.id, after=0, limit=100)
    target = _VERBS[verb].get(status)
    if target is None:
        with pytest.raises(StateConflict) as refusal:
            getattr(store.jobs, verb)(job.id)
        assert refusal.value.current is status
        assert refusal.value.allowed == {JobStatus(each) for each in _VERBS[verb]}
        assert store.jobs.get(job.id) == job
        return
    changed = getattr(store.jobs, verb)(job.id)
    assert changed.status == target
    after = store.jobs.events(job.id, after=before[-1].seq, limit=100)
    if target == status:
        assert (changed.version, after) == (job.version, [])
    else:
        assert changed.version == job.version + 1
        assert [event.body["status"] for event in after] == [target]
    again = getattr(store.jobs, verb)(job.id)
    assert (again.status, again.version) == (changed.status, changed.version)


def test_ended_at_is_there_exactly_when_a_job_has_ended(store: Store) -> None:
    for status in JobStatus:
        job = job_in(store, status)
        assert (job.ended_at is not None) == status.is_final
        if status is JobStatus.QUEUED:
            store.jobs.request_cancel(job.id)


def test_a_retry_keeps_trajectory_and_checkpoint_and_forgets_the_failure(store: Store) -> None:
    claim = claimed(store)
    store.leases.record(claim.lease, points(0, 5), lease_seconds=LEASE)
    store.leases.save_checkpoint(claim.lease, checkpoint(4), lease_seconds=LEASE)
    store.leases.fail(claim.lease, FailureCode.DIVERGED, "the loss is NaN", retryable=True, log_tail="")
    failed = store.jobs.get(claim.lease.job_id)
    assert failed.failure is not None
    assert (failed.failure.code, failed.failure.attempt, failed.failure.retryable) == (FailureCode.DIVERGED, 1, True)
    again = store.jobs.retry(failed.id)
    assert (again.failure, again.ended_at, again.lost_attempts, again.steps_done) == (None, None, 0, 5)
    assert again.queued_at is not None
    assert failed.queued_at is not None
    assert again.queued_at > failed.queued_at
    second = store.leases.claim("wk_2", device="cpu", lease_seconds=LEASE)
    assert second is not None
    assert (second.lease.attempt, second.steps_done, second.checkpoints) == (2, 5, (checkpoint(4),))


def test_an_update_changes_what_it_names_and_needs_the_version_that_was_read(store: Store) -> None:
    job = store.jobs.create(spec(name="old", labels={"a": "1", "b": "2"}))
    changed = store.jobs.update(job.id, version=job.version, name="new", labels={"a": "3"}, priority=7)
    assert (changed.name, changed.labels, changed.priority, changed.version) == ("new", {"a": "3"}, 7, 2)
    assert [found.id for found in store.jobs.list(labels={"a": "3"}, limit=5)] == [job.id]
    assert store.jobs.list(labels={"b": "2"}, limit=5) == []
    with pytest.raises(StaleVersion):
        store.jobs.update(job.id, version=job.version, name="late")
    assert store.jobs.update(job.id, version=2, labels={}).labels == {}
    assert store.jobs.get(job.id).name == "new"


def test_a_list_is_walked_without_gap_or_repeat_even_when_moments_are_equal(store: Store) -> None:
    ids = [store.jobs.create(spec()).id for _ in range(9)]
    with store.database.write() as connection:
        moment = connection.scalar(select(jobs.c.created_at).where(jobs.c.id == ids[0]))
        connection.execute(update(jobs).where(jobs.c.id.in_(ids[:6])).values(created_at=moment))
    seen: list[str] = []
    before = None
    while page := store.jobs.list(limit=2, before=before):
        seen += [job.id for job in page]
        # A cursor in another time zone is the same moment.
        before = (page[-1].created_at.astimezone(timezone(timedelta(hours=5))), page[-1].id)
    assert seen == sorted(ids, reverse=True)


def test_a_list_can_be_narrowed_in_every_way_at_once(store: Store) -> None:
    first = store.jobs.create(spec(labels={"team": "vision", "run": "1"}))
    second = store.jobs.create(spec(labels={"team": "vision", "run": "2"}, method="hoag"))
    third = store.jobs.create(spec(labels={"team": "speech", "run": "1"}))
    store.jobs.request_cancel(third.id)

    def found(**filters) -> list[str]:
        return [job.id for job in store.jobs.list(limit=10, **filters)]

    assert found() == [third.id, second.id, first.id]
    assert found(labels={"team": "vision"}) == [second.id, first.id]
    assert found(labels={"team": "vision", "run": "1"}) == [first.id]
    assert found(labels={"team": "audio"}) == []
    assert found(method="hoag") == [second.id]
    assert found(statuses=[JobStatus.CANCELLED]) == [third.id]
    assert found(statuses=[JobStatus.CANCELLED, JobStatus.QUEUED], labels={"run": "1"}) == [third.id, first.id]
    assert found(created_after=first.created_at, statuses=[JobStatus.QUEUED], method="hoag") == [second.id]


def test_versions_are_of_those_jobs_that_exist(store: Store) -> None:
    first, second = store.jobs.create(spec()), store.jobs.create(spec())
    store.jobs.request_pause(second.id)
    assert store.jobs.versions([first.id, second.id, "job_x"]) == {first.id: 1, second.id: 2}
    assert store.jobs.versions([]) == {}


def test_counts_name_every_status(store: Store) -> None:
    for status in JobStatus:
        job_in(store, status)
        if status is JobStatus.QUEUED:
            # It would be claimed in place of the next sample.
            store.jobs.request_pause(store.jobs.list(limit=1)[0].id)
    counts = store.jobs.counts()
    assert set(counts) == set(JobStatus)
    assert counts[JobStatus.PAUSED] == 2
    assert counts[JobStatus.QUEUED] == 0
    assert sum(counts.values()) == 8


@pytest.mark.parametrize("status", [each for each in JobStatus if not each.is_final])
def test_only_an_ended_job_is_deleted(store: Store, status: JobStatus) -> None:
    job = job_in(store, status)
    with pytest.raises(StateConflict):
        store.jobs.delete(job.id)
    assert store.jobs.get(job.id) == job


def test_with_a_job_goes_all_that_belongs_to_it_and_its_files_are_not_forgotten(store: Store) -> None:
    claim = claimed(store, labels={"a": "b"})
    store.leases.record(claim.lease, points(0, 3), lease_seconds=LEASE, logs=["began"])
    store.leases.save_checkpoint(claim.lease, checkpoint(3), lease_seconds=LEASE)
    made = FileRecord(name="weights.safetensors", key="files/w", sha256="1" * 64, size_bytes=3)
    assert store.leases.succeed(claim.lease, result={}, files=[made], log_tail="") == ["checkpoints/3"]
    job_id = claim.lease.job_id
    assert store.jobs.files(job_id) == [made]
    assert store.jobs.delete(job_id) == ["files/w"]
    with pytest.raises(NotFound):
        store.jobs.get(job_id)
    with store.database.read() as connection:
        for table in (attempts, checkpoints, events, files, job_labels, point_rows):
            assert connection.execute(select(table)).all() == []
    kept = [entry.subject for entry in store.maintenance.outbox_pending(10) if entry.kind is OutboxKind.DELETE_FILE]
    assert kept == ["checkpoints/3", "files/w"]


def test_events_come_in_one_order_and_can_be_followed_without_loss(store: Store) -> None:
    claim = claimed(store)
    store.leases.record(claim.lease, points(0, 2), lease_seconds=LEASE, logs=["one", "two"])
    store.jobs.request_pause(claim.lease.job_id)
    store.leases.record(claim.lease, points(1, 4), lease_seconds=LEASE)
    store.leases.release(claim.lease, AttemptOutcome.PAUSED, log_tail="")
    everything = store.jobs.events(claim.lease.job_id, after=0, limit=100)
    assert [event.seq for event in everything] == list(range(1, 11))
    told = [event.body.get("status", event.body.get("step", event.body.get("text"))) for event in everything]
    assert told == ["queued", "running", 0, 1, "one", "two", "pausing", 2, 3, "paused"]
    assert everything[-1].body["reason"] == {"code": "paused_by_user", "detail": "waits until it is resumed"}
    assert set(everything[2].body) == {"step", "attempt", "at", "elapsed_s", "train_loss"}
    followed: list[object] = []
    after = 0
    while page := store.jobs.events(claim.lease.job_id, after=after, limit=3):
        followed += page
        after = page[-1].seq
    assert followed == everything


def test_the_reason_of_a_waiting_job_names_who_could_run_it(store: Store) -> None:
    any_job, gpu_job = store.jobs.create(spec()), store.jobs.create(spec(device="cuda"))

    def reason(job_id: str):
        why = store.jobs.get(job_id).status_reason
        assert why is not None
        assert {job.id: job.status_reason for job in store.jobs.list(limit=5)}[job_id] == why
        return why

    assert reason(any_job.id).code is ReasonCode.NO_WORKER_ONLINE
    store.workers.register(NewWorker("wk_1", "host", 1, "cpu", "a processor", "0.1.0"))
    assert reason(any_job.id).code is ReasonCode.WAITING_FOR_WORKER
    assert reason(any_job.id).detail == "1 of 1 workers idle: the job begins in a moment"
    assert reason(store.jobs.create(spec()).id).detail == "0 of 1 workers are busy"  # it is the third in the queue
    assert reason(gpu_job.id).code is ReasonCode.NO_WORKER_ONLINE
    assert "GPU" in reason(gpu_job.id).detail
    store.workers.register(NewWorker("wk_2", "host", 2, "cuda:0", "a GPU", "0.1.0"))
    store.workers.heartbeat("wk_2", state=WorkerState.BUSY, job_id=None)
    assert reason(gpu_job.id).code is ReasonCode.WAITING_FOR_GPU
    assert reason(gpu_job.id).detail == "1 of 1 workers with a GPU are busy"
    assert reason(any_job.id).detail == "1 of 2 workers idle: the job begins in a moment"
    store.workers.leave("wk_2")
    assert reason(gpu_job.id).code is ReasonCode.NO_WORKER_ONLINE


def test_queue_positions_follow_the_order_of_claiming(store: Store) -> None:
    low, first, second = (store.jobs.create(spec(priority=priority)) for priority in (-1, 0, 0))
    urgent = store.jobs.create(spec(priority=9))
    expected = {urgent.id: 1, first.id: 2, second.id: 3, low.id: 4}
    listed = {job.id: job.status_reason.queue_position for job in store.jobs.list(limit=9) if job.status_reason}
    alone = {job_id: store.jobs.get(job_id).status_reason.queue_position for job_id in expected}  # type: ignore[union-attr]
    assert listed == alone == expected
    order = [store.leases.claim("wk_1", device="cpu", lease_seconds=LEASE).lease.job_id for _ in expected]  # type: ignore[union-attr]
    assert order == list(expected)


def test_a_lost_job_says_how_long_it_waits(store: Store) -> None:
    claim = claimed(store)
    let_lease_run_out(store, claim.lease.job_id)
    assert store.leases.reap(lease_seconds=LEASE, backoff_seconds=1000.0) == [claim.lease.job_id]
    why = store.jobs.get(claim.lease.job_id).status_reason
    assert why is not None
    assert why.code is ReasonCode.BACKOFF
    assert why.queue_position == 1
    assert store.jobs.events(claim.lease.job_id, after=2, limit=5)[0].body["reason"]["code"] == "backoff"  # type: ignore[index, call-overload]


@pytest.mark.parametrize("status", JobStatus)
def test_the_standing_reason_follows_the_status(store: Store, status: JobStatus) -> None:
    expected = {
        JobStatus.QUEUED: ReasonCode.NO_WORKER_ONLINE,
        JobStatus.PAUSING: ReasonCode.PAUSE_REQUESTED,
        JobStatus.PAUSED: ReasonCode.PAUSED_BY_USER,
        JobStatus.CANCELLING: ReasonCode.CANCEL_REQUESTED,
        JobStatus.CANCELLED: ReasonCode.CANCELLED_BY_USER,
    }
    why = job_in(store, status).status_reason
    assert (None if why is None else why.code) == expected.get(status)


def test_a_key_without_an_answer_is_refused_before_anything_is_written(store: Store) -> None:
    with pytest.raises(ValueError, match="go together"):
        store.jobs.create(spec(), idempotency=IdempotencyClaim("scope", "key", "token"))
    with pytest.raises(ValueError, match="go together"):
        store.jobs.create(spec(), answer=lambda job: StoredAnswer(202, {}, job.id))
    assert store.jobs.list(limit=1) == []
