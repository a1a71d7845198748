"""Points are recorded once and in order, whatever happens to the database; checkpoints come after them."""

import json
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest

from service.errors import LeaseLost
from service.files import FileStore
from service.records import AttemptOutcome, Claim, JobStatus, Lease
from service.spec.job import JobSpec
from service.store import Database, NewPoint, Store, schema
from tests.workers.fleet import eventually
from workers.recorder import Recorder, Snapshot
from workers.spool import Spool, remove_abandoned

SPEC = JobSpec.model_validate({"data": {"dataset": "builtin:wine", "target": "target"}})


def points(start: int, end: int) -> list[NewPoint]:
    return [
        NewPoint(step=step, elapsed_s=0.1 * step, body={"valid_loss": 1.0 / (step + 1)}) for step in range(start, end)
    ]


class Shop:
    """A store on a SQLite file that can be taken away, and all that a recorder needs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "hyperdial.sqlite"
        self.database = Database(f"sqlite:///{self.path}", busy_seconds=0.02)
        schema.upgrade(self.database)
        self.store = Store(self.database)
        self.files = FileStore((folder / "files").as_uri())

    def claim(self) -> Claim:
        claim = self.store.leases.claim("worker_1", device="cpu", lease_seconds=60.0)
        assert claim is not None
        return claim

    def recorder(self, lease: Lease, *, limit_bytes: int = 1 << 20) -> Recorder:
        spool = Spool(self.folder / "spool", lease, limit_bytes=limit_bytes)
        return Recorder(self.store.leases, self.files, lease, spool, lease_seconds=60.0, record_seconds=0.01)

    @contextmanager
    def away(self) -> Iterator[None]:
        """Let nobody else write for a while."""
        with closing(sqlite3.connect(self.path, isolation_level=None)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            yield
            connection.execute("ROLLBACK")

    def steps(self, job_id: str) -> list[int]:
        return [point.step for point in self.store.points.iterate(job_id)]


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    made = Shop(tmp_path)
    yield made
    made.database.close()


@pytest.fixture
def lease(shop: Shop) -> Lease:
    shop.store.jobs.create(SPEC)
    return shop.claim().lease


def nothing() -> None:
    """Wait for what will come by itself."""


def give_up_after(calls: int) -> Callable[[], None]:
    left = iter(range(calls))

    def wait() -> None:
        if next(left, None) is None:
            raise TimeoutError

    return wait


def test_points_are_recorded_in_the_background(shop: Shop, lease: Lease) -> None:
    with closing(shop.recorder(lease)) as recorder:
        for point in points(0, 10):
            recorder.point(point, wait=nothing)
        eventually(lambda: shop.steps(lease.job_id) == list(range(10)))


def test_closing_records_what_is_left(shop: Shop, lease: Lease) -> None:
    recorder = shop.recorder(lease)
    for point in points(0, 500):
        recorder.point(point, wait=nothing)
    recorder.close()
    assert shop.steps(lease.job_id) == list(range(500))


def test_while_the_database_is_away_points_wait_on_disk(shop: Shop, lease: Lease) -> None:
    with closing(shop.recorder(lease)) as recorder:
        with shop.away():
            for point in points(0, 10):
                recorder.point(point, wait=nothing)
            spooled = shop.folder / "spool" / f"{lease.job_id}.{lease.attempt}.jsonl"
            eventually(lambda: spooled.exists() and len(spooled.read_bytes().splitlines()) == 10)
            for point in points(10, 20):
                recorder.point(point, wait=nothing)
            eventually(lambda: len(spooled.read_bytes().splitlines()) == 20)
        assert recorder.settle(wait=nothing, seconds=20.0)
        assert not spooled.exists()
    assert shop.steps(lease.job_id) == list(range(20))


def test_a_full_spool_makes_the_run_wait_and_loses_nothing(shop: Shop, lease: Lease) -> None:
    with closing(shop.recorder(lease, limit_bytes=2000)) as recorder:
        with shop.away():
            taken = 0
            with suppress(TimeoutError):
                for point in points(0, 6000):
                    recorder.point(point, wait=give_up_after(2))
                    taken += 1
            assert 5000 <= taken < 6000
        assert recorder.settle(wait=nothing, seconds=20.0)
    assert shop.steps(lease.job_id) == list(range(taken))


def test_a_checkpoint_comes_after_the_points_before_it(shop: Shop, lease: Lease) -> None:
    with closing(shop.recorder(lease)) as recorder:
        with shop.away():
            for point in points(0, 5):
                recorder.point(point, wait=nothing)
            recorder.checkpoint(Snapshot(5, b"state"))
            assert not recorder.settle(wait=nothing, seconds=0.5)
            assert list(shop.files.keys()) == []
        assert recorder.settle(wait=nothing, seconds=20.0)
    shop.store.leases.release(lease, AttemptOutcome.DRAINED, log_tail="")
    claim = shop.claim()
    assert claim.steps_done == 5
    [checkpoint] = claim.checkpoints
    assert checkpoint.step == 5
    assert shop.files.fetch(checkpoint.key, shop.folder, sha256=checkpoint.sha256).read_bytes() == b"state"


def test_the_last_two_checkpoints_are_kept(shop: Shop, lease: Lease) -> None:
    with closing(shop.recorder(lease)) as recorder:
        for step in range(1, 5):
            recorder.point(points(step - 1, step)[0], wait=nothing)
            recorder.checkpoint(Snapshot(step, b"state %d" % step))
            assert recorder.settle(wait=nothing, seconds=20.0)
    names = {key.rpartition("/")[2] for key in shop.files.keys(f"jobs/{lease.job_id}/")}
    assert names == {"checkpoint-1-3.safetensors", "checkpoint-1-4.safetensors"}


def test_who_lost_the_lease_is_told_and_leaves_nothing(shop: Shop, lease: Lease) -> None:
    with closing(shop.recorder(lease)) as recorder:
        recorder.point(points(0, 1)[0], wait=nothing)
        assert recorder.settle(wait=nothing, seconds=20.0)
        shop.store.leases.lose(lease, "gone", backoff_seconds=0.0, log_tail="")
        recorder.point(points(1, 2)[0], wait=nothing)
        recorder.checkpoint(Snapshot(2, b"state"))
        with pytest.raises(LeaseLost):
            recorder.settle(wait=nothing, seconds=20.0)
        with pytest.raises(LeaseLost):
            recorder.point(points(2, 3)[0], wait=nothing)
    assert shop.steps(lease.job_id) == [0]
    assert list(shop.files.keys()) == []


def test_a_lease_that_was_lost_while_the_database_was_away_ends_the_run(shop: Shop, lease: Lease) -> None:
    with closing(shop.recorder(lease)) as recorder:
        with closing(sqlite3.connect(shop.path, isolation_level=None)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            recorder.point(points(0, 1)[0], wait=nothing)
            eventually(lambda: any((shop.folder / "spool").glob("*.jsonl")))
            connection.execute("UPDATE jobs SET attempt = attempt + 1")
            connection.execute("COMMIT")
        with pytest.raises(LeaseLost):
            recorder.settle(wait=nothing, seconds=20.0)
    assert shop.steps(lease.job_id) == []
    assert list((shop.folder / "spool").iterdir()) == []


def test_a_recorder_hears_of_a_pause(shop: Shop, lease: Lease) -> None:
    with closing(shop.recorder(lease)) as recorder:
        assert recorder.status is JobStatus.RUNNING
        shop.store.jobs.request_pause(lease.job_id)
        recorder.point(points(0, 1)[0], wait=nothing)
        assert recorder.settle(wait=nothing, seconds=20.0)
        assert recorder.status is JobStatus.PAUSING


def test_a_file_store_that_is_away_delays_only_checkpoints(shop: Shop, lease: Lease) -> None:
    folder = shop.folder / "files" / "jobs"
    folder.write_text("a file where a folder should be")
    with closing(shop.recorder(lease)) as recorder:
        recorder.point(points(0, 1)[0], wait=nothing)
        recorder.checkpoint(Snapshot(1, b"state"))
        assert recorder.settle(wait=nothing, seconds=20.0, points_only=True)
        assert not recorder.settle(wait=nothing, seconds=0.2)
        folder.unlink()
        assert recorder.settle(wait=nothing, seconds=20.0)
    assert [key.rpartition("/")[2] for key in shop.files.keys()] == ["checkpoint-1-1.safetensors"]  # noqa: SIM118


# --- the spool itself ------------------------------------------------------------------------------------------------


def test_a_spool_gives_back_what_it_took(tmp_path: Path) -> None:
    spool = Spool(tmp_path, Lease("job_1", 1), limit_bytes=1 << 20)
    taken = points(0, 1200)
    assert spool.is_empty
    assert spool.append(taken[:700])
    assert spool.append(taken[700:])
    assert [point for batch in spool.batches() for point in batch] == taken
    spool.clear()
    assert spool.is_empty
    assert list(tmp_path.iterdir()) == []


def test_a_spool_takes_all_of_a_batch_or_nothing(tmp_path: Path) -> None:
    spool = Spool(tmp_path, Lease("job_1", 1), limit_bytes=len(json.dumps([0, 0.0, {"valid_loss": 1.0}])) * 5)
    assert spool.append(points(0, 2))
    assert not spool.append(points(2, 50))
    assert [point.step for batch in spool.batches() for point in batch] == [0, 1]


def test_only_spools_of_the_dead_are_removed(tmp_path: Path) -> None:
    alive = Spool(tmp_path, Lease("job_1", 1), limit_bytes=1000)
    assert alive.append(points(0, 1))
    (tmp_path / "job_2.1.jsonl").write_text("[]")
    remove_abandoned(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["job_1.1.jsonl"]
    alive.clear()
