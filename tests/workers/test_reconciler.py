"""What was lost is found again, and nobody is taken for dead because nobody could be heard."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread

import pytest
from sqlalchemy import ColumnElement, Table, update

from service.api.keeping import keep
from service.api.services import Services
from service.errors import NotFound, QueueUnavailable
from service.files import FileStore, job_key, new_dataset_key, sha256_of
from service.identifiers import new_id
from service.records import Checkpoint, FileRecord, JobStatus, Lease
from service.settings import Settings
from service.spec.job import JobSpec
from service.store import NewDataset, NewWorker, Store
from service.store.clock import database_now
from service.tables import jobs, leaders, outbox, sweeps
from tests.workers.fleet import eventually
from workers.reconciler import Reconciler

SPEC = JobSpec.model_validate({"data": {"dataset": "builtin:wine", "target": "target"}})
SETTINGS = Settings(lease_seconds=60.0, sweep_seconds=0.05, backoff_seconds=0.0)


@dataclass
class CountingBell:
    """A bell of its own kind: it counts."""

    rings: int = 0
    is_broken: bool = False

    def ring(self) -> None:
        if self.is_broken:
            raise QueueUnavailable
        self.rings += 1

    def ping(self) -> None: ...


@pytest.fixture
def files(tmp_path: Path) -> FileStore:
    return FileStore((tmp_path / "files").as_uri())


@pytest.fixture
def bell() -> CountingBell:
    return CountingBell()


@pytest.fixture
def reconciler(store: Store, files: FileStore, bell: CountingBell) -> Reconciler:
    return Reconciler(store, files, bell, SETTINGS, holder="one")


def set_back(store: Store, table: Table, column: str, seconds: float, *conditions: ColumnElement[bool]) -> None:
    """Let a moment in the database lie so long ago."""
    with store.database.write() as connection:
        connection.execute(update(table).where(*conditions).values({column: database_now(-seconds)}))


def claimed(store: Store) -> Lease:
    store.jobs.create(SPEC)
    claim = store.leases.claim("worker_1", device="cpu", lease_seconds=60.0)
    assert claim is not None
    return claim.lease


def idle_worker(store: Store, name: str = "worker_1") -> None:
    store.workers.register(NewWorker(name, "here", 1, "cpu", "a cpu", "0"))


def test_a_silent_worker_loses_its_job(store: Store, reconciler: Reconciler) -> None:
    lease = claimed(store)
    assert reconciler.sweep()
    assert store.jobs.get(lease.job_id).status is JobStatus.RUNNING
    set_back(store, jobs, "lease_expires_at", 1.0)
    assert reconciler.sweep()
    assert store.jobs.get(lease.job_id).status is JobStatus.QUEUED


@pytest.mark.parametrize("absence", [31.0, 3600.0])
def test_after_an_absence_leases_are_extended_before_anything_is_taken(
    store: Store, reconciler: Reconciler, absence: float
) -> None:
    lease = claimed(store)
    assert reconciler.sweep()
    # The database was away, or the machine slept: nobody could renew, nobody swept.
    set_back(store, jobs, "lease_expires_at", absence - 30.0)
    set_back(store, sweeps, "at", absence)
    set_back(store, leaders, "expires_at", absence)
    assert reconciler.sweep()
    assert reconciler.sweep()
    assert store.jobs.get(lease.job_id).status is JobStatus.RUNNING


def test_one_leads_at_a_time_and_another_follows(
    store: Store, files: FileStore, bell: CountingBell, reconciler: Reconciler
) -> None:
    other = Reconciler(store, files, bell, SETTINGS, holder="two")
    assert reconciler.sweep()
    assert not other.sweep()
    set_back(store, leaders, "expires_at", 1.0)
    assert other.sweep()
    assert not reconciler.sweep()


def test_announced_jobs_are_rung_for_once_and_waiting_ones_again_for_idle_workers(
    store: Store, reconciler: Reconciler, bell: CountingBell
) -> None:
    store.jobs.create(SPEC)
    store.jobs.create(SPEC)
    reconciler.sweep()
    assert bell.rings == 2
    reconciler.sweep()
    assert bell.rings == 2  # nobody is idle
    idle_worker(store)
    reconciler.sweep()
    assert bell.rings == 3


def test_without_waiting_jobs_nobody_is_rung(store: Store, reconciler: Reconciler, bell: CountingBell) -> None:
    idle_worker(store)
    claimed(store)
    reconciler.sweep()
    assert bell.rings == 0


def test_a_bell_that_is_broken_stops_nothing(store: Store, reconciler: Reconciler, bell: CountingBell) -> None:
    store.jobs.create(SPEC)
    bell.is_broken = True
    assert reconciler.sweep()
    assert store.maintenance.outbox_pending(10) == []


def test_files_that_nobody_needs_are_deleted(store: Store, files: FileStore, reconciler: Reconciler) -> None:
    lease = claimed(store)
    key = job_key(lease.job_id, "checkpoint-1-0.safetensors")
    kept = job_key(lease.job_id, "1-weights.safetensors")
    for each in (key, kept):
        files.put(each, b"bytes")
    store.leases.save_checkpoint(lease, Checkpoint(key, "0" * 64, 0), lease_seconds=60.0)
    made = FileRecord("weights.safetensors", kept, "0" * 64, 5)
    store.leases.succeed(lease, result={}, files=[made], log_tail="")
    reconciler.sweep()
    assert list(files.keys(f"jobs/{lease.job_id}/")) == [kept]
    assert store.maintenance.outbox_pending(10) == []


def test_a_file_that_cannot_be_deleted_is_tried_again(
    store: Store, files: FileStore, reconciler: Reconciler, tmp_path: Path
) -> None:
    lease = claimed(store)
    key = job_key(lease.job_id, "checkpoint-1-0.safetensors")
    store.leases.save_checkpoint(lease, Checkpoint(key, "0" * 64, 0), lease_seconds=60.0)
    store.leases.succeed(lease, result={}, files=[], log_tail="")
    obstacle = tmp_path / "files" / key
    obstacle.mkdir(parents=True)  # what is a folder cannot be unlinked
    reconciler.sweep()
    assert [entry.subject for entry in store.maintenance.outbox_pending(10)] == [key]
    obstacle.rmdir()
    reconciler.sweep()
    assert store.maintenance.outbox_pending(10) == []


def test_files_of_uploads_and_attempts_that_died_are_removed_a_day_later(
    store: Store, files: FileStore, bell: CountingBell
) -> None:
    lease = claimed(store)
    upload, checkpoint = new_dataset_key(sha256_of(b"rows")), job_key(lease.job_id, "checkpoint-1-0.safetensors")
    store.datasets.expect_file(upload)
    store.leases.expect_files(lease, [checkpoint], lease_seconds=60.0)
    for key in (upload, checkpoint):
        files.put(key, b"rows")

    def sweep() -> set[str]:
        """Sweep as often as it takes; every reconciler prunes with its first sweep."""
        for _ in range(2):
            assert Reconciler(store, files, bell, SETTINGS, holder="one").sweep()
        return set(files.keys())

    assert sweep() == {upload, checkpoint}
    set_back(store, outbox, "created_at", 23 * 3600.0)
    assert sweep() == {upload, checkpoint}
    set_back(store, outbox, "created_at", 25 * 3600.0)
    assert sweep() == {checkpoint}  # its job is held: it may yet be named
    store.leases.lose(lease, "killed", backoff_seconds=0.0, log_tail="")
    assert sweep() == set()
    assert store.jobs.get(lease.job_id).status is JobStatus.QUEUED


def test_files_that_were_named_in_time_stay_for_ever(store: Store, files: FileStore, bell: CountingBell) -> None:
    lease = claimed(store)
    checkpoint, weights = (job_key(lease.job_id, name) for name in ("checkpoint-1-0.safetensors", "1-weights"))
    store.leases.expect_files(lease, [checkpoint, weights], lease_seconds=60.0)
    store.leases.expect_files(lease, [checkpoint], lease_seconds=60.0)  # tried again after a failure
    for key in (checkpoint, weights):
        files.put(key, b"bytes")
    store.leases.save_checkpoint(lease, Checkpoint(checkpoint, "0" * 64, 0), lease_seconds=60.0)
    store.leases.lose(lease, "killed", backoff_seconds=0.0, log_tail="")
    set_back(store, outbox, "created_at", 25 * 3600.0)
    for _ in range(2):
        Reconciler(store, files, bell, SETTINGS, holder="one").sweep()
    assert list(files.keys()) == [checkpoint]


def test_uploads_deletions_and_sweeps_at_once_never_leave_a_dataset_without_its_file(
    store: Store, files: FileStore, bell: CountingBell, tmp_path: Path
) -> None:
    services = Services(SETTINGS, store, files, bell)
    contents = [tmp_path / str(number) for number in range(2)]
    for path in contents:
        path.write_text(f"x,target\n{path.name},1\n")

    def upload(turns: int) -> None:
        for turn in range(turns):
            path = contents[turn % 2]
            keep(services, made_of(path), path)

    def delete(turns: int) -> None:
        for _ in range(turns):
            for record in store.datasets.list(limit=9):
                with suppress(NotFound):
                    store.datasets.delete(record.id, force=True)

    ending = Event()

    def sweep(holder: str) -> None:
        while not ending.is_set():
            reconciler = Reconciler(store, files, bell, SETTINGS, holder=holder)
            reconciler.sweep()
            reconciler._empty_outbox()  # as one does that was frozen, and does not know that another leads now

    with ThreadPoolExecutor(6) as threads:
        sweeping = [threads.submit(sweep, holder) for holder in ("one", "two")]
        working = [threads.submit(upload, 20), threads.submit(upload, 20), threads.submit(delete, 25)]
        try:
            for work in working:
                work.result()
        finally:
            ending.set()
        for work in sweeping:
            work.result()
    upload(2)
    Reconciler(store, files, bell, SETTINGS, holder="one")._empty_outbox()
    named = {record.key for record in store.datasets.list(limit=9)}
    assert len(named) == 2
    assert set(files.keys("datasets/")) == named


def made_of(path: Path) -> NewDataset:
    """What an upload of the file is, before it is stored."""
    return NewDataset(new_id("ds"), path.name, "csv", 1, (), False, None, sha256_of(path), 1, "")


def test_old_jobs_are_deleted_with_their_files(store: Store, files: FileStore, bell: CountingBell) -> None:
    lease = claimed(store)
    key = job_key(lease.job_id, "1-weights.safetensors")
    files.put(key, b"bytes")
    store.leases.succeed(lease, result={}, files=[FileRecord("weights", key, "0" * 64, 5)], log_tail="")
    young = claimed(store)
    store.leases.succeed(young, result={}, files=[], log_tail="")
    old_only = SETTINGS.model_copy(update={"retention_days": 1.0})
    set_back(store, jobs, "ended_at", 2 * 86_400.0, jobs.c.id == lease.job_id)
    pruning = Reconciler(store, files, bell, old_only, holder="one")
    assert pruning.sweep()
    assert pruning.sweep()
    assert [job.id for job in store.jobs.list(limit=10, before=None)] == [young.job_id]
    assert list(files.keys("jobs/")) == []


def test_it_runs_until_told_and_hands_the_lead_on(store: Store, reconciler: Reconciler) -> None:
    ending = Event()
    thread = Thread(target=reconciler.run, args=(ending,))
    thread.start()
    eventually(lambda: store.maintenance.last_sweep() is not None)
    ending.set()
    thread.join(10.0)
    assert not thread.is_alive()
    assert store.maintenance.lead("reconciler", "another", 1.0)
