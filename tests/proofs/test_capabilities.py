"""What the table of capabilities says is true, cell by cell."""

import io
import json
import math
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import get_args

import pyarrow.parquet as pq
import pytest

from service.builtin import BUILTIN_DATASETS
from service.records import DatasetRecord
from service.spec.capabilities import CAPABILITIES, GRANULARITIES
from service.spec.job import JobSpec
from service.spec.models import ModelSpec
from service.spec.regularizers import RegularizerSpec
from tests.proofs.capabilities import CONVEX_ERROR, Service, check, service
from tests.proofs.cells import IMAGES, Cell, cells, methods, more_cells, small_images, small_weights
from workers.data.describe import describe
from workers.learn.method import run
from workers.workshop import begin_study

CELLS = tuple(cells())
MORE = tuple(more_cells())


def kinds(union: object) -> set[str]:
    return {each.model_fields["kind"].default for each in get_args(get_args(union)[0])}


def test_the_table_knows_every_kind_of_the_contract_and_no_other() -> None:
    assert set(CAPABILITIES) == set(methods())
    assert {cell.model for cell in CELLS} == kinds(ModelSpec) == set(GRANULARITIES)
    assert {cell.regularizer for cell in CELLS} == kinds(RegularizerSpec)
    names = [str(cell) for cell in (*CELLS, *MORE)]
    assert len(set(names)) == len(names)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> tuple[DatasetRecord, Path]:
    path = tmp_path_factory.mktemp("images") / "images.npz"
    path.write_bytes(small_images())
    found = describe(path, "npz", limit_bytes=2**20)
    record = DatasetRecord(
        id="ds_images",
        name="images",
        format="npz",
        rows=found.rows,
        columns=tuple(found.columns),
        is_sparse=found.is_sparse,
        nonzeros=found.nonzeros,
        sha256="0" * 64,
        size_bytes=path.stat().st_size,
        key="",
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
    )
    return record, path


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "weights.safetensors"
    path.write_bytes(small_weights())
    return path


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_every_cell_learns_and_brings_its_evidence(
    cell: Cell, images: tuple[DatasetRecord, Path], weights: Path
) -> None:
    """Without a worker, for speed; with one below."""
    spec = JobSpec.model_validate_json(json.dumps(cell.body(images="ds_images")))
    builtin = cell.body()["data"]["dataset"] != IMAGES  # type: ignore[call-overload, index]
    record, path = (BUILTIN_DATASETS[spec.data.dataset], None) if builtin else images
    start_from = None if spec.weights_dataset is None else weights
    study = begin_study(spec, record, path, device="cpu", weights=start_from)
    start = study.method.init(study.problem, seed=spec.seed)
    trajectory = list(run(study.method, study.problem, start, max_steps=spec.budget.outer_steps))
    json.dumps([study.point(point) for _, point in trajectory], allow_nan=False)
    conclusion = study.conclude(trajectory[-1][0])
    assert conclusion.files()
    result = conclusion.result(wall_seconds=1.0, peak_memory_bytes=1, files=())
    name, data = conclusion.result_file(result)
    assert json.loads(data)["evidence"]["verdict"] == result["evidence"]["verdict"]  # type: ignore[index, call-overload]
    assert name == "result.json"
    found = result["evidence"].get("hypergradient_check")  # type: ignore[union-attr]
    if found is not None:
        assert found["relative_error"] <= CONVEX_ERROR


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with service(tmp_path_factory.mktemp("service")) as running:
        yield running


@pytest.mark.parametrize("cell", [next(c for c in CELLS if c.model == model) for model in GRANULARITIES], ids=str)
def test_every_model_goes_through_the_api_and_a_worker(cell: Cell, running: Service) -> None:
    outcome = running.try_cell(cell)
    check(outcome)
    # What a search does not know is said in every format.
    if cell.method not in ("grid", "random", "tpe"):
        return
    path = f"/v1/jobs/{outcome.job_id}/trajectory"
    for point in running.client.get(path).json()["items"]:
        assert point["hypergradient_norm"] == "NaN"
    header, first, *_ = running.client.get(path, params={"format": "csv"}).text.splitlines()
    assert first.split(",")[header.split(",").index("hypergradient_norm")] == "NaN"
    table = pq.read_table(io.BytesIO(running.client.get(path, params={"format": "parquet"}).content))
    assert all(math.isnan(value) for value in table["hypergradient_norm"].to_pylist())
    events = running.client.get(f"/v1/jobs/{outcome.job_id}/events").text
    assert '"hypergradient_norm":"NaN"' in events


@pytest.mark.slow
@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_every_cell_goes_through_the_api_and_a_worker(cell: Cell, running: Service) -> None:
    check(running.try_cell(cell))


@pytest.mark.slow
@pytest.mark.parametrize("cell", MORE, ids=str)
def test_every_cell_takes_all_that_the_contract_allows_of_it(cell: Cell, running: Service) -> None:
    running.try_cell(cell)
