"""The small parts of a worker."""

import logging
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from service.records import Checkpoint, Claim, FailureCode, Lease
from service.spec.job import JobSpec
from tests.workers.fleet import ROOT
from workers.attempt import Limits
from workers.checkpoint import Seal
from workers.data.errors import BadData
from workers.devices import Device, find_device, runner_environment
from workers.failures import CheckpointsUnreadable, Diverged, Late, cause_of
from workers.learn.cost import Cost
from workers.learn.errors import LearnError
from workers.learn.method import Status
from workers.messages import Assignment, Phase, Report
from workers.recorder import Snapshot
from workers.saver import Saver
from workers.tail import Tail


def test_an_assignment_survives_the_pipe() -> None:
    claim = Claim(
        lease=Lease("job_1", 3),
        spec={"name": "ü\n", "budget": {"outer_steps": 3}},
        checkpoints=(Checkpoint("jobs/job_1/checkpoint-2-7.safetensors", "0" * 64, 7),),
        steps_done=9,
        run_seconds=0.1,
        elapsed_s=0.05,
    )
    assignment = Assignment(claim, "cuda", 4)
    line = assignment.to_line()
    assert line.count(b"\n") == 1
    assert Assignment.from_line(line) == assignment
    with pytest.raises(ValidationError):
        Assignment.from_line(b"{}\n")


def test_a_report_survives_the_pipe() -> None:
    report = Report(Phase.STEPPING, 12)
    assert Report.from_line(report.to_line()) == report
    with pytest.raises(ValueError, match="nonsense"):
        Report.from_line(b"nonsense 1")


# --- devices ---------------------------------------------------------------------------------------------------------

GPUS = [Device("0", "first", "GPU-a"), Device("1", "second", "GPU-b")]


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.devices._gpus", lambda: list(GPUS))


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize(
    ("wanted", "visible", "name", "uuid"),
    [
        ("auto", None, "cuda:0", "GPU-a"),
        ("cuda", None, "cuda:0", "GPU-a"),
        ("cuda:1", None, "cuda:1", "GPU-b"),
        ("cpu", None, "cpu", None),
        ("auto", "", "cpu", None),
        ("cuda:0", "1", "cuda:0", "GPU-b"),
        ("cuda:1", "GPU-b, 0", "cuda:1", "GPU-a"),
        ("auto", "9,0", "cpu", None),
        ("auto", "MIG-x", "cuda:0", "MIG-x"),
    ],
)
def test_a_worker_is_bound_to_one_device(wanted: str, visible: str | None, name: str, uuid: str | None) -> None:
    environment = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    device = find_device(wanted, environment)
    assert (device.name, device.uuid) == (name, uuid)
    assert runner_environment(environment, device, threads=2)["CUDA_VISIBLE_DEVICES"] == (uuid or "")


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize("wanted", ["cuda:2", "gpu", "cuda:-1", "cuda:0 ", ""])
def test_a_device_that_is_not_there_is_refused(wanted: str) -> None:
    with pytest.raises(ValueError, match=r"device is|there is no"):
        find_device(wanted, {})


# --- limits and failures ---------------------------------------------------------------------------------------------


def test_earlier_attempts_count_against_the_time() -> None:
    spec = JobSpec.model_validate(
        {"data": {"dataset": "builtin:wine", "target": "target"}, "budget": {"wall_seconds": 60.0}}
    )
    limits = Limits.of(spec, run_seconds=45.0, memory_bytes=7, grace_seconds=1.0)
    assert (limits.wall_seconds, limits.stall_seconds, limits.memory_bytes) == (15.0, 600.0, 7)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (BadData("no rows"), FailureCode.BAD_DATA),
        (Diverged("no"), FailureCode.DIVERGED),
        (Late("late"), FailureCode.DEADLINE_EXCEEDED),
        (MemoryError(), FailureCode.OUT_OF_MEMORY),
        (torch.OutOfMemoryError("CUDA out of memory"), FailureCode.OUT_OF_MEMORY),
        (LearnError("no such part"), FailureCode.INTERNAL),
        (CheckpointsUnreadable("all damaged"), FailureCode.INTERNAL),
        (OSError("/secret/path"), FailureCode.INTERNAL),
        (KeyError("/secret/path"), FailureCode.INTERNAL),
    ],
)
def test_every_error_has_a_code_and_no_secret(error: Exception, code: FailureCode) -> None:
    cause = cause_of(error)
    assert cause.code is code
    assert cause.detail
    assert "secret" not in cause.detail


def test_torchs_error_over_host_memory_is_known() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**50, dtype=torch.float64)
    assert cause_of(caught.value).code is FailureCode.OUT_OF_MEMORY


def test_a_tail_keeps_the_end_and_the_traceback() -> None:
    tail = Tail()
    log = logging.getLogger("tests.tail")
    log.addHandler(tail)
    try:
        for number in range(1000):
            log.warning("A step was made", extra={"step": number})
        try:
            raise ValueError("words")
        except ValueError:
            log.exception("It failed")
    finally:
        log.removeHandler(tail)
    text = tail.text()
    assert len(text) <= 16_384
    assert "A step was made step=999" in text
    assert "step=0\n" not in text
    assert text.endswith("ValueError: words")


# --- when states are saved -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Counted:
    step: int
    cost: Cost


class Clock:
    """Moves when it is told to, and by `tick` whenever it is read."""

    def __init__(self, tick: float = 0.0) -> None:
        self.now = 100.0
        self.tick = tick

    def __call__(self) -> float:
        self.now += self.tick
        return self.now


def saver(saved: list[Snapshot], clock: Clock, *, steps: int, seconds: float) -> Saver:
    return Saver(saved.append, Seal("a", 0, "running", 1, "cpu"), steps=steps, seconds=seconds, clock=clock)


def test_states_are_saved_by_steps_but_not_more_often_than_it_pays() -> None:
    clock, saved = Clock(), list[Snapshot]()
    made = saver(saved, clock, steps=10, seconds=30.0)
    for step in range(1, 301):
        clock.now += 0.011
        made.consider(Counted(step, Cost()), Status.RUNNING)
    assert [snapshot.step for snapshot in saved] == [91, 182, 273]  # a second apart: less is not worth saving


def test_slow_steps_are_saved_by_time() -> None:
    clock, saved = Clock(), list[Snapshot]()
    made = saver(saved, clock, steps=10, seconds=30.0)
    for step in range(1, 7):
        clock.now += 20.0
        made.consider(Counted(step, Cost()), Status.RUNNING)
    assert [snapshot.step for snapshot in saved] == [2, 4, 6]


def test_saving_takes_a_fiftieth_of_the_time() -> None:
    clock, saved = Clock(tick=1.0), list[Snapshot]()  # to look takes a second, and so does to save
    made = saver(saved, clock, steps=1, seconds=30.0)
    for step in range(1, 160):
        made.consider(Counted(step, Cost()), Status.RUNNING)
    assert [snapshot.step for snapshot in saved] == [1, 51, 101, 151]


def test_the_last_state_is_saved_only_once() -> None:
    clock, saved = Clock(), list[Snapshot]()
    made = saver(saved, clock, steps=10, seconds=30.0)
    made.consider(Counted(1, Cost()), Status.CONVERGED, is_last=True)
    assert saved == []  # nothing would be lost
    clock.now += 5.0
    made.consider(Counted(1, Cost()), Status.CONVERGED, is_last=True)
    made.save(Counted(1, Cost()), Status.CONVERGED)
    assert [snapshot.step for snapshot in saved] == [1]


# --- processes -------------------------------------------------------------------------------------------------------


def test_a_spare_waits_without_touching_cuda_and_ends_with_its_pipe(tmp_path: Path) -> None:
    spare = subprocess.run(
        [sys.executable, "-m", "workers.spare", str(os.getpid())],
        cwd=ROOT,
        env={"PATH": "/usr/bin", "HYPERDIAL_DATA_DIR": str(tmp_path), "HOME": str(tmp_path)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=True,
        timeout=120,
    )
    assert spare.stdout == b"ready 0\n"


def test_a_runner_whose_parent_is_gone_ends_at_once() -> None:
    found = subprocess.run([sys.executable, "-m", "workers.spare", "1"], cwd=ROOT, check=False, timeout=60)
    assert found.returncode == 1
