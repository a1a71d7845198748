"""What a supervisor sees to, with real processes."""

import os
import re
import signal
import sys
from pathlib import Path

import psutil
import pytest

from service.records import AttemptOutcome, FailureCode, JobStatus, WorkerState
from tests.workers.fleet import REAL, Fleet, eventually

SLOW = {"pause": "0.02"}


def is_gone(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


# --- a worker that stays alive ---------------------------------------------------------------------------------------


def test_a_job_succeeds_and_leaves_its_files(busy_fleet: Fleet) -> None:
    job_id = busy_fleet.submit(steps=20)
    job = busy_fleet.reaches(job_id, JobStatus.SUCCEEDED)
    assert [step for step, _ in busy_fleet.trajectory(job_id)] == list(range(20))
    assert job.result is not None
    names = {file.name for file in busy_fleet.store.jobs.files(job_id)}
    assert names == {"weights.safetensors", "result.json"}
    for file in busy_fleet.store.jobs.files(job_id):
        busy_fleet.files.fetch(file.key, busy_fleet.folder / "cache", sha256=file.sha256)
    [attempt] = busy_fleet.store.jobs.attempts(job_id)
    assert attempt.outcome is AttemptOutcome.SUCCEEDED
    assert "The job succeeded" in attempt.log_tail


def test_a_paused_and_resumed_run_is_the_same_run(busy_fleet: Fleet) -> None:
    job_id = busy_fleet.submit(steps=60, labels=SLOW)
    busy_fleet.steps(job_id, 10)
    busy_fleet.store.jobs.request_pause(job_id)
    paused = busy_fleet.reaches(job_id, JobStatus.PAUSED)
    assert 10 <= paused.steps_done < 60
    busy_fleet.store.jobs.request_resume(job_id)
    busy_fleet.reaches(job_id, JobStatus.SUCCEEDED)
    first, second = busy_fleet.store.jobs.attempts(job_id)
    assert first.outcome is AttemptOutcome.PAUSED
    assert second.steps_from == paused.steps_done
    assert busy_fleet.trajectory(job_id) == busy_fleet.undisturbed(steps=60)


def test_a_pause_that_is_withdrawn_interrupts_nothing(busy_fleet: Fleet) -> None:
    job_id = busy_fleet.submit(steps=4, labels={"pause": "1.0"})
    busy_fleet.steps(job_id, 1)
    busy_fleet.store.jobs.request_pause(job_id)
    eventually(lambda: "pause" in busy_fleet.orders(job_id))
    busy_fleet.store.jobs.request_resume(job_id)
    assert busy_fleet.reaches(job_id, JobStatus.SUCCEEDED).attempt == 1
    assert busy_fleet.orders(job_id) == ["pause", "go_on"]


def test_a_runner_leaves_when_its_supervisor_says_so_and_not_before(busy_fleet: Fleet) -> None:
    job_id = busy_fleet.submit(steps=60, labels=SLOW)
    busy_fleet.steps(job_id, 3)
    [worker] = busy_fleet.workers
    for number in (signal.SIGTERM, signal.SIGINT):
        worker.runners()[0].send_signal(number)
    assert busy_fleet.reaches(job_id, JobStatus.SUCCEEDED).attempt == 1


def test_a_running_job_is_cancelled(busy_fleet: Fleet) -> None:
    job_id = busy_fleet.submit(steps=100_000, labels=SLOW)
    busy_fleet.steps(job_id, 3)
    busy_fleet.store.jobs.request_cancel(job_id)
    busy_fleet.reaches(job_id, JobStatus.CANCELLED)


def test_a_job_that_does_not_listen_is_cancelled_after_the_grace(busy_fleet: Fleet) -> None:
    job_id = busy_fleet.submit(steps=100, labels={"trouble": "hang", "at": "3"})
    busy_fleet.steps(job_id, 3)
    busy_fleet.store.jobs.request_cancel(job_id)
    busy_fleet.reaches(job_id, JobStatus.CANCELLED)


def test_a_cancelled_job_that_is_checking_its_answer_is_not_waited_for(busy_fleet: Fleet) -> None:
    job_id = busy_fleet.submit(steps=5, labels={"trouble": "slow_check"})
    busy_fleet.steps(job_id, 5)
    busy_fleet.store.jobs.request_cancel(job_id)
    busy_fleet.reaches(job_id, JobStatus.CANCELLED)


def test_a_job_over_its_time_keeps_its_trajectory(busy_fleet: Fleet) -> None:
    job_id = busy_fleet.submit(steps=100_000, labels=SLOW, budget={"wall_seconds": 1.0})
    job = busy_fleet.reaches(job_id, JobStatus.FAILED)
    assert job.failure is not None
    assert job.failure.code is FailureCode.DEADLINE_EXCEEDED
    assert [step for step, _ in busy_fleet.trajectory(job_id)] == list(range(job.steps_done))


def test_a_job_that_hangs_is_stopped_as_stalled(busy_fleet: Fleet) -> None:
    job_id = busy_fleet.submit(steps=100, labels={"trouble": "hang", "at": "3"}, budget={"stall_seconds": 1.0})
    job = busy_fleet.reaches(job_id, JobStatus.FAILED)
    assert job.failure is not None
    assert job.failure.code is FailureCode.STALLED
    assert "after 3 steps" in job.failure.detail
    assert job.steps_done == 3


def test_a_job_over_its_memory_is_stopped(busy_fleet: Fleet) -> None:
    limit = 1500 * 2**20
    job_id = busy_fleet.submit(steps=100, labels={"trouble": "eat", "at": "3"}, resources={"memory_bytes": limit})
    job = busy_fleet.reaches(job_id, JobStatus.FAILED)
    assert job.failure is not None
    assert job.failure.code is FailureCode.OUT_OF_MEMORY
    held = re.search(r"held ([\d,]+) MiB", job.failure.detail)
    assert held is not None
    assert 1500 <= int(held[1].replace(",", "")) < 3000


@pytest.mark.parametrize(
    ("trouble", "code", "detail"),
    [
        ("bad_data", FailureCode.BAD_DATA, "row 7 has no target"),
        ("nan", FailureCode.DIVERGED, "no longer finite after 4 steps"),
        ("raise", FailureCode.INTERNAL, "unexpected RuntimeError"),
    ],
)
def test_a_job_that_cannot_succeed_says_why(busy_fleet: Fleet, trouble: str, code: FailureCode, detail: str) -> None:
    job_id = busy_fleet.submit(steps=100, labels={"trouble": trouble, "at": "3"})
    job = busy_fleet.reaches(job_id, JobStatus.FAILED)
    assert job.failure is not None
    assert (job.failure.code, job.failure.attempt) == (code, 1)
    assert detail in job.failure.detail
    assert "secret words" not in job.failure.detail
    [attempt] = busy_fleet.store.jobs.attempts(job_id)
    if trouble == "raise":
        assert "secret words of a library" in attempt.log_tail


def test_a_killed_runner_costs_an_attempt_and_no_step(busy_fleet: Fleet) -> None:
    job_id = busy_fleet.submit(steps=40, labels={**SLOW, "trouble": "kill", "at": "20", "once": "a"})
    busy_fleet.reaches(job_id, JobStatus.SUCCEEDED)
    first, second = busy_fleet.store.jobs.attempts(job_id)
    assert first.outcome is AttemptOutcome.LOST
    assert first.failure is not None
    assert first.failure.detail == "the job's process was killed by SIGKILL"
    assert second.steps_from >= 15
    assert busy_fleet.trajectory(job_id) == busy_fleet.undisturbed(steps=40)


def test_a_job_that_kills_every_runner_stops_at_its_attempts(busy_fleet: Fleet) -> None:
    job_id = busy_fleet.submit(steps=40, labels={"trouble": "kill", "at": "5"}, max_attempts=3)
    job = busy_fleet.reaches(job_id, JobStatus.FAILED)
    assert job.failure is not None
    assert (job.failure.code, job.attempt, job.lost_attempts) == (FailureCode.WORKER_LOST, 3, 3)


def test_workers_say_what_they_are_doing(busy_fleet: Fleet) -> None:
    job_id = busy_fleet.submit(steps=100_000, labels=SLOW)

    def only_worker() -> tuple[WorkerState, str | None]:
        [worker] = busy_fleet.store.workers.list(timeout_seconds=60.0)
        return worker.state, worker.job_id

    eventually(lambda: only_worker() == (WorkerState.BUSY, job_id))
    busy_fleet.store.jobs.request_cancel(job_id)
    eventually(lambda: only_worker() == (WorkerState.IDLE, None))


# --- workers that are treated badly ----------------------------------------------------------------------------------


def test_a_drained_and_resumed_run_is_the_same_run(fleet: Fleet) -> None:
    first = fleet.worker()
    job_id = fleet.submit(steps=60, labels=SLOW)
    fleet.steps(job_id, 10)
    first.drain()
    assert first.process.wait(20) == 0
    drained = fleet.job(job_id)
    assert drained.status is JobStatus.QUEUED
    assert drained.lost_attempts == 0
    fleet.worker()
    fleet.reaches(job_id, JobStatus.SUCCEEDED)
    assert fleet.store.jobs.attempts(job_id)[1].steps_from == drained.steps_done
    assert fleet.trajectory(job_id) == fleet.undisturbed(steps=60)

    def states() -> set[WorkerState]:
        return {worker.state for worker in fleet.store.workers.list(timeout_seconds=60.0)}

    eventually(lambda: states() == {WorkerState.OFFLINE, WorkerState.IDLE})


def test_a_runner_dies_with_its_supervisor_and_the_job_goes_on_elsewhere(tmp_path: Path) -> None:
    with Fleet(tmp_path, lease_seconds=4.0) as fleet:
        worker = fleet.worker()
        job_id = fleet.submit(steps=200, labels=SLOW)
        fleet.steps(job_id, 20)
        runners = worker.runners()
        assert runners
        worker.kill()
        eventually(lambda: all(is_gone(runner) for runner in runners), seconds=5.0)
        fleet.worker()
        fleet.reaches(job_id, JobStatus.SUCCEEDED)
        assert [attempt.outcome for attempt in fleet.store.jobs.attempts(job_id)] == [
            AttemptOutcome.LOST,
            AttemptOutcome.SUCCEEDED,
        ]
        assert fleet.trajectory(job_id) == fleet.undisturbed(steps=200)


def test_a_damaged_checkpoint_makes_way_for_the_one_before(fleet: Fleet) -> None:
    worker = fleet.worker()
    job_id = fleet.submit(steps=200, labels=SLOW)
    fleet.steps(job_id, 60)
    worker.drain()
    worker.process.wait(20)
    drained = fleet.job(job_id)
    newest = max(fleet.files.keys(f"jobs/{job_id}/checkpoint-"), key=lambda key: int(re.findall(r"\d+", key)[-1]))
    fleet.files.put(newest, b"damaged")
    fleet.worker()
    fleet.reaches(job_id, JobStatus.SUCCEEDED)
    lines = [str(event.body.get("text")) for event in fleet.store.jobs.events(job_id, after=0, limit=10_000)]
    assert any(f"the checkpoint of step {drained.steps_done} cannot be used" in line for line in lines)
    went_on = next(re.search(r"goes on from step (\d+)", line) for line in lines if "goes on" in line)
    assert went_on is not None
    assert 0 < int(went_on[1]) < drained.steps_done
    assert fleet.trajectory(job_id) == fleet.undisturbed(steps=200)


def test_a_job_is_not_started_over_in_silence(fleet: Fleet) -> None:
    worker = fleet.worker()
    job_id = fleet.submit(steps=200, labels=SLOW)
    fleet.steps(job_id, 60)
    worker.drain()
    worker.process.wait(20)
    for key in fleet.files.keys(f"jobs/{job_id}/checkpoint-"):
        fleet.files.put(key, b"damaged")
    fleet.worker()
    job = fleet.reaches(job_id, JobStatus.FAILED)
    assert job.failure is not None
    assert "was not started over in silence" in job.failure.detail


def test_a_worker_without_a_runner_takes_no_job(tmp_path: Path) -> None:
    broken = ("/bin/sh", "-c", f'cd {Path.cwd()} && exec {sys.executable} -c "{_BROKEN}"')
    with Fleet(tmp_path, command=broken) as fleet:
        fleet.worker()
        job_id = fleet.submit()
        eventually(lambda: fleet.log.exists() and "died before it had a job" in fleet.log.read_text())
        assert fleet.job(job_id).status is JobStatus.QUEUED


_BROKEN = (
    "from service.settings import Settings; from workers.__main__ import run_worker; "
    "run_worker(Settings(), 'cpu', command=('/bin/false',))"
)


def test_a_real_job_resumes_to_the_same_trajectory(tmp_path: Path) -> None:
    job = {
        "data": {"dataset": "builtin:breast_cancer", "target": "target"},
        "method": {"kind": "implicit", "step": {"kind": "adam"}},
    }
    with Fleet(tmp_path, command=REAL) as fleet:
        worker = fleet.worker()
        job_id = fleet.submit(steps=150, **job)
        fleet.steps(job_id, 20)
        worker.drain()
        worker.process.wait(30)
        assert fleet.job(job_id).status is JobStatus.QUEUED
        fleet.worker()
        done = fleet.reaches(job_id, JobStatus.SUCCEEDED)
        assert done.attempt == 2
        twin = fleet.submit(steps=150, **job)
        fleet.reaches(twin, JobStatus.SUCCEEDED)
        assert fleet.trajectory(job_id) == fleet.trajectory(twin)


def test_the_kernel_chooses_the_runner_when_memory_runs_out(busy_fleet: Fleet) -> None:
    job_id = busy_fleet.submit(steps=100_000, labels=SLOW)
    busy_fleet.steps(job_id, 1)
    [worker] = busy_fleet.workers
    for runner in worker.runners():
        assert int(Path(f"/proc/{runner.pid}/oom_score_adj").read_text()) >= 500
        assert os.getpgid(runner.pid) == runner.pid
    busy_fleet.store.jobs.request_cancel(job_id)
    busy_fleet.reaches(job_id, JobStatus.CANCELLED)
    assert worker.process.poll() is None
