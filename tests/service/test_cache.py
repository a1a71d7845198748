"""Copies of remote files: there while somebody uses them, and not for much longer."""

import errno
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

import pytest

from service.cache import FileCache
from service.errors import FileMissing
from service.files import FileStore, new_dataset_key, sha256_of


class Remote:
    """A store in memory that counts what is downloaded from it."""

    is_local = False

    def __init__(self) -> None:
        self.store = FileStore("memory://")
        self.downloads: list[str] = []
        self.before_download: Callable[[str], None] = lambda _: None

    def put(self, content: bytes) -> tuple[str, str]:
        """Store bytes; gives their key and their hash."""
        sha256 = sha256_of(content)
        key = new_dataset_key(sha256)
        self.store.put(key, content)
        return key, sha256

    def size(self, key: str) -> int:
        return self.store.size(key)

    def download(self, key: str, target: BinaryIO) -> str:
        self.downloads.append(key)
        self.before_download(key)
        return self.store.download(key, target)


@pytest.fixture
def remote() -> Remote:
    return Remote()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def cache_of(remote: Remote, folder: Path, *, most_bytes: int = 1 << 30, most_days: float = 30.0) -> FileCache:
    return FileCache(remote, folder, most_bytes=most_bytes, most_days=most_days)  # type: ignore[arg-type]


def used(cache: FileCache, key: str, sha256: str) -> bytes:
    with cache.held(key, sha256=sha256) as path:
        return path.read_bytes()


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_file_is_downloaded_once_and_used_often(remote: Remote, folder: Path) -> None:
    key, sha256 = remote.put(b"rows")
    for _ in range(3):  # other processes have caches of their own in the same folder
        assert used(cache_of(remote, folder), key, sha256) == b"rows"
    assert remote.downloads == [key]
    assert names(folder) == {sha256}
    # The same bytes under another key are the same copy.
    again, _ = remote.put(b"rows")
    assert used(cache_of(remote, folder), again, sha256) == b"rows"
    assert remote.downloads == [key]


def test_files_in_a_folder_of_this_machine_are_not_copied(tmp_path: Path, folder: Path) -> None:
    store, sha256 = FileStore((tmp_path / "files").as_uri()), sha256_of(b"rows")
    key = new_dataset_key(sha256)
    store.put(key, b"rows")
    cache = FileCache(store, folder, most_bytes=0, most_days=0.0)
    with cache.held(key, sha256=sha256) as path:
        assert path == tmp_path / "files" / key
    cache.prune()
    assert path.exists()
    assert not folder.exists()


def test_a_damaged_copy_is_downloaded_again(remote: Remote, folder: Path) -> None:
    key, sha256 = remote.put(b"rows")
    cache = cache_of(remote, folder)
    used(cache, key, sha256)
    (folder / sha256).write_bytes(b"rot")
    assert used(cache, key, sha256) == b"rows"
    assert remote.downloads == [key, key]
    assert names(folder) == {sha256}


def test_what_is_missing_or_has_changed_in_the_store_leaves_nothing_here(remote: Remote, folder: Path) -> None:
    cache = cache_of(remote, folder)
    key, _ = remote.put(b"rows")
    other = sha256_of(b"what was stored")
    with pytest.raises(FileMissing, match="bytes have changed"):
        used(cache, key, other)
    remote.store.delete([key])
    with pytest.raises(FileMissing):
        used(cache, key, other)
    assert names(folder) == set()


def test_a_hash_that_is_none_never_becomes_a_path(remote: Remote, folder: Path) -> None:
    key, _ = remote.put(b"rows")
    with pytest.raises(ValueError, match="SHA-256"):
        used(cache_of(remote, folder), key, "../../evil")


def test_what_was_used_longest_ago_makes_room_first(remote: Remote, folder: Path) -> None:
    cache = cache_of(remote, folder, most_bytes=300)
    first, second, third, fourth = (remote.put(bytes([number]) * 100) for number in range(4))
    for number, file in enumerate((first, second, third)):
        used(cache, *file)
        moment = time.time() - 3600 + number
        os.utime(folder / file[1], (moment, moment))
    used(cache, *first)
    used(cache, *fourth)
    assert names(folder) == {first[1], third[1], fourth[1]}


def test_room_is_made_before_it_is_needed(remote: Remote, folder: Path) -> None:
    cache = cache_of(remote, folder, most_bytes=150)
    first, second = remote.put(b"a" * 100), remote.put(b"b" * 100)
    used(cache, *first)
    seen: list[set[str]] = []
    remote.before_download = lambda _: seen.append(names(folder))
    used(cache, *second)
    assert seen == [{f".lock-{second[1]}", f".part-{second[1]}"}]


def test_copies_that_nobody_used_for_long_are_removed(remote: Remote, folder: Path) -> None:
    cache = cache_of(remote, folder, most_days=2.0)
    old, young = remote.put(b"old"), remote.put(b"young")
    for file, days in ((old, 2.1), (young, 1.9)):
        used(cache, *file)
        moment = time.time() - days * 86_400
        os.utime(folder / file[1], (moment, moment))
    cache.prune()
    assert names(folder) == {young[1]}


def test_what_is_in_use_is_never_removed(remote: Remote, folder: Path) -> None:
    greedy = cache_of(remote, folder, most_bytes=0, most_days=0.0)
    one, other = remote.put(b"one"), remote.put(b"other")
    with ExitStack() as stack:
        path = stack.enter_context(greedy.held(one[0], sha256=one[1]))
        stack.enter_context(greedy.held(one[0], sha256=one[1]))
        used(greedy, *other)
        os.utime(path, (0, 0))
        greedy.prune()
        assert names(folder) == {one[1]}
        assert path.read_bytes() == b"one"
    greedy.prune()
    assert names(folder) == set()


def test_workers_that_want_the_same_file_download_it_once(remote: Remote, folder: Path) -> None:
    key, sha256 = remote.put(os.urandom(100_000))
    remote.before_download = lambda _: time.sleep(0.05)
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda _: len(used(cache_of(remote, folder), key, sha256)), range(8)))
    assert found == [100_000] * 8
    assert remote.downloads == [key]


def test_users_and_pruners_at_once_never_lose_a_file_that_is_in_use(remote: Remote, folder: Path) -> None:
    contents = [bytes([number]) * 1000 for number in range(4)]
    files = [remote.put(content) for content in contents]

    def work(seed: int) -> None:
        dice = random.Random(seed)
        cache = cache_of(remote, folder, most_bytes=dice.choice([0, 1500]))
        for _ in range(150):
            number = dice.randrange(4)
            match dice.randrange(3):
                case 0:
                    cache.prune()
                case _:
                    key, sha256 = files[number]
                    with cache.held(key, sha256=sha256) as path:
                        for _ in range(3):  # opened anew each time, as readers do
                            assert path.read_bytes() == contents[number]

    with ThreadPoolExecutor(6) as threads:
        for done in [threads.submit(work, seed) for seed in range(6)]:
            done.result()
    assert len(remote.downloads) > 10  # copies did come and go
    cache_of(remote, folder, most_bytes=0).prune()
    assert names(folder) == set()


def test_a_full_disk_is_freed_of_all_that_nobody_uses(remote: Remote, folder: Path) -> None:
    cache = cache_of(remote, folder)
    idle, busy, wanted = (remote.put(content) for content in (b"idle", b"busy", b"wanted"))
    used(cache, *idle)
    with cache.held(busy[0], sha256=busy[1]):

        def fill(_: str) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        remote.before_download = fill
        with pytest.raises(OSError, match="No space"):
            used(cache, *wanted)
        assert names(folder) == {busy[1]}
        remote.before_download = lambda _: None
        assert used(cache, *wanted) == b"wanted"


KILLED = """
import sys, time
from pathlib import Path
from service.cache import FileCache
class Remote:
    is_local = False
    def size(self, key): return 10
    def download(self, key, target):
        if key == "slow":
            target.write(b"half"); target.flush()
            print("ready", flush=True); time.sleep(600)
        target.write(b"rows")
        return sys.argv[2]
with FileCache(Remote(), Path(sys.argv[1]), most_bytes=10**9, most_days=9.0).held(sys.argv[3], sha256=sys.argv[2]):
    print("ready", flush=True); time.sleep(600)
"""


@pytest.mark.parametrize("doing", ["slow", "quick"])
def test_a_killed_process_holds_nothing_and_leaves_nothing(remote: Remote, folder: Path, doing: str) -> None:
    key, sha256 = remote.put(b"rows")
    cache = cache_of(remote, folder, most_bytes=0)
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(folder), sha256, doing],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        cache.prune()
        expected = {f".lock-{sha256}", f".part-{sha256}"} if doing == "slow" else {sha256}
        assert names(folder) == expected  # another process is at it
        process.send_signal(signal.SIGKILL)
    assert used(cache, key, sha256) == b"rows"
    cache.prune()
    assert names(folder) == set()
