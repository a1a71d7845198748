"""One job from its claim to its verdict, in a process of its own: the only place where maths meets storage."""

import contextlib
import json
import logging
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final, TypeVar, assert_never, final

import torch
import torch.utils.deterministic

from service import logs
from service.builtin import builtin_dataset
from service.cache import make_cache
from service.errors import FileMissing, LeaseLost, NotFound, StoreUnavailable
from service.files import FileStore, job_key
from service.records import AttemptOutcome, Claim, DatasetRecord, FileRecord, JobStatus, JsonObject, Lease
from service.settings import Settings
from service.spec.job import JobSpec
from service.store import Database, NewPoint, Store
from workers.checkpoint import Seal, spec_hash
from workers.data.errors import BadData
from workers.failures import Diverged, Late, cause_of
from workers.learn.method import State, Status, run
from workers.messages import LATE, Assignment, Order, Phase
from workers.parent import Parent
from workers.recorder import Recorder
from workers.resume import Saved, newest_good
from workers.saver import Saver
from workers.spool import Spool, spool_folder
from workers.study import BeginStudy
from workers.tail import Tail

log = logging.getLogger(__name__)

T = TypeVar("T")

_RETRY_SECONDS: Final = 0.25

_FILE_STORE_SECONDS: Final = 900.0
"""How long a file store may be away when the job cannot go on without it."""


class Leave(Exception):
    """The job is let go before its end, saved."""

    def __init__(self, outcome: AttemptOutcome) -> None:
        """Keep why."""
        Exception.__init__(self, outcome.value)
        self.outcome = outcome


@final
class Runner:
    """Does one job."""

    def __init__(self, settings: Settings, parent: Parent, tail: Tail, begin: BeginStudy) -> None:
        """Take everything; connect to nothing yet.

        Args:
            settings: numbers, and where everything is.
            parent: gives orders, hears reports.
            tail: the end of this process's log.
            begin: makes a study of a job.
        """
        self._settings = settings
        self._parent = parent
        self._tail = tail
        self._begin = begin
        self._store = Store(Database(settings.database, pool_size=2))
        self._files = FileStore(settings.files)
        self._cache = make_cache(self._files, settings)
        self._in_use = contextlib.ExitStack()

    def execute(self, assignment: Assignment) -> None:
        """Bring the job to its verdict. Whatever goes wrong ends here, except for a GPU that broke.

        Raises:
            torch.AcceleratorError: the process is of no further use; its supervisor sees to the job.
        """
        lease = assignment.claim.lease
        leases = self._store.leases
        with logs.about_job(lease.job_id):
            try:
                self._learn(assignment)
            except LeaseLost:
                log.warning("The job belongs to another attempt by now; nothing more was written")
            except Leave as leave:
                log.info("The job was let go", extra={"outcome": leave.outcome.value})
                outcome = leave.outcome
                self._write_verdict(lambda: leases.release(lease, outcome, log_tail=self._tail.text()))
            except torch.AcceleratorError:
                raise
            except Exception as error:
                cause = cause_of(error)
                log.exception("The job failed", extra={"code": cause.code.value})
                self._write_verdict(
                    lambda: leases.fail(
                        lease, cause.code, cause.detail, retryable=cause.retryable, log_tail=self._tail.text()
                    )
                )

    def _learn(self, assignment: Assignment) -> None:
        claim, device, settings = assignment.claim, assignment.device, self._settings
        began = time.monotonic()

        def elapsed() -> float:
            return max(claim.run_seconds, claim.elapsed_s) + time.monotonic() - began

        spec = JobSpec.model_validate_json(json.dumps(claim.spec))
        dataset, path = self._dataset(spec.data.dataset)
        weights = None if spec.weights_dataset is None else self._dataset(spec.weights_dataset)[1]
        _make_repeatable(assignment.threads)
        study = self._begin(spec, dataset, path, device=device, weights=weights)
        method, problem = study.method, study.problem

        saved: Saved[State] | None = newest_good(
            claim, method.state_type, self._files, device=device, insist=self._insist_on_files
        )
        if saved is None:
            state = method.init(problem, seed=spec.seed)
            seal = Seal(spec_hash(claim.spec), state.step, Status.RUNNING.value, assignment.threads, device)
        else:
            state, seal = saved.state, replace(saved.seal, device=device)
            _make_repeatable(seal.threads)
        status = Status(seal.status)

        with contextlib.closing(self._recorder(claim)) as recorder:
            saver = Saver(
                recorder.checkpoint, seal, steps=settings.checkpoint_steps, seconds=settings.checkpoint_seconds
            )
            if saved is not None:
                for sentence in (*saved.refused, f"attempt {claim.lease.attempt} goes on from step {state.step}"):
                    recorder.note(sentence)

            self._parent.report(Phase.STEPPING, state.step)
            steps = run(method, problem, state, max_steps=spec.budget.outer_steps if status is Status.RUNNING else 0)
            for state, point in steps:
                status = point.status
                if point.step >= claim.steps_done:  # the others were recorded before a crash
                    recorder.point(NewPoint(point.step, elapsed(), study.point(point)), wait=self._parent.waiting)
                self._parent.report(Phase.STEPPING, state.step)
                saver.consider(state, status)
                self._obey(recorder, saver, state, status)

            if status is Status.DIVERGED:
                recorder.settle(wait=self._parent.waiting, points_only=True)
                raise Diverged(f"the losses were no longer finite after {state.step} steps")

            self._parent.report(Phase.CHECKING, state.step)
            saver.consider(state, status, is_last=True)
            recorder.note(f"{status} after {state.step} steps" if status is Status.CONVERGED else "the steps are done")
            conclusion = study.conclude(state)
            files = self._stored(claim.lease, conclusion.files())
            self._obey(recorder, saver, state, status)
            result = conclusion.result(wall_seconds=elapsed(), peak_memory_bytes=_peak_memory_bytes(), files=files)
            files += self._stored(claim.lease, dict([conclusion.result_file(result)]))
            recorder.settle(wait=self._parent.waiting, points_only=True)
        log.info("The job succeeded", extra={"steps": state.step})
        self._succeed(claim.lease, result, files)

    def _obey(self, recorder: Recorder, saver: Saver, state: State, status: Status) -> None:
        """Leave, with everything saved, if the supervisor or the job's status wants it."""
        order = self._parent.order or (None if self._parent.has_ordered else _meant_by(recorder.status))
        if order is None or order is Order.GO_ON:
            return
        saver.save(state, status)
        recorder.settle(wait=self._parent.waiting)
        match order:
            case Order.DEADLINE:
                raise Late(LATE)
            case Order.PAUSE:
                raise Leave(AttemptOutcome.PAUSED)
            case Order.CANCEL:
                raise Leave(AttemptOutcome.CANCELLED)
            case Order.DRAIN:
                raise Leave(AttemptOutcome.DRAINED)
            case _:
                assert_never(order)

    def _succeed(self, lease: Lease, result: JsonObject, files: Sequence[FileRecord]) -> None:
        written = self._write_verdict(
            lambda: self._store.leases.succeed(lease, result=result, files=files, log_tail=self._tail.text())
        )
        # A verdict that was refused may have been written by a try before, whose answer was lost with the connection:
        # the files are then needed; if they are not, they are removed like all that was stored and is not named.
        with contextlib.suppress(OSError):  # what is left over costs only space
            if written:  # checkpoints, and whatever attempts left that died between storing and recording
                self._files.delete(set(self._files.keys(f"jobs/{lease.job_id}/")) - {file.key for file in files})

    def _stored(self, lease: Lease, files: Mapping[str, bytes]) -> list[FileRecord]:
        # The attempt is part of the name: one that lost its lease overwrites nothing.
        keys = {name: job_key(lease.job_id, f"{lease.attempt}-{name}") for name in files}
        expect, seconds = self._store.leases.expect_files, self._settings.lease_seconds
        self._insist_on_store(lambda: expect(lease, list(keys.values()), lease_seconds=seconds))
        records = []
        for name, data in files.items():
            sha256, size_bytes = self._insist_on_files(partial(self._files.put, keys[name], data))
            records.append(FileRecord(name=name, key=keys[name], sha256=sha256, size_bytes=size_bytes))
        return records

    def _write_verdict(self, write: Callable[[], object]) -> bool:
        """Write, as soon as the database can take it; return False if the job is another attempt's by then."""
        self._parent.report(Phase.CONCLUDING)
        while True:
            try:
                write()
            except LeaseLost:
                log.warning("The verdict was refused: the job belongs to another attempt by now")
                return False
            except StoreUnavailable:
                self._parent.waiting()
                time.sleep(_RETRY_SECONDS)
            else:
                return True

    def _insist_on_files(self, action: Callable[[], T]) -> T:
        """Return what `action` returns, once the file store can be reached.

        Raises:
            OSError: it could not for a quarter of an hour.
        """
        until = time.monotonic() + _FILE_STORE_SECONDS
        while True:
            try:
                return action()
            except OSError as error:
                if time.monotonic() > until:
                    raise
                log.warning("The file store could not be reached", extra={"error": str(error)})
                self._parent.waiting()
                time.sleep(_RETRY_SECONDS)

    def _dataset(self, dataset_id: str) -> tuple[DatasetRecord, Path | None]:
        if (builtin := builtin_dataset(dataset_id)) is not None:
            return builtin, None
        try:
            record = self._insist_on_store(lambda: self._store.datasets.get(dataset_id))
            held = self._cache.held
            # For as long as this process lives, which is as long as its one job: nobody prunes it meanwhile.
            return record, self._insist_on_files(
                lambda: self._in_use.enter_context(held(record.key, sha256=record.sha256))
            )
        except (NotFound, FileMissing) as error:
            raise BadData(f"the dataset {dataset_id} is not there any more") from error

    def _insist_on_store(self, action: Callable[[], T]) -> T:
        while True:
            try:
                return action()
            except StoreUnavailable:
                self._parent.waiting()
                time.sleep(_RETRY_SECONDS)

    def _recorder(self, claim: Claim) -> Recorder:
        settings = self._settings
        return Recorder(
            self._store.leases,
            self._files,
            claim.lease,
            Spool(spool_folder(settings), claim.lease, limit_bytes=settings.spool_bytes),
            lease_seconds=settings.lease_seconds,
            record_seconds=settings.record_seconds,
        )


def _meant_by(status: JobStatus) -> Order | None:
    match status:
        case JobStatus.PAUSING:
            return Order.PAUSE
        case JobStatus.CANCELLING:
            return Order.CANCEL
        case _:
            return None


def _make_repeatable(threads: int) -> None:
    """Let the same sums be done in the same order on every attempt."""
    torch.set_num_threads(threads)
    torch.set_deterministic_debug_mode("warn")  # `use_deterministic_algorithms` would import the compiler: seconds
    # Filling new memory is a debugging aid, and takes time.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # a module of a class
    torch.backends.cudnn.benchmark = False


def _peak_memory_bytes() -> int:
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
