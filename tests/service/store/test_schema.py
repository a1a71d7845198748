import multiprocessing
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import inspect, text

from service.store import Database, Store, schema
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
