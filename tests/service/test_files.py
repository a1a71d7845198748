"""Every file store keeps the same promises, whatever lies behind its URL."""

import hashlib
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.errors import FileMissing
from service.files import FileStore, checked_key, job_key, new_dataset_key, sha256_of

JOB = "job_01j9zzzzzzzzzzzzzzzzzzzzzz"


@pytest.fixture(params=["folder", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> FileStore:
    return FileStore((tmp_path / "a store").as_uri() if request.param == "folder" else "memory://")


def test_what_was_put_is_read_back(store: FileStore, tmp_path: Path) -> None:
    content = bytes(range(256)) * 9000  # more than two pieces
    source = tmp_path / "source"
    source.write_bytes(content)
    key = job_key(JOB, "weights.safetensors")
    assert store.put(key, source) == (hashlib.sha256(content).hexdigest(), len(content))
    assert store.size(key) == len(content)
    assert b"".join(store.open_range(key)) == content
    assert b"".join(store.open_range(key, 1_500_000, 2_100_000)) == content[1_500_000:2_100_000]
    assert b"".join(store.open_range(key, 7, 7)) == b""


def test_bytes_and_files_are_stored_alike_and_a_second_put_replaces(store: FileStore) -> None:
    key = job_key(JOB, "result.json")
    store.put(key, b"first, and longer")
    sha256, size_bytes = store.put(key, b"second")
    assert (sha256, size_bytes) == (sha256_of(b"second"), 6)
    assert b"".join(store.open_range(key)) == b"second"


def test_an_empty_file_is_a_file(store: FileStore) -> None:
    key = job_key(JOB, "empty")
    assert store.put(key, b"") == (sha256_of(b""), 0)
    assert b"".join(store.open_range(key)) == b""


def test_absence_is_noticed_before_the_first_piece(store: FileStore, tmp_path: Path) -> None:
    key = job_key(JOB, "nothing")
    with pytest.raises(FileMissing):
        store.open_range(key)
    with pytest.raises(FileMissing):
        store.size(key)
    with pytest.raises(FileMissing):
        store.fetch(key, tmp_path, sha256="0" * 64)


@pytest.mark.parametrize(("start", "end"), [(-1, 2), (3, 2), (0, 7), (7, 8)])
def test_a_range_outside_of_the_file_is_refused(store: FileStore, start: int, end: int) -> None:
    key = job_key(JOB, "six")
    store.put(key, b"sixsix")
    with pytest.raises(ValueError, match="do not lie within"):
        store.open_range(key, start, end)


def test_deleting_twice_is_deleting_once(store: FileStore) -> None:
    kept, gone = job_key(JOB, "kept"), job_key(JOB, "gone")
    store.put(kept, b"kept")
    store.put(gone, b"gone")
    store.delete([gone, gone])
    store.delete([gone])
    assert list(store.keys()) == [kept]
    store.delete([kept])
    assert list(store.keys()) == []
    store.put(kept, b"kept again")
    assert store.size(kept) == 10


def test_keys_are_found_by_any_prefix(store: FileStore) -> None:
    content = b"a dataset"
    keys = {job_key(JOB, "result.json"), job_key(JOB, "result-1.json"), new_dataset_key(sha256_of(content))}
    for key in keys:
        store.put(key, content)
    assert set(store.keys()) == keys
    assert set(store.keys("jobs/")) == {key for key in keys if key.startswith("jobs/")}
    assert set(store.keys(f"jobs/{JOB}/result.")) == {job_key(JOB, "result.json")}
    assert set(store.keys("nowhere/")) == set()


def test_a_dataset_can_only_be_stored_under_its_own_hash(store: FileStore) -> None:
    key = new_dataset_key(sha256_of(b"rows"))
    with pytest.raises(ValueError, match="SHA-256"):
        store.put(key, b"other rows")
    assert list(store.keys()) == []
    store.put(key, b"rows")


def test_a_fetched_file_is_the_file(store: FileStore, tmp_path: Path) -> None:
    content = os.urandom(100_000)
    key = new_dataset_key(sha256_of(content))
    store.put(key, content)
    path = store.fetch(key, tmp_path / "cache", sha256=sha256_of(content))
    assert path.read_bytes() == content
    assert store.fetch(key, tmp_path / "cache", sha256=sha256_of(content)) == path


def test_a_file_that_changed_in_the_store_is_not_handed_out(store: FileStore, tmp_path: Path) -> None:
    key = job_key(JOB, "checkpoint")
    store.put(key, b"what a damaged disk made of it")
    with pytest.raises(FileMissing, match="bytes have changed"):
        store.fetch(key, tmp_path / "cache", sha256=sha256_of(b"what was stored"))


def test_a_put_that_fails_leaves_nothing_and_keeps_what_was_there(tmp_path: Path) -> None:
    store = FileStore(tmp_path.as_uri())
    key = job_key(JOB, "result.json")
    store.put(key, b"before")
    with pytest.raises(FileNotFoundError):
        store.put(key, tmp_path / "no such file")
    assert b"".join(store.open_range(key)) == b"before"
    assert list((tmp_path / ".aside").iterdir()) == []


def test_what_a_crash_left_half_written_is_removed_a_day_later(tmp_path: Path) -> None:
    FileStore(tmp_path.as_uri())
    old, new = tmp_path / ".aside" / "old", tmp_path / ".aside" / "new"
    old.write_bytes(b"half")
    new.write_bytes(b"half")
    os.utime(old, (0, 0))
    store = FileStore(tmp_path.as_uri())
    assert list((tmp_path / ".aside").iterdir()) == [new]
    os.utime(new, (0, 0))
    store.tidy()
    assert list((tmp_path / ".aside").iterdir()) == []
    assert list(store.keys()) == []


def test_a_reader_finishes_although_the_file_is_deleted(tmp_path: Path) -> None:
    store = FileStore(tmp_path.as_uri())
    key = job_key(JOB, "long")
    store.put(key, b"x" * 3_000_000)
    pieces = store.open_range(key)
    first = next(pieces)
    store.delete([key])
    assert len(first) + sum(map(len, pieces)) == 3_000_000


BAD_KEYS = [
    "",
    "/etc/passwd",
    "jobs/../../etc/passwd",
    f"jobs/{JOB}/..",
    f"jobs/{JOB}/.hidden",
    f"jobs/{JOB}/a/b",
    f"jobs/{JOB}/a\x00b",
    f"jobs/{JOB}/a\n",
    f"jobs/{JOB}/é",
    f"jobs/{JOB}/" + "a" * 129,
    "jobs/JOB/a",
    "datasets/ab/cd",
    f"datasets/ab/{'cd' * 32}",
    f"datasets/AB/{'AB' * 32}",
]


@pytest.mark.parametrize("key", BAD_KEYS)
def test_a_key_that_this_service_does_not_make_is_refused(store: FileStore, tmp_path: Path, key: str) -> None:
    for use in (
        lambda: store.put(key, b""),
        lambda: store.open_range(key),
        lambda: store.size(key),
        lambda: store.delete([key]),
        lambda: store.fetch(key, tmp_path, sha256="0" * 64),
    ):
        with pytest.raises(ValueError, match="not a key"):
            use()


def test_a_folder_that_was_swapped_for_a_link_is_not_followed_out_of_the_store(tmp_path: Path) -> None:
    store = FileStore((tmp_path / "store").as_uri())
    (tmp_path / "outside").mkdir()
    (tmp_path / "store" / "jobs").mkdir()
    (tmp_path / "store" / "jobs" / JOB).symlink_to(tmp_path / "outside")
    with pytest.raises(ValueError, match="out of the file store"):
        store.put(job_key(JOB, "a"), b"")


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(max_size=40))
def test_no_text_is_a_key_that_leaves_the_folder(tmp_path: Path, text: str) -> None:
    for key in (text, f"jobs/{text}", f"jobs/{JOB}/{text}"):
        try:
            checked_key(key)
        except ValueError:
            continue
        assert (tmp_path / key).resolve().is_relative_to(tmp_path.resolve())


@pytest.mark.parametrize("url", ["", "folder", "file://host/share", "gopher://x/y", "file:relative"])
def test_a_url_that_names_no_store_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="URL"):
        FileStore(url)


def test_a_store_answers_a_ping(store: FileStore) -> None:
    store.ping()


def test_a_store_that_cannot_be_written_to_fails_its_ping(tmp_path: Path) -> None:
    store = FileStore(tmp_path.as_uri())
    (tmp_path / ".aside").rmdir()
    with pytest.raises(OSError, match="No such file"):
        store.ping()


def test_a_hash_that_is_none_never_becomes_a_path(tmp_path: Path) -> None:
    store = FileStore("memory://")
    store.put(job_key(JOB, "a"), b"a")
    with pytest.raises(ValueError, match="64 hexadecimal"):
        store.fetch(job_key(JOB, "a"), tmp_path, sha256="../../evil")
