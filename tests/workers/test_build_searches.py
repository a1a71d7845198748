"""A specification of a search becomes that search, and its trials are what the run reports."""

import math

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array

from service.builtin import BUILTIN_DATASETS
from service.spec.job import JobSpec
from workers.build.linear import build_linear
from workers.build.methods import build_method
from workers.build.searches import build_convex_trainer
from workers.data.load import load
from workers.evidence import examine
from workers.finish import finish
from workers.learn.method import Status, run
from workers.learn.methods.grid import Grid
from workers.learn.methods.random_search import RandomSearch
from workers.learn.methods.tpe import TPE
from workers.learn.problems.linear import LinearProblem
from workers.learn.problems.linear_data import Examples, L2Term, LinearData, linear_problem
from workers.learn.trainer import ConvexTrainer
from workers.report import point_body
from workers.verdict import Verdict

SEARCHES = {
    "grid": {"kind": "grid", "points": 6},
    "random": {"kind": "random"},
    "tpe": {"kind": "tpe", "startup_trials": 4},
}


def posed(method: dict[str, object], **parts: object) -> tuple[JobSpec, LinearProblem]:
    data = {"dataset": "builtin:wine", **dict(parts.pop("data", {}))}  # type: ignore[call-overload]
    spec = JobSpec.model_validate({"data": data, "method": method, "budget": {"outer_steps": 6}, **parts})
    loaded = load(spec.data, BUILTIN_DATASETS["builtin:wine"], None, loss=spec.loss, seed=spec.seed)
    return spec, build_linear(spec, spec.model, loaded, device="cpu")  # type: ignore[arg-type]


def test_searches_get_their_settings() -> None:
    trainer = build_convex_trainer(tolerance=1e-5, has_kinks=False)
    assert trainer.accuracy == pytest.approx(1e-6)
    for method, expected in (
        ({"kind": "grid", "points": 7}, Grid(trainer, points=7)),
        ({"kind": "random"}, RandomSearch(trainer)),
        ({"kind": "tpe", "startup_trials": 5}, TPE(trainer, startup_trials=5)),
    ):
        spec, problem = posed(method)
        assert build_method(spec, size=problem.layout.size) == expected
    spec, problem = posed({"kind": "random"}, budget={"tolerance": 1e-12})
    assert build_method(spec, size=problem.layout.size) == RandomSearch(ConvexTrainer(accuracy=1e-10))


@pytest.mark.parametrize("method", SEARCHES.values(), ids=SEARCHES)
@pytest.mark.parametrize("split", ["holdout", "kfold"])
def test_a_search_reports_points_without_a_hypergradient_and_ends_with_evidence(
    method: dict[str, object], split: str
) -> None:
    spec, problem = posed(method, data={"split": {"kind": split}})
    search = build_method(spec, size=problem.layout.size)
    points = []
    for state, point in run(search, problem, search.init(problem, seed=spec.seed), max_steps=6):  # noqa: B007
        points.append(point)
    assert len(points) == 6
    assert points[-1].status is (Status.CONVERGED if method["kind"] == "grid" else Status.RUNNING)
    for point in points:
        body = point_body(point)
        assert body["hypergradient_norm"] == "NaN"
        assert math.isfinite(point.valid_loss)
    answer = search.answer(problem, state)
    evidence = examine(problem, answer, spec)
    assert evidence.verdict is not Verdict.NOT_CHECKED
    assert evidence.findings is not None
    assert evidence.findings.relative_error < 1e-5
    assert evidence.own is None
    model = finish(problem, answer, [L2Term("l2", 1e-2, low=1e-8, high=1e4)], seed=spec.seed)
    assert model.metrics["valid"]["loss"] == pytest.approx(min(p.valid_loss for p in points), rel=1e-4)


@pytest.mark.parametrize("method", SEARCHES.values(), ids=SEARCHES)
def test_sparse_rows_are_searched_as_dense_ones_are(method: dict[str, object]) -> None:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(60, 5)) * (rng.random((60, 5)) < 0.5)
    y = (X @ rng.normal(size=5) + rng.normal(size=60) > 0).astype(np.int64)
    spec, _ = posed(method)
    values = []
    for rows in (X, csr_array(X)):
        problem = linear_problem(
            LinearData(Examples(rows[:30], y[:30]), Examples(rows[30:], y[30:])),
            loss="cross_entropy",
            terms=[L2Term("l2", 1e-2, low=1e-4, high=1e2)],
            intercept=True,
            dtype=torch.float64,
            device="cpu",
        )
        search = build_method(spec, size=problem.layout.size)
        values.append(
            [point.valid_loss for _, point in run(search, problem, search.init(problem, seed=0), max_steps=6)]
        )
    # The two metrics differ, so that trainings end elsewhere within their tolerance; TPE may choose by the last digit.
    many = 4 if method["kind"] == "tpe" else 6
    assert values[0][:many] == pytest.approx(values[1][:many], rel=1e-5)
