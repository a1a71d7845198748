"""A worker that does no mathematics: claims, records, saves, succeeds; to be killed at any moment.

It runs in a process of its own: `multiprocessing.Process(target=run, args=(settings,))`.
"""

import os
import random
import time
from dataclasses import dataclass

from service.errors import LeaseLost, StoreUnavailable
from service.records import AttemptOutcome, Checkpoint, Claim, JobStatus, JsonObject, Lease
from service.store import Database, NewPoint, Store

LEASE_LOST = 3
"""Exit code of a runner that was told to end when it loses its lease."""


@dataclass(frozen=True)
class Settings:
    """What a stand-in runner needs."""

    url: str
    worker_id: str
    seed: int
    lease_seconds: float
    step_seconds: float
    ends_with_its_lease: bool = False


def value(job_id: str, step: int) -> JsonObject:
    """The point of a step: the same whoever computes it."""
    return {"train_loss": (hash_of(job_id) + step) % 1009 / 1009}


def hash_of(text: str) -> int:
    """A number that is the same in every process."""
    return sum((place + 1) * ord(letter) for place, letter in enumerate(text))


def run(settings: Settings) -> None:
    """Run jobs until killed."""
    chance = random.Random(settings.seed)
    database = Database(settings.url, pool_size=1)
    store = Store(database)
    while True:
        try:
            claim = store.leases.claim(settings.worker_id, device="cpu", lease_seconds=settings.lease_seconds)
            if claim is None:
                time.sleep(0.02)
            else:
                run_job(store, claim, settings, chance)
        except LeaseLost:
            if settings.ends_with_its_lease:
                os._exit(LEASE_LOST)
        except StoreUnavailable:
            time.sleep(0.05)


def run_job(store: Store, claim: Claim, settings: Settings, chance: random.Random) -> None:
    """Run a job from its last checkpoint to its end, in batches of one to three points."""
    lease = claim.lease
    of = int(claim.spec["budget"]["outer_steps"])  # type: ignore[index, call-overload, arg-type]
    step = claim.checkpoints[0].step if claim.checkpoints else 0
    while step < of:
        end = min(of, step + chance.randint(1, 3))
        time.sleep(chance.uniform(0, 2 * settings.step_seconds))
        batch = [NewPoint(each, each / 8, value(lease.job_id, each)) for each in range(step, end)]
        status = store.leases.record(lease, batch, lease_seconds=settings.lease_seconds)
        step = end
        if chance.random() < 0.3:
            save(store, lease, step, settings)
        if status is not JobStatus.RUNNING:
            save(store, lease, step, settings)
            outcome = AttemptOutcome.PAUSED if status is JobStatus.PAUSING else AttemptOutcome.CANCELLED
            store.leases.release(lease, outcome, log_tail="")
            return
    store.leases.succeed(lease, result={"steps": of}, files=[], log_tail="done")


def save(store: Store, lease: Lease, step: int, settings: Settings) -> None:
    """Save a checkpoint that holds nothing."""
    key = f"{lease.job_id}/{lease.attempt}/{step}"
    store.leases.save_checkpoint(lease, Checkpoint(key, "0" * 64, step), lease_seconds=settings.lease_seconds)
