"""How SQLite is made to serve many processes: one writer at a time, and nobody hears of it."""

import random
import sqlite3
import time
from pathlib import Path
from typing import Final

import psutil
from sqlalchemy import Connection, Engine, event
from sqlalchemy.pool import ConnectionPoolEntry

from service.errors import StoreUnavailable

_READ_WAIT_MS: Final = 10_000
"""Reading meets a lock only while another process recovers the log of one that crashed."""

_WRITE_WAIT_MS: Final = 20
"""SQLite's own waiting sleeps longer and longer, up to 100 ms: it starves. Beyond this we take turns ourselves."""

_LOG_BYTES: Final = 64 * 2**20
"""To this the log shrinks again after readers have kept it from being written back."""

_NETWORK_FILE_SYSTEMS: Final = frozenset({"nfs", "nfs4", "cifs", "smbfs", "smb3", "fuse.sshfs", "9p"})


def refuse_network_folder(folder: Path) -> None:
    """Raise when `folder` lies on a network file system, whose locks do not keep SQLite's promises.

    Raises:
        ValueError: it does; names the file system.
    """
    mounts = psutil.disk_partitions(all=True)
    parents = [folder.resolve(), *folder.resolve().parents]
    nearest = next((mount for parent in parents for mount in mounts if Path(mount.mountpoint) == parent), None)
    if nearest is not None and nearest.fstype in _NETWORK_FILE_SYSTEMS:
        raise ValueError(
            f"the database's folder lies on {nearest.fstype}, where SQLite loses data: "
            "choose a local folder, or PostgreSQL"
        )


def prepare(engine: Engine, *, busy_seconds: float) -> None:
    """Give connections of `engine` explicit transactions and the write-ahead log.

    Transactions that write begin with `BEGIN IMMEDIATE`: an upgrade from reading to writing would fail
    at once with SQLITE_BUSY, whatever the timeout. The option `begin` of a connection says which it is:
    `read`, `write`, or `durable` (a write that also survives a loss of power).

    Args:
        engine: of a SQLite database in a file.
        busy_seconds: how long a writer waits for its turn before it gives up.
    """

    @event.listens_for(engine, "connect")
    def connect(connection: sqlite3.Connection, _: ConnectionPoolEntry) -> None:
        connection.isolation_level = None  # the driver begins nothing by itself
        connection.execute(f"PRAGMA busy_timeout = {_READ_WAIT_MS}")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(f"PRAGMA journal_size_limit = {_LOG_BYTES}")
        connection.execute("PRAGMA foreign_keys = ON")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        raw: sqlite3.Connection | None = connection.connection.driver_connection
        assert raw is not None  # noqa: S101  (it has just been taken from the pool)
        mode = connection.get_execution_options().get("begin", "read")
        if mode == "read":
            raw.execute("BEGIN")
            return
        # NORMAL loses the last commits with the power, never consistency; FULL syncs the log at each commit.
        raw.execute(f"PRAGMA synchronous = {'FULL' if mode == 'durable' else 'NORMAL'}")
        _begin_immediate(raw, busy_seconds)


def _begin_immediate(connection: sqlite3.Connection, busy_seconds: float) -> None:
    deadline = time.monotonic() + busy_seconds
    connection.execute(f"PRAGMA busy_timeout = {_WRITE_WAIT_MS}")
    try:
        while True:
            try:
                connection.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF not in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                    raise
                if time.monotonic() > deadline:
                    raise StoreUnavailable from error
                time.sleep(random.uniform(0.0002, 0.002))  # noqa: S311  (so that waiters do not march in step)
            else:
                return
    finally:
        connection.execute(f"PRAGMA busy_timeout = {_READ_WAIT_MS}")
