"""Everything that the service says it can do, it does: `python tests/proofs/capabilities.py`.

For every cell of model × regularizer × method of `service/spec/capabilities.py` a small job is posted to a real API and
run by a real worker. It must succeed, and the hypergradient at its answer must agree with central differences of
re-solved (of a network: re-trained) inner problems. Prints the table.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from service.builtin import BUILTIN_DATASETS
from service.spec.job import JobSpec
from service.spec.models import NETWORKS
from service.spec.regularizers import NOISES
from tests.proofs.cells import Cell, cells, more_cells, small_images, small_weights
from tests.proofs.outages import Api
from tests.workers.fleet import REAL, Fleet
from workers.learn.hypergradient import hypergradient
from workers.learn.inner.newton_cg import NewtonCG
from workers.learn.linear.minres import MINRES
from workers.learn.verification import directional_check, random_direction
from workers.workshop import begin_study

_NOISES: Final = frozenset(noise.model_fields["kind"].default for noise in NOISES)

_NETWORKS: Final = frozenset(network.model_fields["kind"].default for network in NETWORKS)

CONVEX_ERROR: Final = 1e-5
NETWORK_ERROR: Final = 1e-3
"""Of a hypergradient in float64, relative to central differences."""

_SECONDS: Final = 300.0
"""That a small job may take, on a busy machine."""


class Disproved(AssertionError):
    """A cell does not do what the table says."""


@dataclass(frozen=True)
class Outcome:
    """What became of a cell's job."""

    cell: Cell
    job_id: str
    steps: int
    verdict: str
    error: float
    """Of the hypergradient."""
    seconds: float

    @property
    def bound(self) -> float:
        """The largest error that is allowed."""
        return NETWORK_ERROR if self.cell.model in _NETWORKS else CONVEX_ERROR

    def row(self) -> str:
        """Return a row of the table."""
        cell = self.cell
        more = str(cell).removeprefix(f"{cell.method}-{cell.model}-{cell.regularizer}").lstrip("-") or "–"
        shown = f"{self.error:.1e}" if self.error > 0.0 else "–"
        return (
            f"| `{cell.model}` | `{cell.regularizer}` | `{cell.method}` | {more} | succeeded | {self.steps} "
            f"| {self.verdict} | {shown} | {self.bound:.0e} |"
        )


HEADER: Final = (
    "| model | regularizer | method | with | job | steps | verdict | hypergradient's relative error | allowed |\n"
    "| --- | --- | --- | --- | --- | --- | --- | --- | --- |"
)


@dataclass(frozen=True)
class Service:
    """A running service and the datasets that were uploaded to it: images, and weights."""

    fleet: Fleet
    client: httpx.Client
    images: str
    weights: str

    def try_cell(self, cell: Cell) -> Outcome:
        """Post the cell's job, wait for its end, and judge it.

        Raises:
            Disproved: it was refused, failed, or is not what it should be.
        """
        began = time.monotonic()
        answer = self.client.post("/v1/jobs", json=cell.body(images=self.images, weights=self.weights))
        if answer.status_code != 202:
            raise Disproved(f"{cell} was refused: {answer.text}")
        job_id = str(answer.json()["id"])
        job = _ended(self.client, job_id)
        if job["status"] != "succeeded":
            raise Disproved(f"{cell} ended as {job['status']}: {job['failure']}")
        result = _json(self.client, f"/v1/jobs/{job_id}/result")
        points = _json(self.client, f"/v1/jobs/{job_id}/trajectory")["items"]
        if [point["step"] for point in points] != list(range(len(points))) or not points:
            raise Disproved(f"{cell} has no complete trajectory")
        files = {file["name"] for file in result["files"]}
        if not {"weights.safetensors", "hyperparameters.safetensors"} & files:
            raise Disproved(f"{cell} left no files: {files}")
        verdict = result["evidence"]["verdict"]
        return Outcome(cell, job_id, len(points), verdict, _error(cell, result), time.monotonic() - began)


@contextmanager
def service(folder: Path, *, workers: int = 1, **settings: object) -> Iterator[Service]:
    """Run an API and workers, on SQLite, without Redis."""
    with Fleet(folder, command=REAL, **settings) as fleet:
        api = Api(fleet)
        try:
            for _ in range(workers):
                fleet.worker()
            with httpx.Client(base_url=api.url, timeout=60.0) as client:
                images = _uploaded(client, small_images(), "npz")
                yield Service(fleet, client, images, _uploaded(client, small_weights(), "safetensors"))
        finally:
            api.close()


def _uploaded(client: httpx.Client, content: bytes, kind: str) -> str:
    upload = client.post("/v1/datasets", files={"file": (f"a.{kind}", content)}, data={"format": kind})
    if not upload.is_success:
        raise Disproved(f"the {kind} was refused: {upload.text}")
    return str(upload.json()["id"])


def prove(
    chosen: Iterable[Cell], *, workers: int = 1, tell: Callable[[Outcome], object] = lambda _: None
) -> list[Outcome]:
    """Run every cell's job; return what became of them.

    Raises:
        Disproved: one did not succeed, or its hypergradient is wrong; all are tried before.
    """
    outcomes, disproved = [], []
    with tempfile.TemporaryDirectory() as folder, service(Path(folder), workers=workers) as running:
        for cell in chosen:
            try:
                outcome = running.try_cell(cell)
                tell(outcome)
                check(outcome)
            except Disproved as error:
                disproved.append(str(error))
            else:
                outcomes.append(outcome)
    if disproved:
        raise Disproved("\n".join(disproved))
    return outcomes


def check(outcome: Outcome) -> None:
    """Compare the hypergradient's error with what is allowed.

    Raises:
        Disproved: it is too large.
    """
    if not outcome.error <= outcome.bound:
        raise Disproved(f"{outcome.cell}: the hypergradient is off by {outcome.error:.1e}, allowed {outcome.bound:.0e}")


def _error(cell: Cell, result: dict[str, Any]) -> float:
    found = result["evidence"].get("hypergradient_check")
    if found is not None:
        return float(found["relative_error"])
    if cell.regularizer in _NOISES or cell.method == "elbo":
        return 0.0  # no derivative is taken through noise, nor of a bound that is trained for: no hypergradient
    if cell.model not in _NETWORKS and cell.method != "stn":
        raise Disproved(f"{cell}: the evidence has no check of the hypergradient: {result['evidence']}")
    return _network_error(cell, result)


def _network_error(cell: Cell, result: dict[str, Any]) -> float:
    """Return the error of the hypergradient of a small network that is trained to the end at the job's answer.

    The evidence for networks is retraining, since a mini-batch run never comes to a minimiser. Here it does: by
    Newton's method on all rows, where the implicit function theorem holds to the last digits.
    """
    spec = JobSpec.model_validate({**cell.body(), "resources": {"precision": "float64"}})
    with tempfile.NamedTemporaryFile() as file:
        Path(file.name).write_bytes(small_weights())
        weights = None if spec.weights_dataset is None else Path(file.name)
        dataset = BUILTIN_DATASETS[spec.data.dataset]
        problem = begin_study(spec, dataset, None, device="cpu", weights=weights).problem
    found = result["hyperparameters"]
    values = {
        block.name: torch.tensor(
            found[block.name]["values"] if block.shape else found[block.name], dtype=torch.float64
        ).reshape(block.shape)
        for block in problem.space.blocks
    }
    raw, oracle, newton = problem.space.unconstrain(values), problem.oracle(), NewtonCG(max_iterations=1000)
    w = newton.solve(oracle, raw, problem.initial_weights(spec.seed), tol=1e-9).w
    exact = hypergradient(oracle, w, raw, MINRES(), tol=1e-10)
    direction = random_direction(raw, seed=spec.seed)
    check = directional_check(oracle, newton, raw, w, exact.value, direction, tol=1e-10, steps=(1e-2, 1e-3, 1e-4))
    return check.relative_error


def _ended(client: httpx.Client, job_id: str) -> dict[str, Any]:
    until = time.monotonic() + _SECONDS
    while time.monotonic() < until:
        job = _json(client, f"/v1/jobs/{job_id}", wait="20")
        if job["ended_at"] is not None:
            return job
    raise Disproved(f"{job_id} did not end within {_SECONDS:g} s: {job['status']}")


def _json(client: httpx.Client, path: str, **params: str) -> dict[str, Any]:
    answer = client.get(path, params=params)
    answer.raise_for_status()
    body: dict[str, Any] = answer.json()
    return body


def main() -> None:
    """Read the command line, run, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--all", action="store_true", help="also granularities, folds, solvers and float32")
    parser.add_argument("--only", default="", help="cells whose name contains this")
    parser.add_argument("--workers", type=int, default=1)
    given = parser.parse_args()
    chosen = [cell for cell in (*cells(), *(more_cells() if given.all else ())) if given.only in str(cell)]
    print(HEADER)
    prove(chosen, workers=given.workers, tell=lambda outcome: print(outcome.row(), flush=True))


if __name__ == "__main__":
    main()
