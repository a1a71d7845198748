"""Jobs with method `maid`, from the specification to the points that the store gets."""

import json
import math

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array

from service.builtin import BUILTIN_DATASETS
from service.spec.job import JobSpec
from workers.build.methods import build_method
from workers.checkpoint import Seal, dump, load
from workers.learn.method import run
from workers.learn.methods.maid import MAID, MAIDState
from workers.learn.problems.layout import Per
from workers.learn.problems.linear_data import Examples, L2Term, LinearData, linear_problem
from workers.workshop import begin_study

KEYS = {"inner_accuracy", "linear_accuracy", "error_bound", "step", "failures", "certified", "at_floor"}


def job(dataset="builtin:wine", *, per="model", split="holdout", precision="float64", method=None, steps=4, **parts):
    return JobSpec.model_validate(
        {
            "data": {"dataset": dataset, "split": {"kind": split}},
            "model": {"kind": "linear", **parts.pop("model", {})},
            "regularizers": [{"kind": "l2", "strength": {"init": 0.02, "low": 1e-4, "high": 1e2, "per": per}}],
            "method": {"kind": "maid", **(method or {})},
            "budget": {"outer_steps": steps, **parts.pop("budget", {})},
            "resources": {"precision": precision},
            "verify": False,
            **parts,
        }
    )


def trajectory(spec):
    study = begin_study(spec, BUILTIN_DATASETS[spec.data.dataset], None, device="cpu")
    start = study.method.init(study.problem, seed=spec.seed)
    return study, list(run(study.method, study.problem, start, max_steps=spec.budget.outer_steps))


def test_settings_of_a_job_arrive() -> None:
    assert build_method(job(), size=10) == MAID(tolerance=1e-5, initial_accuracy=None)
    spec = job(method={"initial_accuracy": 0.25}, budget={"tolerance": 1e-3})
    assert build_method(spec, size=10) == MAID(tolerance=1e-3, initial_accuracy=0.25)


@pytest.mark.parametrize("intercept", [True, False], ids=["intercept", "none"])
@pytest.mark.parametrize("split", ["holdout", "kfold"])
@pytest.mark.parametrize(
    ("dataset", "per"),
    [
        *(("builtin:wine", per) for per in ("model", "class", "feature", "parameter")),
        ("builtin:breast_cancer", "feature"),
        ("builtin:diabetes", "model"),
        ("builtin:diabetes", "feature"),
    ],
)
def test_the_certificate_reaches_the_trajectory(dataset: str, per: str, split: str, intercept: bool) -> None:
    loss = {"loss": "squared_error"} if dataset == "builtin:diabetes" else {}
    study, steps = trajectory(job(dataset, per=per, split=split, model={"intercept": intercept}, **loss))
    values = []
    for _, point in steps:
        body = json.loads(json.dumps(study.point(point), allow_nan=False))
        assert set(body["certificate"]) == KEYS
        assert body["certificate"]["certified"] is True
        assert body["certificate"]["error_bound"] >= 0.0
        values.append(body["valid_loss"])
    assert values[-1] < values[0]
    assert all(math.isfinite(value) for value in values)


def test_single_precision_goes_as_far_as_it_reaches_and_says_so() -> None:
    _, steps = trajectory(job(precision="float32", steps=60))
    _, twins = trajectory(job(steps=60))
    points = [point for _, point in steps]
    # Where values are known to seven digits, steps that gain less cannot be proven.
    assert points[-1].valid_loss == pytest.approx(twins[-1][1].valid_loss, rel=0.1)
    assert points[-1].valid_loss < points[0].valid_loss
    assert points[-1].certificate["at_floor"]


# With a strength for each parameter eight steps are not the end yet, where the two would meet.
@pytest.mark.parametrize("per", [Per.MODEL, Per.FEATURE])
@pytest.mark.parametrize("folds", [False, True], ids=["holdout", "folds"])
def test_sparse_rows_end_where_dense_ones_do(per: Per, folds: bool) -> None:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(90, 6)) * (rng.random((90, 6)) < 0.5)
    y = (X @ rng.normal(size=(6, 3)) + rng.normal(size=(90, 3))).argmax(1)
    method = build_method(job(), size=18)
    ends = []
    for rows in (X, csr_array(X)):
        data = (
            LinearData(Examples(rows, y), fold=np.arange(90) % 3)
            if folds
            else LinearData(Examples(rows[:45], y[:45]), Examples(rows[45:], y[45:]))
        )
        problem = linear_problem(
            data,
            loss="cross_entropy",
            terms=[L2Term("l2", 1e-1, per, low=1e-3, high=1e2)],
            intercept=True,
            dtype=torch.float64,
            device="cpu",
        )
        points = [point for _, point in run(method, problem, method.init(problem, seed=0), max_steps=8)]
        assert all(point.certificate["certified"] for point in points)
        ends.append(points[-1].valid_loss)
    # Bounds of sparse data are looser, so that accuracies differ.
    assert ends[0] == pytest.approx(ends[1], rel=5e-3)


def test_a_state_survives_being_written_down() -> None:
    spec = job(per="feature", steps=6)
    study, steps = trajectory(spec)
    seal = Seal("hash", 3, "running", 1, "cpu")
    state, _ = load(dump(steps[2][0], seal), MAIDState, spec_hash="hash", device="cpu")
    rest = list(
        run(
            study.method,
            begin_study(spec, BUILTIN_DATASETS[spec.data.dataset], None, device="cpu").problem,
            state,
            max_steps=6,
        )
    )
    assert len(rest) == 3
    for (_, point), (_, twin) in zip(rest, steps[3:], strict=True):
        assert study.point(point) == study.point(twin)
