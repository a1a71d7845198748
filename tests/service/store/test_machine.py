"""Clients and workers do what they like, in any order: what must always hold, holds."""

import itertools
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from service.errors import LeaseLost, StateConflict
from service.records import FINAL, HELD, TRANSITIONS, AttemptOutcome, FailureCode, JobStatus, Lease
from service.store import Database, Store
from tests.conftest import empty
from tests.service.store.samples import LEASE, checkpoint, let_lease_run_out, points, spec

_RETRIES = {(JobStatus.FAILED, JobStatus.QUEUED), (JobStatus.CANCELLED, JobStatus.QUEUED)}


class Machine(RuleBasedStateMachine):
    """Client verbs and a stand-in worker against one store."""

    database: Database
    jobs = Bundle("jobs")
    leases = Bundle("leases")

    def __init__(self) -> None:
        RuleBasedStateMachine.__init__(self)
        self.store = Store(self.database)
        self.known: list[str] = []
        self.versions: dict[str, int] = {}

    def teardown(self) -> None:
        for job_id in self.known:
            self.check_history(job_id)
        empty(self.database)

    @rule(target=jobs, max_attempts=st.integers(1, 3), priority=st.integers(-1, 1))
    def create(self, max_attempts: int, priority: int) -> str:
        self.known.append(self.store.jobs.create(spec(max_attempts=max_attempts, priority=priority)).id)
        return self.known[-1]

    @rule(job_id=jobs, verb=st.sampled_from(["request_cancel", "request_pause", "request_resume", "retry"]))
    def steer(self, job_id: str, verb: str) -> None:
        before = self.store.jobs.get(job_id)
        refused: StateConflict | None = None
        try:
            getattr(self.store.jobs, verb)(job_id)
        except StateConflict as refusal:
            refused = refusal
        after = self.store.jobs.get(job_id)
        if refused is not None:
            assert refused.current is before.status
            assert before.status not in refused.allowed
            assert after == before
            return
        assert after.status is before.status or after.status in TRANSITIONS[before.status]
        if verb == "request_cancel":
            assert after.status in (JobStatus.CANCELLED, JobStatus.CANCELLING)

    @rule(target=leases, device=st.sampled_from(["cpu", "cuda:0"]))
    def claim(self, device: str) -> Lease | None:
        waiting = self.store.maintenance.queued_depth()
        claim = self.store.leases.claim("wk_1", device=device, lease_seconds=LEASE)
        assert (claim is None) == (waiting == 0)
        return None if claim is None else claim.lease

    def held(self, lease: Lease) -> bool:
        job = self.store.jobs.get(lease.job_id)
        return job.attempt == lease.attempt and job.status in HELD

    def write(self, lease: Lease, call: Callable[[], object]) -> None:
        """A write takes place exactly when the lease stands."""
        may = self.held(lease)
        before = self.store.jobs.get(lease.job_id)
        try:
            call()
        except LeaseLost:
            assert not may
            assert self.store.jobs.get(lease.job_id) == before
        else:
            assert may

    @rule(lease=leases, behind=st.integers(0, 3), count=st.integers(0, 4), lines=st.integers(0, 2))
    def record(self, lease: Lease | None, behind: int, count: int, lines: int) -> None:
        if lease is None:
            return
        done = self.store.jobs.get(lease.job_id).steps_done
        first = max(0, done - behind)
        batch = points(first, first + count)
        self.write(lease, lambda: self.store.leases.record(lease, batch, lease_seconds=LEASE, logs=["line"] * lines))

    @rule(lease=leases)
    def renew(self, lease: Lease | None) -> None:
        if lease is not None:
            self.write(lease, lambda: self.store.leases.renew(lease, lease_seconds=LEASE))

    @rule(lease=leases)
    def save(self, lease: Lease | None) -> None:
        if lease is not None:
            done = self.store.jobs.get(lease.job_id).steps_done
            self.write(lease, lambda: self.store.leases.save_checkpoint(lease, checkpoint(done), lease_seconds=LEASE))

    @rule(
        lease=leases,
        outcome=st.sampled_from([AttemptOutcome.DRAINED, AttemptOutcome.PAUSED, AttemptOutcome.CANCELLED]),
    )
    def release(self, lease: Lease | None, outcome: AttemptOutcome) -> None:
        if lease is not None:
            self.write(lease, lambda: self.store.leases.release(lease, outcome, log_tail=""))

    @rule(lease=leases)
    def succeed(self, lease: Lease | None) -> None:
        if lease is not None:
            self.write(lease, lambda: self.store.leases.succeed(lease, result={}, files=[], log_tail=""))

    @rule(lease=leases)
    def fail(self, lease: Lease | None) -> None:
        if lease is not None:
            code = FailureCode.DIVERGED
            self.write(lease, lambda: self.store.leases.fail(lease, code, "x", retryable=True, log_tail=""))

    @rule(lease=leases)
    def lose(self, lease: Lease | None) -> None:
        if lease is not None:
            self.write(lease, lambda: self.store.leases.lose(lease, "died", backoff_seconds=0.0, log_tail=""))

    @rule(lease=leases)
    def fall_silent(self, lease: Lease | None) -> None:
        if lease is None or not self.held(lease):
            return
        let_lease_run_out(self.store, lease.job_id)
        assert self.store.leases.reap(lease_seconds=LEASE, backoff_seconds=0.0) == [lease.job_id]
        assert not self.held(lease)

    @precondition(lambda self: self.known)
    @invariant()
    def versions_only_grow(self) -> None:
        now = self.store.jobs.versions(self.known)
        assert all(now[job_id] >= version for job_id, version in self.versions.items())
        self.versions = now

    def check_history(self, job_id: str) -> None:
        job = self.store.jobs.get(job_id)
        events = self.store.jobs.events(job_id, after=0, limit=10_000)
        assert [event.seq for event in events] == list(range(1, len(events) + 1))
        statuses = [JobStatus(str(event.body["status"])) for event in events if event.kind == "status"]
        assert statuses[0] is JobStatus.QUEUED
        assert statuses[-1] is job.status
        changes = list(itertools.pairwise(statuses))
        assert all(after in TRANSITIONS[before] for before, after in changes)
        # A cancel that was accepted is never lost, except to a success that was reached before it was heard.
        granted = {after for before, after in changes if before is JobStatus.CANCELLING}
        assert granted <= {JobStatus.CANCELLED, JobStatus.SUCCEEDED}
        # One end for each life: a second needs a retry between.
        ends = sum(status in FINAL for status in statuses)
        retries = sum(change in _RETRIES for change in changes)
        assert ends == retries + (job.status in FINAL)
        steps = [point.step for point in self.store.points.iterate(job_id)]
        assert steps == list(range(job.steps_done))
        told = [event.body["step"] for event in events if event.kind == "point"]
        assert told == steps
        attempts = self.store.jobs.attempts(job_id)
        assert [attempt.number for attempt in attempts] == list(range(1, job.attempt + 1))
        assert [attempt.outcome is None for attempt in attempts] == [
            attempt.number == job.attempt and job.status in HELD for attempt in attempts
        ]
        assert statuses.count(JobStatus.RUNNING) >= len(attempts)


@pytest.fixture
def machine(database: Database) -> type[Machine]:
    return type("MachineOnADatabase", (Machine,), {"database": database})


def _run(machine: type[Machine], *, examples: int, steps: int) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_no_order_of_verbs_and_writes_breaks_a_job(machine: type[Machine]) -> None:
    _run(machine, examples=40, steps=30)


@pytest.mark.slow
def test_no_longer_order_of_verbs_and_writes_breaks_a_job_either(machine: type[Machine]) -> None:
    _run(machine, examples=500, steps=80)
