"""Jobs on denoisers: from images to a result and files."""

import hashlib
import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load as load_tensors

from service.admission import admit
from service.files import new_dataset_key
from service.records import ColumnRecord, DatasetRecord, JobStatus
from service.spec.capabilities import CAPABILITIES
from service.spec.job import JobSpec
from service.store import NewDataset
from tests.learn.denoising_cases import scene
from tests.workers.fleet import REAL, Fleet
from workers.data.describe import describe
from workers.learn.inner.fista import FISTA
from workers.learn.method import run
from workers.learn.problems.denoising import denoise
from workers.learn.problems.denoising_data import noisy
from workers.studies.denoising import DenoisingConclusion, DenoisingStudy, begin_denoising

N = 8


def clean(size: int = 12, channels: int = 1) -> np.ndarray:
    """Return images [n, h, w] or [n, h, w, 3], uint8."""
    images = np.rint(scene(N, size, size, channels) * 255).astype(np.uint8)
    return images[:, 0] if channels == 1 else np.moveaxis(images, 1, -1)


def npz(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **arrays)
    return path


def zipped(path: Path, images: Mapping[str, np.ndarray]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, image in images.items():
            sink = io.BytesIO()
            Image.fromarray(image).save(sink, "PNG")
            archive.writestr(name, sink.getvalue())
    return path


def record(path: Path, kind: str) -> DatasetRecord:
    found = describe(path, kind, limit_bytes=1 << 30)
    return DatasetRecord(
        id="ds_1",
        name="images",
        format=kind,
        rows=found.rows,
        columns=tuple(found.columns),
        is_sparse=False,
        nonzeros=None,
        sha256="0" * 64,
        size_bytes=path.stat().st_size,
        key="",
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
    )


def job(kind: str = "tv", *, target: str = "image", dataset: str = "ds_1", **parts: object) -> JobSpec:
    small = {"kind": kind, "filters": 3, "size": 3} if kind == "field_of_experts" else {"kind": kind}
    body = {
        "data": {"dataset": dataset, "target": target, **dict(parts.pop("data", {}))},  # type: ignore[call-overload]
        "model": {"kind": "denoiser", "regularizer": kind, **dict(parts.pop("model", {}))},  # type: ignore[call-overload]
        "regularizers": [{**small, **dict(parts.pop("regularizer", {}))}],  # type: ignore[call-overload]
        **parts,
    }
    return JobSpec.model_validate_json(json.dumps(body))


def study_of(spec: JobSpec, path: Path, kind: str) -> DenoisingStudy:
    dataset = record(path, kind)
    assert admit(spec, dataset).is_admitted
    return begin_denoising(spec, spec.model, dataset, path, device="cpu")  # type: ignore[arg-type]


def concluded(spec: JobSpec, path: Path, kind: str = "npz") -> tuple[DenoisingStudy, DenoisingConclusion]:
    study = study_of(spec, path, kind)
    state = study.method.init(study.problem, seed=spec.seed)
    *_, (state, _) = run(study.method, study.problem, state, max_steps=spec.budget.outer_steps)
    return study, study.conclude(state)


def result_of(conclusion: DenoisingConclusion) -> dict:
    return conclusion.result(wall_seconds=1.0, peak_memory_bytes=1, files=[])


CELLS = [(method, regularizer) for method, models in CAPABILITIES.items() for regularizer in models.get("denoiser", ())]
SMALL = {"grid": {"points": 3}, "tpe": {"startup_trials": 2}}


@pytest.mark.parametrize(("method", "kind"), sorted(CELLS))
def test_a_job_ends_with_better_images_and_evidence(tmp_path: Path, kind: str, method: str) -> None:
    path = npz(tmp_path / "a.npz", image=clean())
    # Few steps: at an optimum there is no slope left that an error could be relative to.
    steps = 9 if method in ("grid", "random", "tpe") else 3
    strength = {"init": 0.02, "low": 1e-2, "high": 0.1}
    spec = job(
        kind,
        regularizer={"strength": strength},
        method={"kind": method, **SMALL.get(method, {})},
        budget={"outer_steps": steps},
    )
    _, conclusion = concluded(spec, path)
    result = result_of(conclusion)
    metrics = result["metrics"]
    assert set(metrics) == {"train", "valid", "test"}
    for part in ("valid", "test"):
        assert metrics[part]["psnr"] > metrics[part]["noisy_psnr"] + 1.0
        assert metrics[part]["ssim"] > metrics[part]["noisy_ssim"]
    check = result["evidence"]["hypergradient_check"]
    assert check["relative_error"] < 1e-5, result["evidence"]["sentence"]
    assert result["evidence"]["verdict"] in ("optimum", "descending", "at_bound")
    assert 2 <= len(result["evidence"]["neighbours"]) <= (4 if kind == "tv" else 10)
    assert result["model"]["rows"] == 6
    assert result["cost"]["gradients"] > 0
    json.dumps(result, allow_nan=False)


def test_total_variation_is_learned_to_an_optimum(tmp_path: Path) -> None:
    _, conclusion = concluded(job(), npz(tmp_path / "a.npz", image=clean()))
    result = result_of(conclusion)
    assert result["evidence"]["verdict"] == "optimum", result["evidence"]["sentence"]
    assert set(result["hyperparameters"]) == {"tv", "tv.smoothing"}


def test_the_files_denoise_other_images_alike(tmp_path: Path) -> None:
    study, conclusion = concluded(job(), npz(tmp_path / "a.npz", image=clean()))
    files = conclusion.files()
    assert set(files) == {
        "weights.safetensors",
        "hyperparameters.safetensors",
        "denoised.npz",
        *(name for name in files if name.startswith("preview-")),
    }
    with np.load(io.BytesIO(files["denoised.npz"])) as archive:
        found = {name: archive[name] for name in archive.files}
    assert found["rows"].size == 2
    assert found["denoised"].shape == found["noisy"].shape == (2, 12, 12)
    penalty = load_tensors(files["weights.safetensors"])
    learned = load_tensors(files["hyperparameters.safetensors"])
    assert penalty["strength"] == learned["tv"]
    raw = study.problem.space.unconstrain(learned)
    given = torch.as_tensor(found["noisy"], dtype=torch.float64)[:, None]
    again = denoise(study.problem, raw, given, inner=FISTA(), tol=1e-5, batch=1)
    np.testing.assert_allclose(again.images[:, 0].numpy(), found["denoised"], atol=2e-4)
    preview = Image.open(io.BytesIO(files[f"preview-{found['rows'][0]}.png"]))
    assert (preview.mode, preview.size) == ("L", (3 * 12 + 8, 12))


def test_equal_jobs_leave_equal_files(tmp_path: Path) -> None:
    path = npz(tmp_path / "a.npz", image=clean(channels=3))
    first, second = (concluded(job(budget={"outer_steps": 3}), path)[1].files() for _ in range(2))
    assert first == second
    assert Image.open(io.BytesIO(next(v for k, v in first.items() if k.startswith("preview-")))).mode == "RGB"


def test_a_field_of_experts_starts_from_the_seed_and_is_saved_whole(tmp_path: Path) -> None:
    path = npz(tmp_path / "a.npz", image=clean())
    spec = job("field_of_experts", budget={"outer_steps": 1}, verify=False)
    _, conclusion = concluded(spec, path)
    penalty = load_tensors(conclusion.files()["weights.safetensors"])
    assert {name: tuple(t.shape) for name, t in penalty.items()} == {
        "strength": (),
        "weights": (3,),
        "smoothing": (3,),
        "filters": (3, 3, 3),
    }
    assert float(penalty["filters"].mean((1, 2)).abs().max()) < 1e-12
    assert result_of(conclusion)["hyperparameters"]["field_of_experts.filters"]["size"] == 27
    assert result_of(conclusion)["evidence"]["verdict"] == "not_checked"


def test_noise_is_that_of_the_row_whatever_part_it_is_dealt_to(tmp_path: Path) -> None:
    path = npz(tmp_path / "a.npz", image=clean())
    truth = clean()[:, None] / 255.0
    for split in ({"kind": "holdout"}, {"kind": "holdout", "test": 0.5}):
        study, conclusion = concluded(job(data={"split": split}, seed=3, budget={"outer_steps": 1}), path)
        whole = noisy(truth, 0.1, 3)
        with np.load(io.BytesIO(conclusion.files()["denoised.npz"])) as archive:
            np.testing.assert_allclose(archive["noisy"], whole[archive["rows"], 0], atol=1e-6)
            rest = np.setdiff1d(np.arange(N), archive["rows"])
        assert np.array_equal(study.problem.noisy.numpy(), whole[rest])


def test_noise_of_the_client_is_taken_as_it_is(tmp_path: Path) -> None:
    given = clean() + np.random.default_rng(0).integers(-9, 9, clean().shape)
    path = npz(tmp_path / "a.npz", image=clean(), bad=given.astype(np.int64))
    study, conclusion = concluded(job(data={"features": ["bad"]}, budget={"outer_steps": 2}), path)
    assert study.problem.noisy.shape == (6, 1, 12, 12)
    gap = (study.problem.noisy - study.problem.truth) * 255.0
    torch.testing.assert_close(gap, gap.round(), rtol=0, atol=1e-9)
    assert result_of(conclusion)["model"]["noise"] is None


def test_numbers_that_are_not_whole_are_pixels_as_they_stand(tmp_path: Path) -> None:
    path = npz(tmp_path / "a.npz", image=clean() / 255.0)
    study = study_of(job(model={"noise": 0.05}), path, "npz")
    other = study_of(job(model={"noise": 0.05}), npz(tmp_path / "b.npz", image=clean()), "npz")
    torch.testing.assert_close(study.problem.noisy, other.problem.noisy)


def test_without_a_test_part_the_images_that_were_learned_from_are_given(tmp_path: Path) -> None:
    spec = job(data={"split": {"kind": "holdout", "test": 0.0}}, budget={"outer_steps": 1})
    _, conclusion = concluded(spec, npz(tmp_path / "a.npz", image=clean()))
    result = result_of(conclusion)
    assert set(result["metrics"]) == {"train", "valid"}
    assert result["model"]["denoised"] == "train+valid"
    with np.load(io.BytesIO(conclusion.files()["denoised.npz"])) as archive:
        assert archive["rows"].tolist() == list(range(N))


def test_folders_name_the_parts_of_an_archive_whose_images_are_cropped(tmp_path: Path) -> None:
    images = {
        f"{part}/{i}.png": clean(10 + i)[i]
        for part, count in (("train", 3), ("valid", 1), ("test", 2))
        for i in range(count)
    }
    path = zipped(tmp_path / "a.zip", images)
    spec = job(data={"split": {"kind": "column", "column": "folder"}}, model={"crop": 9}, budget={"outer_steps": 2})
    study, conclusion = concluded(spec, path, "zip-images")
    assert study.problem.noisy.shape == (4, 1, 9, 9)
    # In the order of their paths: test, train, valid; 10 + i pixels are cut by (1 + i) // 2 above.
    torch.testing.assert_close(study.problem.truth[2, 0], torch.as_tensor(clean(12)[2][1:10, 1:10] / 255.0))
    with np.load(io.BytesIO(conclusion.files()["denoised.npz"])) as archive:
        assert archive["rows"].tolist() == [0, 1]


def test_float32_learns_nearly_the_same(tmp_path: Path) -> None:
    path = npz(tmp_path / "a.npz", image=clean())
    found = [
        result_of(
            concluded(job(resources={"precision": precision}, budget={"outer_steps": 30, "tolerance": 1e-4}), path)[1]
        )
        for precision in ("float32", "float64")
    ]
    assert found[0]["metrics"]["test"]["psnr"] == pytest.approx(found[1]["metrics"]["test"]["psnr"], abs=0.02)


def test_filters_that_are_too_large_are_refused_before_the_job_is_queued(tmp_path: Path) -> None:
    dataset = record(npz(tmp_path / "a.npz", image=clean()), "npz")
    tiny = replace(dataset, columns=tuple(replace(column, shape=(3, 9)) for column in dataset.columns))
    refusals = admit(job("field_of_experts", regularizer={"size": 8}), tiny).refusals
    assert [refusal.pointer for refusal in refusals] == ["/regularizers/0/size"]
    assert "up to 7" in refusals[0].detail


def test_columns_that_are_no_images_are_refused(tmp_path: Path) -> None:
    dataset = record(npz(tmp_path / "a.npz", image=clean()), "npz")
    flat = replace(dataset, columns=(ColumnRecord("image", dataset.columns[0].type, (144,), 0, None),))
    assert [refusal.pointer for refusal in admit(job(), flat).refusals] == ["/data/target"]


def test_a_real_worker_brings_a_job_to_its_result(tmp_path: Path) -> None:
    path = npz(tmp_path / "a.npz", image=clean())
    described = record(path, "npz")
    with Fleet(tmp_path, command=REAL) as fleet:
        key = new_dataset_key(hashlib.sha256(path.read_bytes()).hexdigest())
        fleet.store.datasets.expect_file(key)
        sha256, size = fleet.files.put(key, path)
        new = NewDataset(
            id="ds_00000000000000000000000001",
            name="images",
            format="npz",
            rows=described.rows,
            columns=described.columns,
            is_sparse=False,
            nonzeros=None,
            sha256=sha256,
            size_bytes=size,
            key=key,
        )
        dataset, _ = fleet.store.datasets.create(new, lost=None)
        fleet.worker()
        spec = job("field_of_experts", dataset=dataset.id, budget={"outer_steps": 12})
        first = fleet.store.jobs.create(spec).id
        second = fleet.store.jobs.create(spec).id
        fleet.reaches(first, JobStatus.SUCCEEDED, seconds=120.0)
        fleet.reaches(second, JobStatus.SUCCEEDED, seconds=120.0)
        assert fleet.trajectory(first) == fleet.trajectory(second)
        assert len(fleet.trajectory(first)) == 12
        names = {file.name for file in fleet.store.jobs.files(first)}
        assert {"weights.safetensors", "hyperparameters.safetensors", "denoised.npz", "result.json"} < names
        assert sum(name.startswith("preview-") for name in names) == 2
