import math
from collections.abc import Callable

import pytest
from sqlalchemy import select, update

from service.errors import LeaseLost
from service.records import (
    AttemptOutcome,
    Checkpoint,
    FailureCode,
    FileRecord,
    JobStatus,
    Lease,
)
from service.store import NewPoint, NewWorker, OutboxKind, Store
from service.store.clock import database_now
from service.tables import attempts, jobs, sweeps
from tests.service.store.samples import LEASE, checkpoint, claimed, job_in, let_lease_run_out, points, spec


def test_nothing_is_claimed_when_nothing_waits(store: Store) -> None:
    assert store.leases.claim("wk_1", device="cpu", lease_seconds=LEASE) is None


def test_a_claim_begins_an_attempt(store: Store) -> None:
    store.workers.register(NewWorker("wk_1", "host-a", 7, "cpu", "a processor", "0.1.0"))
    job = store.jobs.create(spec())
    claim = store.leases.claim("wk_1", device="cpu", lease_seconds=LEASE)
    assert claim is not None
    assert (claim.lease, claim.spec) == (Lease(job.id, 1), job.spec)
    assert (claim.checkpoints, claim.steps_done, claim.run_seconds) == ((), 0, 0.0)
    running = store.jobs.get(job.id)
    assert (running.status, running.attempt, running.worker_id) == (JobStatus.RUNNING, 1, "wk_1")
    assert running.started_at is not None
    (attempt,) = store.jobs.attempts(job.id)
    assert (attempt.number, attempt.worker_id, attempt.host, attempt.device) == (1, "wk_1", "host-a", "cpu")
    assert (attempt.steps_from, attempt.ended_at, attempt.outcome, attempt.failure) == (0, None, None, None)


def test_the_highest_priority_then_the_longest_waiting_is_claimed(store: Store) -> None:
    made = [store.jobs.create(spec(priority=priority)).id for priority in (0, 5, 0, -3, 5)]
    taken = [store.leases.claim("wk_1", device="cpu", lease_seconds=LEASE) for _ in made]
    assert [claim.lease.job_id for claim in taken if claim] == [made[place] for place in (1, 4, 0, 2, 3)]


def test_a_worker_without_a_gpu_leaves_jobs_that_need_one(store: Store) -> None:
    store.jobs.create(spec(device="cuda", priority=9))
    free, bound = store.jobs.create(spec(device="auto")), store.jobs.create(spec(device="cpu"))
    taken = [store.leases.claim("wk_1", device="cpu", lease_seconds=LEASE) for _ in range(3)]
    assert [claim.lease.job_id if claim else None for claim in taken] == [free.id, bound.id, None]


def test_a_worker_with_a_gpu_prefers_jobs_that_need_it_but_priority_goes_first(store: Store) -> None:
    bound, free, needs = (store.jobs.create(spec(device=device)).id for device in ("cpu", "auto", "cuda"))
    urgent = store.jobs.create(spec(device="cpu", priority=1)).id
    taken = [store.leases.claim("wk_1", device="cuda:0", lease_seconds=LEASE) for _ in range(4)]
    assert [claim.lease.job_id for claim in taken if claim] == [urgent, needs, free, bound]


def test_a_paused_or_cancelled_job_is_not_claimed(store: Store) -> None:
    store.jobs.request_pause(store.jobs.create(spec()).id)
    store.jobs.request_cancel(store.jobs.create(spec()).id)
    assert store.leases.claim("wk_1", device="cpu", lease_seconds=LEASE) is None


def test_renewing_tells_what_the_client_wants(store: Store) -> None:
    lease = claimed(store).lease
    assert store.leases.renew(lease, lease_seconds=LEASE) is JobStatus.RUNNING
    store.jobs.request_pause(lease.job_id)
    assert store.leases.renew(lease, lease_seconds=LEASE) is JobStatus.PAUSING
    store.jobs.request_resume(lease.job_id)
    assert store.leases.record(lease, points(0, 1), lease_seconds=LEASE) is JobStatus.RUNNING
    store.jobs.request_cancel(lease.job_id)
    assert store.leases.record(lease, points(1, 2), lease_seconds=LEASE) is JobStatus.CANCELLING


def test_a_batch_of_points_is_one_change_and_the_last_is_the_latest(store: Store) -> None:
    lease = claimed(store).lease
    before = store.jobs.get(lease.job_id)
    store.leases.record(lease, points(0, 4), lease_seconds=LEASE)
    after = store.jobs.get(lease.job_id)
    assert (after.version, after.steps_done) == (before.version + 1, 4)
    assert after.latest is not None
    assert after.latest | {"at": ""} == {"step": 3, "attempt": 1, "at": "", "elapsed_s": 0.375, "train_loss": 0.25}
    stored = store.points.page(lease.job_id, after=None, limit=10)
    assert [(point.step, point.attempt, point.elapsed_s) for point in stored] == [(n, 1, n / 8) for n in range(4)]
    # The latest point on the job is the last point of the trajectory, to the microsecond.
    assert after.latest["at"] == stored[-1].at.isoformat().replace("+00:00", "Z")


def test_points_that_are_there_already_are_passed_over(store: Store) -> None:
    lease = claimed(store).lease
    store.leases.record(lease, points(0, 4), lease_seconds=LEASE)
    before = store.jobs.get(lease.job_id)
    store.leases.record(lease, [NewPoint(step, 9.0, {"train_loss": 9.0}) for step in (1, 2, 3)], lease_seconds=LEASE)
    assert store.jobs.get(lease.job_id) == before
    store.leases.record(lease, points(2, 6), lease_seconds=LEASE)
    assert store.points.page(lease.job_id, after=None, limit=9)[3].body == {"train_loss": 0.25}
    events = store.jobs.events(lease.job_id, after=2, limit=99)
    assert [(event.seq, event.body["step"]) for event in events] == [(step + 3, step) for step in range(6)]


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (points(5, 6), "begin with step 5, but 2 are recorded"),
        ([*points(2, 4), *points(5, 6)], "step 5 came where step 4"),
        ([*points(2, 3), *points(2, 3)], "step 2 came where step 3"),
        ([NewPoint(-1, 0.0, {})], "step -1"),
        ([NewPoint(2, math.nan, {})], "must be finite"),
        ([NewPoint(2, math.inf, {})], "must be finite"),
        ([NewPoint(2, 0.0, {"train_loss": math.nan})], "[Oo]ut of range float"),
        ([NewPoint(2, 0.0, {"inner": {"residual": math.inf}})], "[Oo]ut of range float"),
    ],
)
def test_gaps_and_numbers_that_are_none_are_refused_and_nothing_is_written(
    store: Store, batch: list[NewPoint], message: str
) -> None:
    lease = claimed(store).lease
    store.leases.record(lease, points(0, 2), lease_seconds=LEASE)
    before = store.jobs.get(lease.job_id)
    with pytest.raises(ValueError, match=message):
        store.leases.record(lease, batch, lease_seconds=LEASE)
    assert store.jobs.get(lease.job_id) == before
    assert len(store.points.page(lease.job_id, after=None, limit=9)) == 2
    store.leases.record(lease, points(2, 3), lease_seconds=LEASE)


def test_words_for_numbers_and_odd_text_come_back_as_they_were(store: Store) -> None:
    lease = claimed(store).lease
    body = {"train_loss": "NaN", "valid_loss": "-Infinity", "hyperparameters": {"λ": 1e-300, "β": 0.1 + 0.2}}
    store.leases.record(lease, [NewPoint(0, 0.0, body)], lease_seconds=LEASE, logs=["a\x00b \ud800 ∇"])  # type: ignore[dict-item]
    assert store.points.page(lease.job_id, after=None, limit=1)[0].body == body
    (line,) = (event for event in store.jobs.events(lease.job_id, after=0, limit=9) if event.kind == "log")
    assert line.body["text"] == "a\ufffdb ? ∇"
    store.leases.fail(lease, FailureCode.INTERNAL, "x\x00", retryable=True, log_tail="tail\x00\udfff")
    assert store.jobs.attempts(lease.job_id)[0].log_tail == "tail\ufffd?"


def test_lines_of_the_log_alone_are_a_change_and_an_empty_batch_is_none(store: Store) -> None:
    lease = claimed(store).lease
    before = store.jobs.get(lease.job_id)
    store.leases.record(lease, [], lease_seconds=LEASE)
    assert store.jobs.get(lease.job_id) == before
    store.leases.record(lease, [], lease_seconds=LEASE, logs=["one"])
    assert store.jobs.get(lease.job_id).version == before.version + 1


@pytest.mark.parametrize("write", ["renew", "record", "checkpoint"])
def test_every_write_renews_the_lease(store: Store, write: str) -> None:
    lease = claimed(store).lease
    store.leases.record(lease, points(0, 1), lease_seconds=LEASE)
    let_lease_run_out(store, lease.job_id)
    match write:
        case "renew":
            store.leases.renew(lease, lease_seconds=LEASE)
        case "record":
            store.leases.record(lease, points(1, 2), lease_seconds=LEASE)
        case _:
            store.leases.save_checkpoint(lease, checkpoint(1), lease_seconds=LEASE)
    assert store.leases.reap(lease_seconds=LEASE, backoff_seconds=0.0) == []
    assert store.jobs.get(lease.job_id).status is JobStatus.RUNNING


_WRITES: dict[str, Callable[[Store, Lease], object]] = {
    "renew": lambda store, lease: store.leases.renew(lease, lease_seconds=LEASE),
    "record": lambda store, lease: store.leases.record(lease, points(0, 9), lease_seconds=LEASE),
    "record a gap": lambda store, lease: store.leases.record(lease, points(90, 91), lease_seconds=LEASE),
    "log": lambda store, lease: store.leases.record(lease, [], lease_seconds=LEASE, logs=["late"]),
    "save_checkpoint": lambda store, lease: store.leases.save_checkpoint(lease, checkpoint(0), lease_seconds=LEASE),
    "succeed": lambda store, lease: store.leases.succeed(lease, result={}, files=[], log_tail="late"),
    "fail": lambda store, lease: store.leases.fail(
        lease, FailureCode.INTERNAL, "late", retryable=True, log_tail="late"
    ),
    "release": lambda store, lease: store.leases.release(lease, AttemptOutcome.DRAINED, log_tail="late"),
    "lose": lambda store, lease: store.leases.lose(lease, "late", backoff_seconds=1.0, log_tail="late"),
}


@pytest.mark.parametrize("write", _WRITES)
def test_an_attempt_that_was_superseded_writes_nothing(store: Store, write: str) -> None:
    old = claimed(store).lease
    let_lease_run_out(store, old.job_id)
    store.leases.reap(lease_seconds=LEASE, backoff_seconds=0.0)
    new = store.leases.claim("wk_2", device="cpu", lease_seconds=LEASE)
    assert new is not None
    assert new.lease == Lease(old.job_id, 2)
    before = (
        store.jobs.get(old.job_id),
        store.jobs.events(old.job_id, after=0, limit=99),
        store.jobs.attempts(old.job_id),
    )
    with pytest.raises(LeaseLost):
        _WRITES[write](store, old)
    after = (
        store.jobs.get(old.job_id),
        store.jobs.events(old.job_id, after=0, limit=99),
        store.jobs.attempts(old.job_id),
    )
    assert after == before
    assert _WRITES["renew"](store, new.lease) is JobStatus.RUNNING


@pytest.mark.parametrize("write", _WRITES)
@pytest.mark.parametrize("status", [each for each in JobStatus if not each.is_held])
def test_nobody_writes_to_a_job_that_is_not_held(store: Store, write: str, status: JobStatus) -> None:
    job = job_in(store, status)
    with pytest.raises(LeaseLost):
        _WRITES[write](store, Lease(job.id, job.attempt))
    assert store.jobs.get(job.id) == job


def test_the_last_two_checkpoints_are_kept_and_the_others_are_not_forgotten(store: Store) -> None:
    lease = claimed(store).lease
    store.leases.record(lease, points(0, 40), lease_seconds=LEASE)
    gone = [store.leases.save_checkpoint(lease, checkpoint(step), lease_seconds=LEASE) for step in (10, 20, 30, 40)]
    assert gone == [[], [], ["checkpoints/10"], ["checkpoints/20"]]
    pending = [entry for entry in store.maintenance.outbox_pending(99) if entry.kind is OutboxKind.DELETE_FILE]
    assert [entry.subject for entry in pending] == ["checkpoints/10", "checkpoints/20"]
    store.leases.release(lease, AttemptOutcome.DRAINED, log_tail="")
    claim = store.leases.claim("wk_2", device="cpu", lease_seconds=LEASE)
    assert claim is not None
    assert claim.checkpoints == (checkpoint(40), checkpoint(30))
    # The first was damaged: the second attempt went on from 30, and its own come before those of the first.
    store.leases.save_checkpoint(claim.lease, Checkpoint("again/35", "1" * 64, 35), lease_seconds=LEASE)
    store.leases.release(claim.lease, AttemptOutcome.DRAINED, log_tail="")
    third = store.leases.claim("wk_3", device="cpu", lease_seconds=LEASE)
    assert third is not None
    assert [each.key for each in third.checkpoints] == ["again/35", "checkpoints/40"]


def test_the_same_checkpoint_again_is_one_checkpoint(store: Store) -> None:
    lease = claimed(store).lease
    store.leases.record(lease, points(0, 4), lease_seconds=LEASE)
    assert store.leases.save_checkpoint(lease, checkpoint(4), lease_seconds=LEASE) == []
    assert store.leases.save_checkpoint(lease, checkpoint(4), lease_seconds=LEASE) == []
    other = Checkpoint("other/4", "1" * 64, 4)
    assert store.leases.save_checkpoint(lease, other, lease_seconds=LEASE) == ["checkpoints/4"]


def test_a_checkpoint_ahead_of_the_points_is_refused(store: Store) -> None:
    lease = claimed(store).lease
    store.leases.record(lease, points(0, 4), lease_seconds=LEASE)
    with pytest.raises(ValueError, match="of step 5, but 4 points are recorded"):
        store.leases.save_checkpoint(lease, checkpoint(5), lease_seconds=LEASE)


def test_a_success_keeps_result_and_files_and_drops_checkpoints(store: Store) -> None:
    lease = claimed(store).lease
    store.leases.record(lease, points(0, 2), lease_seconds=LEASE)
    store.leases.save_checkpoint(lease, checkpoint(2), lease_seconds=LEASE)
    made = [FileRecord(name, f"files/{name}", "2" * 64, 2**40) for name in ("a.safetensors", "b.json")]
    result = {"metrics": {"test": {"accuracy": 0.97, "loss": "NaN"}}}
    assert store.leases.succeed(lease, result=result, files=made, log_tail="done") == ["checkpoints/2"]  # type: ignore[arg-type]
    job = store.jobs.get(lease.job_id)
    assert (job.status, job.result, job.worker_id) == (JobStatus.SUCCEEDED, result, None)
    assert job.ended_at is not None
    assert job.run_seconds > 0
    assert store.jobs.files(lease.job_id) == made
    (attempt,) = store.jobs.attempts(lease.job_id)
    assert (attempt.outcome, attempt.log_tail) == (AttemptOutcome.SUCCEEDED, "done")
    assert attempt.ended_at is not None


@pytest.mark.parametrize(
    ("wish", "status"),
    [
        (None, JobStatus.SUCCEEDED),
        ("request_pause", JobStatus.SUCCEEDED),
        ("request_cancel", JobStatus.SUCCEEDED),
    ],
)
def test_a_success_that_was_reached_counts_whatever_was_asked_for(
    store: Store, wish: str | None, status: JobStatus
) -> None:
    lease = claimed(store).lease
    if wish:
        getattr(store.jobs, wish)(lease.job_id)
    store.leases.succeed(lease, result={}, files=[], log_tail="")
    assert store.jobs.get(lease.job_id).status is status


@pytest.mark.parametrize(
    ("wish", "status"),
    [
        (None, JobStatus.FAILED),
        ("request_pause", JobStatus.FAILED),
        ("request_cancel", JobStatus.CANCELLED),
    ],
)
def test_a_failure_ends_the_job_as_failed_unless_it_was_cancelled(
    store: Store, wish: str | None, status: JobStatus
) -> None:
    lease = claimed(store).lease
    if wish:
        getattr(store.jobs, wish)(lease.job_id)
    told = store.leases.fail(lease, FailureCode.BAD_DATA, "no such column", retryable=False, log_tail="trace")
    job = store.jobs.get(lease.job_id)
    assert told is job.status is status
    (attempt,) = store.jobs.attempts(lease.job_id)
    assert attempt.failure is not None
    assert (attempt.failure.code, attempt.failure.detail) == (FailureCode.BAD_DATA, "no such column")
    if status is JobStatus.FAILED:
        assert job.failure == attempt.failure
        assert store.jobs.events(job.id, after=2, limit=9)[-1].body["failure"] == {
            "code": "bad_data",
            "detail": "no such column",
            "attempt": 1,
            "retryable": False,
        }
    else:
        assert job.failure is None


@pytest.mark.parametrize("outcome", [AttemptOutcome.DRAINED, AttemptOutcome.PAUSED, AttemptOutcome.CANCELLED])
@pytest.mark.parametrize(
    ("wish", "status", "told"),
    [
        (None, JobStatus.QUEUED, AttemptOutcome.DRAINED),
        ("request_pause", JobStatus.PAUSED, AttemptOutcome.PAUSED),
        ("request_cancel", JobStatus.CANCELLED, AttemptOutcome.CANCELLED),
    ],
)
def test_a_released_job_goes_where_its_status_says(
    store: Store, outcome: AttemptOutcome, wish: str | None, status: JobStatus, told: AttemptOutcome
) -> None:
    lease = claimed(store).lease
    if wish:
        getattr(store.jobs, wish)(lease.job_id)
    assert store.leases.release(lease, outcome, log_tail="bye") is status
    job = store.jobs.get(lease.job_id)
    assert (job.status, job.lost_attempts, job.worker_id) == (status, 0, None)
    assert store.jobs.attempts(lease.job_id)[0].outcome is told


@pytest.mark.parametrize("outcome", [AttemptOutcome.SUCCEEDED, AttemptOutcome.FAILED, AttemptOutcome.LOST])
def test_only_a_good_end_is_a_release(store: Store, outcome: AttemptOutcome) -> None:
    lease = claimed(store).lease
    with pytest.raises(ValueError, match="drained, paused or cancelled"):
        store.leases.release(lease, outcome, log_tail="")


def test_a_drained_job_keeps_its_place_in_the_queue(store: Store) -> None:
    lease = claimed(store).lease
    store.jobs.create(spec())
    store.leases.release(lease, AttemptOutcome.DRAINED, log_tail="")
    again = store.leases.claim("wk_2", device="cpu", lease_seconds=LEASE)
    assert again is not None
    assert again.lease == Lease(lease.job_id, 2)


@pytest.mark.parametrize("way", ["lose", "reap"])
def test_losses_wait_longer_each_time_until_the_job_fails(store: Store, way: str) -> None:
    job_id = store.jobs.create(spec(max_attempts=3)).id
    waits = []
    for _ in range(3):
        with store.database.write() as connection:
            connection.execute(update(jobs).values(not_before=None))
        claim = store.leases.claim("wk_1", device="cpu", lease_seconds=LEASE)
        assert claim is not None
        if way == "lose":
            told = store.leases.lose(
                claim.lease,
                "killed by signal 9",
                backoff_seconds=100.0,
                failure_code=FailureCode.OUT_OF_MEMORY,
                log_tail="tail",
            )
            assert told is store.jobs.get(job_id).status
        else:
            let_lease_run_out(store, job_id)
            assert store.leases.reap(lease_seconds=LEASE, backoff_seconds=100.0) == [job_id]
            assert store.leases.reap(lease_seconds=LEASE, backoff_seconds=100.0) == []
        if store.jobs.get(job_id).status is JobStatus.QUEUED:
            assert store.leases.claim("wk_1", device="cpu", lease_seconds=LEASE) is None
            with store.database.read() as connection:
                row = connection.execute(select(jobs.c.not_before, database_now().label("now"))).one()
                waits.append((row.not_before - row.now).total_seconds())
    assert waits == [pytest.approx(100, abs=10), pytest.approx(200, abs=10)]
    job = store.jobs.get(job_id)
    code = FailureCode.OUT_OF_MEMORY if way == "lose" else FailureCode.WORKER_LOST
    assert (job.status, job.lost_attempts) == (JobStatus.FAILED, 3)
    assert job.failure is not None
    assert (job.failure.code, job.failure.attempt, job.failure.retryable) == (code, 3, True)
    assert [attempt.outcome for attempt in store.jobs.attempts(job_id)] == [AttemptOutcome.LOST] * 3
    assert all(attempt.failure and attempt.failure.code is code for attempt in store.jobs.attempts(job_id))


@pytest.mark.parametrize("way", ["lose", "reap"])
@pytest.mark.parametrize(("wish", "status"), [("request_pause", "paused"), ("request_cancel", "cancelled")])
def test_a_loss_grants_what_the_client_asked_for(store: Store, way: str, wish: str, status: str) -> None:
    lease = claimed(store, max_attempts=1).lease
    getattr(store.jobs, wish)(lease.job_id)
    if way == "lose":
        store.leases.lose(lease, "died", backoff_seconds=1.0, log_tail="")
    else:
        let_lease_run_out(store, lease.job_id)
        store.leases.reap(lease_seconds=LEASE, backoff_seconds=1.0)
    job = store.jobs.get(lease.job_id)
    assert (job.status, job.failure) == (status, None)
    assert store.jobs.attempts(lease.job_id)[0].outcome is AttemptOutcome.LOST


def test_every_way_back_to_the_queue_rings(store: Store) -> None:
    def rings() -> int:
        return sum(entry.kind is OutboxKind.RING for entry in store.maintenance.outbox_pending(99))

    lease = claimed(store).lease
    assert rings() == 1
    store.leases.release(lease, AttemptOutcome.DRAINED, log_tail="")
    assert rings() == 2
    claim = store.leases.claim("wk_1", device="cpu", lease_seconds=LEASE)
    assert claim is not None
    store.leases.lose(claim.lease, "died", backoff_seconds=0.0, log_tail="")
    assert rings() == 3
    store.jobs.request_pause(lease.job_id)
    store.jobs.request_resume(lease.job_id)
    assert rings() == 4
    store.jobs.request_cancel(lease.job_id)
    store.jobs.retry(lease.job_id)
    assert rings() == 5


def test_time_held_is_added_up_and_silence_is_not_charged(store: Store) -> None:
    lease = claimed(store).lease

    def held_since(seconds: float, *, silent: float) -> None:
        with store.database.write() as connection:
            connection.execute(
                update(jobs).values(
                    held_since=database_now(-seconds),
                    renewed_at=database_now(-silent),
                    lease_expires_at=database_now(-silent / 2),
                )
            )

    held_since(100.0, silent=40.0)
    store.leases.reap(lease_seconds=LEASE, backoff_seconds=0.0)
    assert store.jobs.get(lease.job_id).run_seconds == pytest.approx(60, abs=5)
    claim = store.leases.claim("wk_1", device="cpu", lease_seconds=LEASE)
    assert claim is not None
    assert claim.run_seconds == pytest.approx(60, abs=5)
    held_since(10.0, silent=0.0)
    store.leases.release(claim.lease, AttemptOutcome.DRAINED, log_tail="")
    assert store.jobs.get(lease.job_id).run_seconds == pytest.approx(70, abs=8)


def test_a_retry_grants_the_whole_budget_anew_and_time_goes_on(store: Store) -> None:
    lease = claimed(store).lease
    store.leases.record(lease, [NewPoint(0, 42.5, {})], lease_seconds=LEASE)
    with store.database.write() as connection:
        connection.execute(update(jobs).values(held_since=database_now(-100.0)))
    store.leases.fail(lease, FailureCode.DEADLINE_EXCEEDED, "too slow", retryable=True, log_tail="")
    assert store.jobs.get(lease.job_id).run_seconds > 90
    store.jobs.retry(lease.job_id)
    claim = store.leases.claim("wk_1", device="cpu", lease_seconds=LEASE)
    assert claim is not None
    assert (claim.run_seconds, claim.elapsed_s, claim.steps_done) == (0.0, 42.5, 1)


def test_a_lease_counts_to_its_last_second(store: Store) -> None:
    lease = claimed(store).lease

    def reaped_with(seconds_left: float) -> list[str]:
        with store.database.write() as connection:
            connection.execute(update(jobs).values(lease_expires_at=database_now(seconds_left)))
        return store.leases.reap(lease_seconds=LEASE, backoff_seconds=0.0)

    assert reaped_with(10.0) == []
    assert reaped_with(-0.01) == [lease.job_id]


def test_the_reaper_that_was_away_extends_all_leases_before_it_takes_any(store: Store) -> None:
    lease = claimed(store).lease
    assert store.leases.reap(lease_seconds=LEASE, backoff_seconds=0.0) == []
    let_lease_run_out(store, lease.job_id)
    with store.database.write() as connection:
        connection.execute(update(sweeps).values(at=database_now(-LEASE - 1)))
    # The database was down for a minute: nobody could renew, nobody is dead.
    assert store.leases.reap(lease_seconds=LEASE, backoff_seconds=0.0) == []
    assert store.leases.reap(lease_seconds=LEASE, backoff_seconds=0.0) == []
    assert store.jobs.get(lease.job_id).status is JobStatus.RUNNING
    let_lease_run_out(store, lease.job_id)
    assert store.leases.reap(lease_seconds=LEASE, backoff_seconds=0.0) == [lease.job_id]


def test_extending_never_shortens_a_lease(store: Store) -> None:
    lease = claimed(store).lease
    with store.database.read() as connection:
        before = connection.scalar(select(jobs.c.lease_expires_at))
    store.leases.extend_all(1.0)
    with store.database.read() as connection:
        assert connection.scalar(select(jobs.c.lease_expires_at)) == before
    let_lease_run_out(store, lease.job_id)
    store.leases.extend_all(LEASE)
    assert store.leases.reap(lease_seconds=LEASE, backoff_seconds=0.0) == []


def test_an_attempt_of_an_unknown_worker_has_no_host(store: Store) -> None:
    lease = claimed(store).lease
    with store.database.read() as connection:
        assert connection.scalar(select(attempts.c.host).where(attempts.c.job_id == lease.job_id)) == ""
