"""A runner is killed in the middle of each method, and the run is, bit for bit, the one that was left alone."""

from collections.abc import Iterator

import pytest
from pydantic import JsonValue

from service.records import AttemptOutcome, JobStatus
from service.spec.job import JobSpec
from service.store.checkpoints import checkpoints_of
from tests.proofs.capabilities import Service, service
from tests.proofs.cells import Body, Cell, cells
from tests.workers.fleet import Fleet, eventually

_LONGER: dict[str, Body] = {
    "elbo": {"training_steps": 6000},
    # Steps that compare values end when nothing is left to be gained; these go on.
    "implicit": {"step": {"kind": "adam", "learning_rate": 0.01}},
}

_QUICK = frozenset({"maid-linear-l2", "tpe-linear-l2"})
"""States of all kinds are in these two; each test takes some seconds."""

_STEPS = {"linear": 100, "mlp": 60, "cnn": 40, "rff_gp": 100, "transfer": 60, "denoiser": 100}


def _long(cell: Cell, running: Service) -> dict[str, JsonValue]:
    body = cell.body(images=running.images, weights=running.weights)
    method = {**body["method"], **_LONGER.get(cell.method, {})}  # type: ignore[dict-item]
    if cell.method == "elbo" and cell.model != "linear":
        method["training_steps"] = 1500  # whose steps take longer
    if cell.method == "grid":
        learned = sum(
            number.is_learned for part in JobSpec.model_validate(body).regularizers for number in part.numbers
        )
        method["points"] = {1: 100, 2: 10, 3: 4}[learned]
    steps = 100 if cell.method == "grid" else _STEPS[cell.model]
    budget: Body = {"outer_steps": steps, "tolerance": 1e-10}
    return {**body, "method": method, "budget": budget, "verify": False}


def _is_saved(fleet: Fleet, job_id: str) -> bool:
    with fleet.database.read() as connection:
        return bool(checkpoints_of(connection, job_id))


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    settings = {"checkpoint_steps": 2, "checkpoint_seconds": 0.05, "record_seconds": 0.02}
    with service(tmp_path_factory.mktemp("service"), **settings) as running:
        yield running


@pytest.mark.parametrize(
    "cell",
    [pytest.param(cell, marks=() if str(cell) in _QUICK else pytest.mark.slow) for cell in cells()],
    ids=str,
)
def test_a_killed_run_is_the_same_run(cell: Cell, running: Service) -> None:
    fleet, body = running.fleet, _long(cell, running)
    jobs = [str(running.client.post("/v1/jobs", json=body).raise_for_status().json()["id"]) for _ in range(2)]
    twin, job_id = jobs
    undisturbed = fleet.reaches(twin, JobStatus.SUCCEEDED, seconds=120.0)

    eventually(lambda: _is_saved(fleet, job_id), what="a state was saved")
    fleet.workers[0].runners()[0].kill()
    job = fleet.reaches(job_id, JobStatus.SUCCEEDED, seconds=120.0)

    first, *_, last = fleet.store.jobs.attempts(job_id)
    assert first.outcome is AttemptOutcome.LOST, "it ended before it was killed"
    assert last.number > 1
    lines = [str(event.body.get("text", "")) for event in fleet.store.jobs.events(job_id, after=0, limit=10_000)]
    [resumed] = [int(line.split()[-1]) for line in lines if "goes on from step" in line]
    assert 0 < resumed < undisturbed.steps_done
    assert fleet.trajectory(job_id) == fleet.trajectory(twin)
    assert job.result is not None
    assert undisturbed.result is not None
    for part in ("hyperparameters", "metrics", "calibration", "self_tuning"):
        assert job.result.get(part) == undisturbed.result.get(part)
    hashes = [{f.name: f.sha256 for f in fleet.store.jobs.files(one)} for one in (job_id, twin)]
    for name in ("weights.safetensors", "hyperparameters.safetensors"):
        assert hashes[0].get(name) == hashes[1].get(name)
