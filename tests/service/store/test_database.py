import collections
import getpass
import multiprocessing
import os
import sqlite3
import subprocess
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from sqlalchemy import select, text
from sqlalchemy.exc import DBAPIError

from service.errors import LeaseLost, NotFound, StoreUnavailable
from service.records import JobStatus, Lease
from service.store import Database, Store, schema
from service.store.clock import database_now
from tests.conftest import Server, postgresql
from tests.service.store.samples import LEASE, claimed, points, spec


class RestartableServer:
    """A PostgreSQL server of its own, so that stopping it disturbs no other test."""

    def __init__(self, server: Server, folder: Path) -> None:
        import pgserver

        self._program = Path(pgserver.__file__).parent / "pginstall" / "bin" / "pg_ctl"
        self._folder = folder
        self.url = server.get_uri("postgres")

    def control(self, *arguments: str) -> None:
        user = "pgserver" if getpass.getuser() == "root" else None
        command = [self._program, "-D", self._folder, "-w", "-s", "-l", self._folder / "log", *arguments]
        subprocess.run(command, check=True, user=user, stdout=subprocess.DEVNULL, timeout=60)

    def start(self) -> None:
        # The options of the first start, among them the folder of the socket, are in a file.
        line = (self._folder / "postmaster.opts").read_text().strip()
        self.control("-o", line.split(" ", 1)[1], "start")


@pytest.fixture(scope="module")
def restartable() -> Iterator[RestartableServer]:
    with postgresql() as (started, folder):
        server = RestartableServer(started, folder)
        database = Database(server.url)
        schema.upgrade(database)
        database.close()
        yield server
        server.control("-m", "immediate", "stop")


@pytest.fixture
def away(restartable: RestartableServer) -> Iterator[Store]:
    """A store whose server the test may stop."""
    database = Database(restartable.url, pool_size=3)
    store = Store(database)
    yield store
    for job in store.jobs.list(limit=99):
        store.jobs.request_cancel(job.id) if not job.status.is_final else None
    database.close()


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_after_a_restart_of_postgresql_the_same_store_goes_on(
    away: Store, restartable: RestartableServer, mode: str
) -> None:
    job = away.jobs.create(spec())
    claim = away.leases.claim("wk_1", device="cpu", lease_seconds=LEASE)
    assert claim is not None
    away.leases.record(claim.lease, points(0, 3), lease_seconds=LEASE)

    def write_across_a_restart() -> None:
        with away.database.write() as connection:
            connection.execute(text("UPDATE jobs SET name = 'changed'"))
            restartable.control("-m", mode, "restart")
            connection.execute(text("SELECT 1"))

    with pytest.raises(StoreUnavailable):
        write_across_a_restart()
    assert away.jobs.get(job.id).name == ""
    # The other connections of the pool are broken too: none of them reaches a caller.
    for _ in range(6):
        assert away.jobs.get(job.id).steps_done == 3
    away.leases.record(claim.lease, points(2, 5), lease_seconds=LEASE)
    away.leases.succeed(claim.lease, result={}, files=[], log_tail="")
    assert away.jobs.get(job.id).status is JobStatus.SUCCEEDED
    assert [point.step for point in away.points.iterate(job.id)] == [0, 1, 2, 3, 4]


def test_a_restart_while_nobody_asks_is_noticed_by_nobody(away: Store, restartable: RestartableServer) -> None:
    job = away.jobs.create(spec())
    with away.database.read(), away.database.read(), away.database.read():
        pass
    restartable.control("-m", "fast", "restart")
    for _ in range(6):
        assert away.jobs.get(job.id) == job


def test_while_postgresql_is_stopped_every_part_says_so_and_then_works_again(
    away: Store, restartable: RestartableServer
) -> None:
    job = away.jobs.create(spec())
    restartable.control("-m", "fast", "stop")
    calls: list[Callable[[], object]] = [
        lambda: away.database.ping(),
        lambda: away.jobs.get(job.id),
        lambda: away.jobs.create(spec()),
        lambda: away.leases.claim("wk_1", device="cpu", lease_seconds=LEASE),
        lambda: away.leases.renew(Lease(job.id, 1), lease_seconds=LEASE),
        lambda: away.leases.reap(lease_seconds=LEASE, backoff_seconds=1.0),
        lambda: away.points.page(job.id, after=None, limit=1),
        lambda: away.maintenance.lead("sweep", "a", 1.0),
        lambda: schema.current_revision(away.database),
        lambda: schema.upgrade(away.database),
    ]
    try:
        for call in calls:
            with pytest.raises(StoreUnavailable) as refusal:
                call()
            assert str(refusal.value) == "The database cannot be reached."
            assert refusal.value.__cause__ is not None
    finally:
        restartable.start()
    away.database.ping()
    assert away.jobs.get(job.id) == job


def test_a_server_that_goes_and_comes_is_never_seen_as_anything_but_away(
    away: Store, restartable: RestartableServer
) -> None:
    job = away.jobs.create(spec())
    stop = threading.Event()
    seen: list[str] = []

    def call() -> None:
        while not stop.is_set():
            try:
                away.jobs.get(job.id)
                away.leases.claim("wk_1", device="cuda:0", lease_seconds=LEASE)
            except Exception as error:  # noqa: BLE001  (which ones come is the question)
                seen.append(type(error).__name__)

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    for mode in ("fast", "immediate"):
        restartable.control("-m", mode, "restart")
    stop.set()
    for thread in threads:
        thread.join()
    assert set(seen) <= {"StoreUnavailable"}
    away.database.ping()


def test_no_free_connection_is_an_unavailable_store(database_url: str) -> None:
    database = Database(database_url, pool_size=1, pool_seconds=0.05)
    with database.read(), database.read(), pytest.raises(StoreUnavailable):
        database.ping()
    database.ping()
    database.close()


def test_a_wrong_statement_is_not_an_unavailable_store(database: Database) -> None:
    for statement in ("SELEC 1", "INSERT INTO jobs (id) VALUES ('job_x')"):
        with pytest.raises(DBAPIError), database.write() as connection:
            connection.execute(text(statement))


def test_tables_that_are_missing_or_too_old_are_told_apart_from_an_outage(database: Database) -> None:
    for statement in ("SELECT no_such_column FROM jobs", "SELECT * FROM no_such_table"):
        with pytest.raises(StoreUnavailable, match="run `hyperdial migrate`"), database.read() as connection:
            connection.execute(text(statement))


def test_what_breaks_the_invariants_of_a_job_is_refused_by_the_database_itself(store: Store) -> None:
    store.jobs.create(spec())
    for change in ("status = 'running'", "status = 'failed'", "status = 'unheard_of'"):
        with pytest.raises(DBAPIError), store.database.write() as connection:
            connection.execute(text(f"UPDATE jobs SET {change}"))


def test_a_refusal_undoes_the_whole_transaction(store: Store) -> None:
    job = store.jobs.create(spec())

    def change_and_refuse() -> None:
        with store.database.write() as connection:
            connection.execute(text("UPDATE jobs SET name = 'changed'"))
            raise LeaseLost

    with pytest.raises(LeaseLost):
        change_and_refuse()
    assert store.jobs.get(job.id) == job


def test_a_slow_statement_of_postgresql_is_given_up(postgresql_database: Database) -> None:
    url = postgresql_database.engine.url.render_as_string(hide_password=False)
    database = Database(url, statement_seconds=0.05)
    with pytest.raises(StoreUnavailable), database.read() as connection:
        connection.execute(text("SELECT pg_sleep(20)"))
    database.close()


def test_a_postgresql_that_has_become_a_standby_is_an_unavailable_store(postgresql_database: Database) -> None:
    url = postgresql_database.engine.url.update_query_dict({"options": "-c default_transaction_read_only=on"})
    database = Database(url.render_as_string(hide_password=False))
    with pytest.raises(StoreUnavailable):
        Store(database).jobs.create(spec())
    assert Store(database).jobs.list(limit=1) == []
    database.close()


@pytest.fixture
def alone(sqlite_database: Database) -> Iterator[Store]:
    """A store on SQLite with a single connection that waits for nobody."""
    url = sqlite_database.engine.url.render_as_string()
    database = Database(url, pool_size=1, busy_seconds=0.2)
    yield Store(database)
    database.close()


def test_a_locked_sqlite_is_waited_for_and_then_an_unavailable_store(alone: Store) -> None:
    path = alone.database.engine.url.database
    assert path is not None
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreUnavailable):
        alone.jobs.create(spec())
    assert alone.jobs.list(limit=1) == []
    other.execute("COMMIT")
    other.close()
    assert alone.jobs.create(spec()).version == 1


@pytest.mark.parametrize("pragma", ["query_only = 1", "max_page_count = 1"], ids=["a read-only file", "a full disk"])
def test_sqlite_that_cannot_write_is_an_unavailable_store(alone: Store, pragma: str) -> None:
    job = alone.jobs.create(spec())
    with alone.database.read() as connection:
        connection.execute(text(f"PRAGMA {pragma}"))
    with pytest.raises(StoreUnavailable):
        # The pages that are there have some room left.
        collections.deque((alone.jobs.create(spec(name="x" * 200)) for _ in range(1000)), maxlen=0)
    assert alone.jobs.get(job.id) == job


def test_a_file_that_is_no_database_is_an_unavailable_store(tmp_path: Path) -> None:
    (tmp_path / "letter.sqlite").write_text("Dear reader, " * 1000)
    (tmp_path / "folder.sqlite").mkdir()
    for name in ("letter.sqlite", "folder.sqlite"):
        database = Database(f"sqlite:///{tmp_path / name}")
        with pytest.raises(StoreUnavailable):
            database.ping()
        database.close()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("mysql://localhost/x", "sqlite and postgresql are supported"),
        ("sqlite://", "needs a file"),
        ("sqlite:///:memory:", "needs a file"),
        ("sqlite:///file:x?mode=memory&uri=true", "needs a file"),
    ],
)
def test_a_database_that_processes_cannot_share_is_refused(url: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Database(url)


def test_sqlite_on_a_network_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mounts = [
        SimpleNamespace(mountpoint="/", fstype="ext4"),
        SimpleNamespace(mountpoint=str(tmp_path / "shared"), fstype="nfs4"),
    ]
    monkeypatch.setattr(psutil, "disk_partitions", lambda *, all: mounts)  # noqa: A006
    Database(f"sqlite:///{tmp_path / 'own' / 'x.sqlite'}").close()
    with pytest.raises(ValueError, match="nfs4, where SQLite loses data"):
        Database(f"sqlite:///{tmp_path / 'shared' / 'deeper' / 'x.sqlite'}")


@pytest.mark.parametrize("form", ["postgres://", "postgresql://", "postgresql+psycopg://"])
def test_every_spelling_of_postgresql_is_understood(form: str) -> None:
    database = Database(f"{form}someone:secret@127.0.0.1:1/x", connect_seconds=2)
    with pytest.raises(StoreUnavailable) as refusal:
        database.ping()
    assert "secret" not in str(refusal.value)
    database.close()


def test_the_clock_is_the_databases_and_in_utc(database: Database) -> None:
    with database.read() as connection:
        earlier = connection.scalar(select(database_now(-90.5)))
        now = connection.scalar(select(database_now()))
    assert earlier is not None
    assert now is not None
    assert now.utcoffset() == timedelta(0)
    assert abs((now - datetime.now(UTC)).total_seconds()) < 60
    assert (now - earlier).total_seconds() == pytest.approx(90.5, abs=5)


def test_a_server_in_another_time_zone_tells_the_same_moment(postgresql_database: Database) -> None:
    job = Store(postgresql_database).jobs.create(spec())
    url = postgresql_database.engine.url.update_query_dict({"options": "-c TimeZone=Asia/Kathmandu"})
    database = Database(url.render_as_string(hide_password=False))
    assert Store(database).jobs.get(job.id) == job
    database.close()


def test_a_moment_without_a_time_zone_is_refused(store: Store) -> None:
    with pytest.raises(ValueError, match="needs a time zone"):
        store.jobs.list(limit=1, created_after=datetime(2026, 1, 1))


def test_text_that_no_database_holds_finds_nothing_and_breaks_nothing(store: Store) -> None:
    for job_id in ("job_\x00", "job_\ud800", "job_'; DROP TABLE jobs; --"):
        with pytest.raises((NotFound, ValueError)):
            store.jobs.get(job_id)
    assert store.jobs.list(limit=1) == []


def _use_after_fork(store: Store, answers: "multiprocessing.SimpleQueue[list[str]]") -> None:
    answers.put([store.jobs.create(spec()).id for _ in range(20)])
    # Leave without cleaning up, as a killed child does.
    os._exit(0)


def test_a_forked_child_and_its_parent_do_not_share_connections(store: Store) -> None:
    context = multiprocessing.get_context("fork")
    with store.database.read(), store.database.read():
        pass  # two connections lie in the pool that the children inherit
    old_pool = store.database.engine.pool
    answers = context.SimpleQueue()
    children = [context.Process(target=_use_after_fork, args=(store, answers)) for _ in range(2)]
    for child in children:
        child.start()
    made = {store.jobs.create(spec()).id for _ in range(20)}
    for _ in children:
        made.update(answers.get())
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0, 0]
    assert {job.id for job in store.jobs.list(limit=99)} == made
    assert len(made) == 60
    assert store.database.engine.pool is old_pool


def test_numbers_that_are_none_never_reach_a_document(store: Store) -> None:
    lease = claimed(store).lease
    for number in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"[Oo]ut of range float"):
            store.leases.succeed(lease, result={"loss": number}, files=[], log_tail="")
    assert store.jobs.get(lease.job_id).status is JobStatus.RUNNING


def test_what_documents_do_not_know_is_refused_as_the_wrong_type(store: Store) -> None:
    lease = claimed(store).lease
    with pytest.raises(TypeError, match="not JSON serializable"):
        store.leases.succeed(lease, result={"loss": object()}, files=[], log_tail="")  # type: ignore[dict-item]
