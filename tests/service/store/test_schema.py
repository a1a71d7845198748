import multiprocessing
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import psycopg
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import inspect, text

import migrations
from service.store import Database, Store, schema
from service.store.backup import BackupFailed
from service.tables import metadata
from tests.conftest import Server
from tests.service.store.samples import spec


@pytest.fixture(params=["sqlite", "postgresql"])
def bare_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of a database without any table."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'folder' / 'bare.sqlite'}"
        return
    server: Server = request.getfixturevalue("postgresql_server")
    with psycopg.connect(server.get_uri("postgres"), autocommit=True) as connection:
        connection.execute("CREATE DATABASE bare")
        yield server.get_uri("bare")
        connection.execute("DROP DATABASE bare WITH (FORCE)")


@pytest.fixture
def bare(bare_url: str) -> Iterator[Database]:
    """A database without any table."""
    database = Database(bare_url)
    yield database
    database.close()


def test_the_migrations_make_the_tables_of_the_code(bare: Database) -> None:
    schema.upgrade(bare)
    with bare.read() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, metadata) == []


def test_constraints_that_alembic_does_not_compare_are_equal_too(bare: Database) -> None:
    schema.upgrade(bare)

    def checks() -> dict[str, list[tuple[str | None, str]]]:
        inspector = inspect(bare.engine)
        return {
            table: sorted((check["name"], check["sqltext"]) for check in inspector.get_check_constraints(table))
            for table in metadata.tables
        }

    migrated = checks()
    with bare.migrate() as connection:
        metadata.drop_all(connection)
        metadata.create_all(connection)
    assert checks() == migrated
    assert {name for name, _ in migrated["jobs"]} == {"ck_jobs_status", "ck_jobs_lease", "ck_jobs_failure"}


def test_an_upgrade_brings_a_bare_database_to_the_head_and_a_second_one_changes_nothing(bare: Database) -> None:
    assert schema.current_revision(bare) is None
    assert not schema.is_at_head(bare)
    assert schema.upgrade(bare) == schema.head_revision()
    assert schema.is_at_head(bare)
    job = Store(bare).jobs.create(spec())
    assert schema.upgrade(bare) == schema.head_revision()
    assert Store(bare).jobs.get(job.id) == job


def _upgrade(url: str, failures: "multiprocessing.SimpleQueue[str]") -> None:
    database = Database(url)
    try:
        schema.upgrade(database)
    except Exception as error:  # noqa: BLE001  (whatever it is, the test shows it)
        failures.put(repr(error))
    finally:
        database.close()


def test_processes_that_start_together_upgrade_once(bare_url: str) -> None:
    context = multiprocessing.get_context("spawn")
    failures = context.SimpleQueue()
    processes = [context.Process(target=_upgrade, args=(bare_url, failures)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert failures.empty(), failures.get()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    database = Database(bare_url)
    assert schema.is_at_head(database)
    database.close()


def test_a_database_that_is_ahead_of_the_code_is_refused_in_a_clear_sentence(bare: Database) -> None:
    schema.upgrade(bare)
    with bare.write() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    assert not schema.is_at_head(bare)
    with pytest.raises(schema.SchemaTooNew, match=r"at revision 9999.*upgraded by a newer version"):
        schema.upgrade(bare)
    assert schema.current_revision(bare) == "9999"


def test_a_migration_that_fails_leaves_nothing_behind(bare: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    def upgrade_and_fail(config: object, revision: str) -> None:
        whole(config, revision)
        raise RuntimeError("the power failed")

    whole: Callable[..., None] = schema.command.upgrade
    monkeypatch.setattr(schema.command, "upgrade", upgrade_and_fail)
    with pytest.raises(RuntimeError, match="the power failed"):
        schema.upgrade(bare)
    assert schema.current_revision(bare) is None
    assert set(inspect(bare.engine).get_table_names()) <= {"alembic_version"}


def test_rebuilding_a_table_does_not_delete_what_refers_to_it(sqlite_database: Database) -> None:
    store = Store(sqlite_database)
    job = store.jobs.create(spec(labels={"a": "b"}))
    with sqlite_database.migrate() as connection:
        connection.execute(text("CREATE TABLE copy AS SELECT * FROM jobs"))
        connection.execute(text("DELETE FROM jobs"))
        connection.execute(text("INSERT INTO jobs SELECT * FROM copy"))
        connection.execute(text("DROP TABLE copy"))
    assert [found.id for found in store.jobs.list(labels={"a": "b"}, limit=3)] == [job.id]
    with sqlite_database.write() as connection:
        # Foreign keys are on again, also on the connection that migrated.
        assert connection.scalar(text("PRAGMA foreign_keys")) == 1


def test_the_tables_can_be_taken_down_again(bare: Database) -> None:
    schema.upgrade(bare)
    with bare.migrate() as connection:
        config = schema._config()
        config.attributes["connection"] = connection
        schema.command.downgrade(config, "base")
    assert schema.current_revision(bare) is None
    assert inspect(bare.engine).get_table_names() == ["alembic_version"]


SECOND = """
import sqlalchemy as sa
from alembic import op

revision = "{revision}"
down_revision = "{before}"


def upgrade() -> None:
    op.add_column("api_keys", sa.Column("note{revision}", sa.Text()))


def downgrade() -> None:
    op.drop_column("api_keys", "note{revision}")
"""


@pytest.fixture
def next_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], str]:
    """Make the code one migration newer; gives its revision."""
    folder = tmp_path / "migrations"
    shutil.copytree(migrations.__path__[0], folder, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(schema, "migrations", SimpleNamespace(__path__=[str(folder)]))

    def install() -> str:
        before = schema.head_revision()
        revision = f"{int(before) + 1:04}"
        (folder / "versions" / f"{revision}_later.py").write_text(SECOND.format(revision=revision, before=before))
        return revision

    return install


@pytest.fixture
def used(tmp_path: Path) -> Iterator[Database]:
    """A SQLite database that holds something, some of it only in its log."""
    database = Database(f"sqlite:///{tmp_path / 'data' / 'hyperdial.sqlite'}")
    schema.upgrade(database)
    Store(database).jobs.create(spec(name="before"))
    yield database
    database.close()


def copies(database: Database) -> list[str]:
    assert database.path is not None
    assert not [path for path in database.path.parent.iterdir() if path.name.startswith(".")]
    return sorted(path.name for path in database.path.parent.glob("*.backup"))


def test_a_used_database_is_copied_before_its_tables_change(used: Database, next_version: Callable[[], str]) -> None:
    assert copies(used) == []  # there was nothing to lose in an empty one
    first, saved = schema.head_revision(), list[Path]()
    second = next_version()
    assert schema.upgrade(used, saved=saved.append) == second
    Store(used).jobs.create(spec(name="after"))
    (copy,) = saved
    assert copy.name == f"hyperdial.sqlite.{first}.backup"
    restored = Database(f"sqlite:///{copy}")
    assert schema.current_revision(restored) == first
    assert [job.name for job in Store(restored).jobs.list(limit=9)] == ["before"]
    with restored.read() as connection:
        assert connection.scalar(text("PRAGMA integrity_check")) == "ok"
    restored.close()
    assert schema.upgrade(used, saved=saved.append) == second
    assert len(saved) == 1  # nothing was to be done


def test_the_last_two_copies_are_kept(used: Database, next_version: Callable[[], str]) -> None:
    revisions = [schema.head_revision()]
    for _ in range(3):
        revisions.append(next_version())
        schema.upgrade(used)
    assert copies(used) == [f"hyperdial.sqlite.{revision}.backup" for revision in revisions[1:3]]


def test_an_upgrade_that_is_tried_again_has_one_copy_of_what_was_there_last(
    used: Database, next_version: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(config: object, revision: str) -> None:
        raise RuntimeError("the power failed")

    first, _ = schema.head_revision(), next_version()
    with monkeypatch.context() as patch:
        patch.setattr(schema.command, "upgrade", fail)
        with pytest.raises(RuntimeError):
            schema.upgrade(used)
    Store(used).jobs.create(spec(name="meanwhile"))
    saved = list[Path]()
    schema.upgrade(used, saved=saved.append)
    assert copies(used) == [f"hyperdial.sqlite.{first}.backup"]
    restored = Database(f"sqlite:///{saved[0]}")
    assert {job.name for job in Store(restored).jobs.list(limit=9)} == {"before", "meanwhile"}
    restored.close()


def test_without_a_copy_nothing_is_changed(used: Database, next_version: Callable[[], str]) -> None:
    first, _ = schema.head_revision(), next_version()
    assert used.path is not None
    obstacle = used.path.with_name(f"hyperdial.sqlite.{first}.backup")
    obstacle.mkdir()  # what is a folder is not replaced by a file
    with pytest.raises(BackupFailed, match="was not upgraded"):
        schema.upgrade(used)
    assert schema.current_revision(used) == first
    obstacle.rmdir()
    schema.upgrade(used)


def test_a_copy_is_whole_although_others_write_meanwhile(used: Database, next_version: Callable[[], str]) -> None:
    store, ending = Store(used), threading.Event()
    written: list[str] = []

    def write() -> None:
        while not ending.is_set():
            written.append(store.jobs.create(spec(name=str(len(written)))).name)

    threads = [threading.Thread(target=write) for _ in range(2)]
    for thread in threads:
        thread.start()
    next_version()
    saved = list[Path]()
    schema.upgrade(used, saved=saved.append)
    ending.set()
    for thread in threads:
        thread.join()
    restored = Database(f"sqlite:///{saved[0]}")
    with restored.read() as connection:
        assert connection.scalar(text("PRAGMA integrity_check")) == "ok"
        jobs = connection.scalar(text("SELECT count(*) FROM jobs"))
        assert connection.scalar(text("SELECT count(*) FROM events")) == jobs  # transactions are there in full
    restored.close()
