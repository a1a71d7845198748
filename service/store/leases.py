"""Jobs, as workers hold them. Every write is fenced by the attempt, and is the heartbeat too."""

from collections.abc import Mapping, Sequence
from typing import Final

from sqlalchemy import Connection, RowMapping, delete, insert, update

from service.records import (
    HELD,
    AttemptOutcome,
    Checkpoint,
    Claim,
    FailureCode,
    FileRecord,
    JobStatus,
    JsonObject,
    Lease,
)
from service.store import sweeps
from service.store.checkpoints import drop_all, keep_newest
from service.store.claiming import next_for, take_next
from service.store.clock import database_now
from service.store.database import Database
from service.store.outbox import expect_files, forget_files, name_files
from service.store.reaping import LOSE, RELEASE, after_loss, extend_leases, take_silent
from service.store.recording import NewPoint, record
from service.store.transitions import Ending, Move, end_attempts, held_by, move, only
from service.tables import files, jobs

_REAPING: Final = "reap"

_SUCCEED: Final = tuple(Move(status, JobStatus.SUCCEEDED) for status in sorted(HELD))
_FAIL: Final = (
    Move(JobStatus.RUNNING, JobStatus.FAILED),
    Move(JobStatus.PAUSING, JobStatus.FAILED),
    # A cancelled job that fails while it stops is what the client asked for: cancelled.
    Move(JobStatus.CANCELLING, JobStatus.CANCELLED),
)


class Leases:
    """Jobs for workers: to claim, renew, record, and end."""

    def __init__(self, database: Database) -> None:
        """Take the database."""
        self._database = database

    def claim(self, worker_id: str, *, device: str, lease_seconds: float) -> Claim | None:
        """Take the next job that fits, if there is one: highest priority first, then longest waiting.

        Two workers never take the same job: the statement that chooses is the one that takes. Within a
        priority a worker with a GPU prefers jobs that need one, then those that may use one.

        Args:
            worker_id: who takes it.
            device: of the worker: `cpu`, or `cuda:N`.
            lease_seconds: how long the worker may be silent before it loses the job.
        """
        if self._database.is_sqlite:
            # Looking first is free, whereas a transaction that writes keeps all others from writing.
            with self._database.read() as connection:
                if connection.scalar(next_for(device)) is None:
                    return None
        # Lost with the power, it is lost with the worker: the job still waits.
        with self._database.write(durable=False) as connection:
            return take_next(connection, worker_id, device=device, lease_seconds=lease_seconds)

    def renew(self, lease: Lease, *, lease_seconds: float) -> JobStatus:
        """Give a sign of life; hear whether the job is to go on, pause or stop.

        Raises:
            LeaseLost: another attempt has begun, or the job has been taken away.
        """
        with self._database.write(durable=False) as connection:
            return JobStatus(_renewed(connection, lease, lease_seconds)["status"])

    def record(
        self, lease: Lease, points: Sequence[NewPoint], *, lease_seconds: float, logs: Sequence[str] = ()
    ) -> JobStatus:
        """Append points and lines of the log, renew the lease, hear whether to go on.

        Points that are recorded already, recomputed after a crash, are passed over, so that the same
        batch may be sent again after a `StoreUnavailable`.

        Args:
            lease: the right to write.
            points: one step after the other; the first at most one step beyond what is recorded.
            lease_seconds: until the next sign of life.
            logs: lines for people.

        Raises:
            LeaseLost: another attempt has begun; nothing was written.
            ValueError: a gap in the steps or a time that is not finite; nothing was written.
        """
        with self._database.write(durable=False) as connection:
            return record(connection, lease, points, lease_seconds=lease_seconds, logs=logs)

    def expect_files(self, lease: Lease, keys: Sequence[str], *, lease_seconds: float) -> None:
        """Say that files are about to be stored: they are removed some time after the attempt, unless it names them.

        Args:
            lease: the right to write.
            keys: of the files; no other attempt may use them.
            lease_seconds: until the next sign of life.

        Raises:
            LeaseLost: another attempt has begun; nothing is to be stored.
        """
        with self._database.write() as connection:
            _renewed(connection, lease, lease_seconds)
            expect_files(connection, keys)

    def save_checkpoint(self, lease: Lease, checkpoint: Checkpoint, *, lease_seconds: float) -> list[str]:
        """Note a checkpoint whose file is in the file store, and keep the last two.

        Args:
            lease: the right to write.
            checkpoint: its key must be new; its step at most the number of points recorded.
            lease_seconds: until the next sign of life.

        Returns:
            Keys of older files, to be removed now; the outbox has them too.

        Raises:
            LeaseLost: another attempt has begun; nothing was written.
            ValueError: the checkpoint is ahead of the points, and a resumed run would leave a gap.
        """
        with self._database.write(durable=False) as connection:
            row = _renewed(connection, lease, lease_seconds)
            if checkpoint.step > row["steps_done"]:
                raise ValueError(
                    f"the checkpoint is of step {checkpoint.step}, but {row['steps_done']} points are recorded: "
                    "record first"
                )
            name_files(connection, [checkpoint.key])
            gone = keep_newest(connection, lease, checkpoint)
            forget_files(connection, gone)
            return gone

    def succeed(self, lease: Lease, *, result: JsonObject, files: Sequence[FileRecord], log_tail: str) -> list[str]:
        """End the job with its result; what it was to go on from is not needed any more.

        Returns:
            Keys of its checkpoints, to be removed now; the outbox has them too.

        Raises:
            LeaseLost: another attempt has begun; nothing was written.
        """
        with self._database.write() as connection:
            rows = move(connection, _SUCCEED, held_by(lease), values={"result": result})
            only(rows)
            end_attempts(connection, rows, lost=False, failure=None, log_tail=log_tail)
            _replace_files(connection, lease.job_id, files)
            name_files(connection, [each.key for each in files])
            keys = drop_all(connection, lease.job_id)
            gone = [key for key in keys if key not in {each.key for each in files}]
            forget_files(connection, gone)
            return gone

    def fail(
        self, lease: Lease, failure_code: FailureCode, detail: str, *, retryable: bool, log_tail: str
    ) -> JobStatus:
        """End the job as failed, or as cancelled if that was asked for.

        Raises:
            LeaseLost: another attempt has begun; nothing was written.
        """
        return self._let_go(
            _FAIL, lease, failure=Ending(failure_code, detail, retryable), lost=False, log_tail=log_tail
        )

    def release(self, lease: Lease, outcome: AttemptOutcome, *, log_tail: str) -> JobStatus:
        """Hand the job back in good order.

        The status decides where it goes, for it may have changed since the worker heard of it: a running
        job is queued at once, and keeps its place; a pausing one is paused, a cancelling one cancelled.

        Args:
            lease: the right to write.
            outcome: why the worker lets go: drained, paused or cancelled.
            log_tail: the end of its log.

        Returns:
            The status that the job has now.

        Raises:
            LeaseLost: another attempt has begun; nothing was written.
            ValueError: another outcome.
        """
        if outcome not in (AttemptOutcome.DRAINED, AttemptOutcome.PAUSED, AttemptOutcome.CANCELLED):
            raise ValueError(f"a job is released as drained, paused or cancelled, not as {outcome}")
        return self._let_go(RELEASE, lease, failure=None, lost=False, log_tail=log_tail)

    def lose(
        self,
        lease: Lease,
        detail: str,
        *,
        backoff_seconds: float,
        failure_code: FailureCode = FailureCode.WORKER_LOST,
        log_tail: str,
    ) -> JobStatus:
        """Say that the job's process died: the job waits for another attempt, or fails if it had enough.

        Args:
            lease: of the attempt that died.
            detail: how, for people.
            backoff_seconds: wait before the second attempt; doubles with every loss.
            failure_code: what it died of.
            log_tail: the end of its log.

        Returns:
            The status that the job has now.

        Raises:
            LeaseLost: another attempt has begun; nothing was written.
        """
        return self._let_go(
            LOSE,
            lease,
            failure=Ending(failure_code, detail, retryable=True),
            lost=True,
            log_tail=log_tail,
            values=after_loss(backoff_seconds),
        )

    def reap(self, *, lease_seconds: float, backoff_seconds: float) -> list[str]:
        """Take jobs from workers that were silent for longer than their lease.

        The database's clock decides. If this was not called for longer than a lease, the database or
        whoever calls was away, and workers had no chance to be heard: all leases are extended once
        instead, and nothing is taken.

        Args:
            lease_seconds: of the leases in use.
            backoff_seconds: as for `lose`.

        Returns:
            Ids of the jobs that were taken.
        """
        with self._database.write() as connection:
            silence = sweeps.last(connection, _REAPING)
            sweeps.note(connection, self._database, _REAPING)
            if silence is not None and silence > lease_seconds:
                extend_leases(connection, lease_seconds)
                return []
            return take_silent(connection, backoff_seconds=backoff_seconds)

    def extend_all(self, seconds: float) -> None:
        """Let every lease last for `seconds` from now at least: after the database was away."""
        with self._database.write() as connection:
            extend_leases(connection, seconds)

    def _let_go(
        self,
        moves: Sequence[Move],
        lease: Lease,
        *,
        failure: Ending | None,
        lost: bool,
        log_tail: str,
        values: Mapping[str, object] | None = None,
    ) -> JobStatus:
        with self._database.write() as connection:
            rows = move(connection, moves, held_by(lease), values=values, failure=failure)
            row = only(rows)
            end_attempts(connection, rows, lost=lost, failure=failure, log_tail=log_tail)
            return JobStatus(row["status"])


def _renewed(connection: Connection, lease: Lease, lease_seconds: float) -> RowMapping:
    """Renew a lease: the first statement of every fenced write that leaves the status as it is."""
    statement = (
        update(jobs)
        .where(held_by(lease))
        .values(renewed_at=database_now(), lease_expires_at=database_now(lease_seconds))
        .returning(jobs.c.status, jobs.c.steps_done)
    )
    return only(connection.execute(statement).mappings().all())


def _replace_files(connection: Connection, job_id: str, made: Sequence[FileRecord]) -> None:
    connection.execute(delete(files).where(files.c.job_id == job_id))
    if made:
        connection.execute(
            insert(files),
            [
                {
                    "job_id": job_id,
                    "name": each.name,
                    "key": each.key,
                    "sha256": each.sha256,
                    "size_bytes": each.size_bytes,
                }
                for each in made
            ],
        )
