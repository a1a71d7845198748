"""What the tests of the API act with: bodies, a worker that works through the store, and checks of problems."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Final

import httpx2
from sqlalchemy import func, select

from service.api.services import Services
from service.errors import QueueUnavailable
from service.files import new_dataset_key
from service.identifiers import new_id
from service.records import (
    AttemptOutcome,
    Claim,
    ColumnRecord,
    ColumnType,
    FailureCode,
    FileRecord,
    JobRecord,
    JsonObject,
)
from service.store import NewDataset, NewPoint, NewWorker, Store
from service.tables import metadata

LEASE: Final = 60.0
BODY: Final[Mapping[str, Any]] = {"data": {"dataset": "builtin:digits"}}
RESULT: Final[JsonObject] = {
    "hyperparameters": {"l2": 0.5},
    "metrics": {"train": {"loss": 0.1}, "valid": {"loss": 0.2}, "test": {"loss": "NaN"}},
    "evidence": {"verdict": "optimum", "sentence": "The derivative vanishes."},
    "model": {"trained_on": "train", "rows": 3},
    "cost": {"wall_s": 1.0},
    "files": [],
    "reproduce": {"seed": 0},
}


class CountingBell:
    """A bell that counts, and can be out of order."""

    def __init__(self) -> None:
        self.rings = 0
        self.is_broken = False

    def ring(self) -> None:
        if self.is_broken:
            raise QueueUnavailable
        self.rings += 1

    def ping(self) -> None:
        if self.is_broken:
            raise QueueUnavailable


def body(**changes: Any) -> dict[str, Any]:
    """A small specification, with changes."""
    return {**BODY, **changes}


def submit(client: httpx2.Client, **changes: Any) -> dict[str, Any]:
    """Submit a job and return it."""
    response = client.post("/v1/jobs", json=body(**changes))
    assert response.status_code == 202, response.text
    return dict(response.json())


def point(step: int, **changes: Any) -> NewPoint:
    """A point of a trajectory."""
    content: JsonObject = {
        "hyperparameters": {"l2": 0.5**step, "l1": {"size": 3, "min": 0.1, "median": 0.2, "max": 0.3, "norm": 0.4}},
        "train_loss": 1.0 / (step + 1),
        "valid_loss": "NaN" if step == 1 else 2.0 / (step + 1),
        "hypergradient_norm": 0.1,
        "metrics": {"accuracy": 0.5},
        "inner": {"iterations": 7, "residual": 1e-9},
        "certificate": None,
    }
    return NewPoint(step=step, elapsed_s=0.5 * step, body=content | changes)


class Worker:
    """Works on jobs as a worker does, without computing anything."""

    def __init__(self, store: Store, *, name: str = "wk_1") -> None:
        self._store = store
        self.name = name
        store.workers.register(
            NewWorker(id=name, host="here", pid=1, device="cpu", device_name="a processor", version="0.1.0")
        )

    def claim(self) -> Claim:
        claim = self._store.leases.claim(self.name, device="cpu", lease_seconds=LEASE)
        assert claim is not None, "no job waits"
        return claim

    def record(self, claim: Claim, steps: Sequence[int], *, logs: Sequence[str] = ()) -> None:
        self._store.leases.record(claim.lease, [point(step) for step in steps], lease_seconds=LEASE, logs=tuple(logs))

    def succeed(self, claim: Claim, *, files: Sequence[FileRecord] = ()) -> JobRecord:
        self._store.leases.succeed(claim.lease, result=RESULT, files=files, log_tail="it went well")
        return self._store.jobs.get(claim.lease.job_id)

    def fail(self, claim: Claim) -> JobRecord:
        self._store.leases.fail(
            claim.lease, FailureCode.DIVERGED, "the loss is not finite", retryable=False, log_tail="nan nan nan"
        )
        return self._store.jobs.get(claim.lease.job_id)

    def release(self, claim: Claim, outcome: AttemptOutcome) -> JobRecord:
        self._store.leases.release(claim.lease, outcome, log_tail="")
        return self._store.jobs.get(claim.lease.job_id)


def dataset(services: Services, rows: int, **columns: ColumnType | Mapping[str, int]) -> str:
    """The id of a dataset that nobody uploaded: columns of a type, or with their values and how often each is there."""
    digest = hashlib.sha256(repr((rows, columns)).encode()).hexdigest()
    new = NewDataset(
        id=new_id("ds"),
        name="made up",
        format="csv",
        rows=rows,
        columns=tuple(
            ColumnRecord(name, ColumnType.INTEGER, (), 0, values)
            if isinstance(values, Mapping)
            else ColumnRecord(name, values, (), 0, None)
            for name, values in columns.items()
        ),
        is_sparse=False,
        nonzeros=None,
        sha256=digest,
        size_bytes=1,
        key=new_dataset_key(digest),
    )
    services.store.datasets.expect_file(new.key)
    return services.store.datasets.create(new)[0].id


def finished(services: Services, client: httpx2.Client, *, steps: int = 3, **changes: Any) -> str:
    """The id of a job that has succeeded."""
    job_id: str = submit(client, **changes)["id"]
    worker = Worker(services.store)
    claim = worker.claim()
    assert claim.lease.job_id == job_id
    worker.record(claim, range(steps))
    worker.succeed(claim)
    return job_id


def row_counts(services: Services) -> dict[str, int]:
    """How many rows each table has: what a refused request must not change."""
    with services.store.database.read() as connection:
        return {
            table.name: connection.scalar(select(func.count()).select_from(table)) or 0
            for table in metadata.sorted_tables
        }


def problem(response: httpx2.Response, status: int, kind: str) -> dict[str, Any]:
    """Check that an answer is a problem of this kind, and return it."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    found: dict[str, Any] = response.json()
    assert found["type"] == f"/problems/{kind}", found
    assert found["status"] == status
    assert found["title"]
    assert found["detail"]
    assert found["request_id"] == response.headers["x-request-id"]
    for leak in ("Traceback", "site-packages", "SELECT", "INSERT", "sqlalchemy", ".py"):
        assert leak not in response.text
    return found


def pointers(found: Mapping[str, Any]) -> list[str]:
    """Where a body is wrong."""
    return [error["pointer"] for error in found.get("errors", ()) if "pointer" in error]
