"""A specification becomes the problem and the method that it says."""

from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from sklearn.datasets import dump_svmlight_file
from sklearn.linear_model import LogisticRegression, Ridge

from service.admission import admit
from service.builtin import BUILTIN_DATASETS
from service.spec.job import JobSpec
from service.spec.linear import EXACT_SOLVERS, LinearSolverSpec
from workers.build.linear import build_linear, build_terms
from workers.build.methods import build_method
from workers.build.names import strength_names
from workers.build.precision import build_dtype
from workers.build.solvers import build_solver
from workers.data.describe import describe
from workers.data.load import LoadedData, load
from workers.evidence import Verdict, examine
from workers.finish import finish
from workers.learn.linear.cg import CG
from workers.learn.method import Answer, run
from workers.learn.methods.hoag import HOAG, Schedule
from workers.learn.methods.implicit import Implicit
from workers.learn.outer.adam import Adam
from workers.learn.outer.quasi_newton import QuasiNewton
from workers.learn.problem import Part
from workers.learn.problems.linear import LinearProblem

SOLVER_KINDS = [solver.model_fields["kind"].default for solver in get_args(get_args(LinearSolverSpec)[0])]


def made(dataset: str = "wine", **spec: object) -> tuple[JobSpec, LoadedData, LinearProblem]:
    loss = "squared_error" if dataset == "diabetes" else "cross_entropy"
    data = {"dataset": f"builtin:{dataset}", **dict(spec.pop("data", {}))}  # type: ignore[call-overload]
    job = JobSpec.model_validate({"data": data, "loss": loss, **spec})
    loaded = load(job.data, BUILTIN_DATASETS[job.data.dataset], None, loss=job.loss, seed=job.seed)
    return job, loaded, build_linear(job, job.model, loaded, device="cpu")


def at(problem: LinearProblem, strength: float) -> Answer:
    """An answer that nobody searched for: every learned strength has this value, and weights are zero."""
    values = {block.name: torch.full(block.shape, strength, dtype=torch.float64) for block in problem.space.blocks}
    return Answer(problem.space.unconstrain(values), problem.initial_weights(0))


@pytest.mark.parametrize("dataset", ["wine", "breast_cancer", "diabetes"])
@pytest.mark.parametrize("per", ["model", "feature", "class", "parameter"])
@pytest.mark.parametrize("biases", [False, True])
@pytest.mark.parametrize("intercept", [False, True])
@pytest.mark.parametrize("split", ["holdout", "kfold"])
def test_there_are_as_many_strengths_and_weights_as_were_announced(
    dataset: str, per: str, biases: bool, intercept: bool, split: str
) -> None:
    job, data, problem = made(
        dataset,
        data={"split": {"kind": split}},
        model={"kind": "linear", "intercept": intercept},
        regularizers=[{"kind": "l2", "biases": biases, "strength": {"per": per}}],
    )
    figures = admit(job, BUILTIN_DATASETS[job.data.dataset]).estimate
    assert figures is not None
    assert problem.space.size == figures.strengths
    assert problem.layout.size == figures.weights
    parts = data.parts
    assert parts.train.size == figures.rows.train
    assert (0 if parts.valid is None else parts.valid.size) == figures.rows.valid
    assert (0 if parts.test is None else parts.test.size) == figures.rows.test


def test_strengths_are_named_by_their_kind_and_counted_from_the_second() -> None:
    job, _, problem = made(regularizers=[{"kind": "l2"}, {"kind": "l2", "strength": {"fixed": 0.1}}, {"kind": "l2"}])
    assert strength_names(job) == ["l2", "l2_2", "l2_3"]
    assert problem.space.names == ("l2", "l2_3")


def test_a_strength_starts_where_it_should_and_stays_in_its_box() -> None:
    _, _, problem = made(regularizers=[{"kind": "l2", "strength": {"init": 0.5, "low": 0.1, "high": 20.0}}])
    raw = problem.space.initial(torch.float64, torch.device("cpu"))
    low, high = problem.space.bounds(torch.float64, torch.device("cpu"))
    assert torch.cat([raw, low, high]).exp().tolist() == pytest.approx([0.5, 0.1, 20.0])


def test_every_solver_of_the_contract_can_be_built() -> None:
    _, _, problem = made()
    built = set()
    for kind in SOLVER_KINDS:
        job, _, _ = made(method={"kind": "implicit", "solver": {"kind": kind}})
        solver = build_solver(job.method.solver, problem.layout.size)
        built.add(type(solver))
        solution = solver.solve(lambda v: 2.0 * v, torch.ones(problem.layout.size).double(), x0=None, tol=1e-8)
        assert torch.isfinite(solution.x).all()
        assert not isinstance(job.method.solver, EXACT_SOLVERS) or solution.converged
    assert len(built) == len(SOLVER_KINDS)


def test_methods_get_their_settings() -> None:
    solver, step = {"kind": "cg", "max_iterations": 7}, {"kind": "lbfgs", "memory": 3}
    job, _, problem = made(method={"kind": "implicit", "solver": solver, "step": step}, budget={"tolerance": 1e-3})
    expected = Implicit(solver=CG(max_steps=7), outer=QuasiNewton(memory=3), tolerance=1e-3)
    assert build_method(job, size=problem.layout.size) == expected
    job, _, problem = made(method={"kind": "implicit", "step": {"kind": "adam", "learning_rate": 0.3}})
    method = build_method(job, size=problem.layout.size)
    assert isinstance(method, Implicit)
    assert method.outer == Adam(rate=0.3)
    job, _, problem = made(method={"kind": "hoag", "schedule": "cubic", "initial_tolerance": 1e-2})
    method = build_method(job, size=problem.layout.size)
    assert isinstance(method, HOAG)
    assert (method.schedule, method.first_tolerance, method.tolerance) == (Schedule.CUBIC, 1e-2, 1e-5)


@pytest.mark.parametrize(
    ("precision", "dtype"), [("auto", torch.float64), ("float32", torch.float32), ("float64", torch.float64)]
)
def test_the_precision_is_that_of_all_numbers(precision: str, dtype: torch.dtype) -> None:
    job, _, problem = made(resources={"precision": precision})
    assert build_dtype(job) is dtype
    assert problem.initial_weights(0).dtype is dtype


def test_logistic_regression_is_that_of_scikit_learn() -> None:
    job, data, problem = made("breast_cancer")
    model = finish(problem, at(problem, 0.02), build_terms(job, job.model), seed=job.seed)
    train = data.parts.train
    peer = LogisticRegression(C=1 / (0.02 * train.size), tol=1e-12, max_iter=10_000).fit(data.x[train], data.y[train])
    # both stop at a gradient of about 1e-10
    np.testing.assert_allclose(model.weights["weight"], peer.coef_, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(model.weights["bias"], peer.intercept_, rtol=1e-5)
    assert data.parts.test is not None
    accuracy = peer.score(data.x[data.parts.test], data.y[data.parts.test])
    assert model.metrics["test"]["accuracy"] == pytest.approx(accuracy)
    assert (model.trained_on, model.strength_factor) == ("train", 1.0)


def test_softmax_regression_on_folds_is_refitted_with_the_prior_that_was_learned() -> None:
    job, data, problem = made("wine", data={"split": {"kind": "kfold", "folds": 4}})
    strength = 0.05
    model = finish(problem, at(problem, strength), build_terms(job, job.model), seed=job.seed)
    rows = data.parts.train
    assert data.parts.fold is not None
    per_fold = np.mean([(data.parts.fold != fold).sum() for fold in range(4)])
    # One C, as in scikit-learn's cross-validation: on the folds and on all rows.
    c = 1 / (strength * per_fold)
    peer = LogisticRegression(C=c, tol=1e-12, max_iter=10_000).fit(data.x[rows], data.y[rows])
    np.testing.assert_allclose(model.weights["weight"], peer.coef_, rtol=1e-4, atol=1e-6)
    assert model.strength_factor == pytest.approx(per_fold / rows.size)
    assert (model.trained_on, model.rows) == ("folds", rows.size)
    assert set(model.metrics) == {"train", "valid", "test"}


def test_fixed_strengths_stay_as_they_are_in_the_refit() -> None:
    regularizers = [{"kind": "l2"}, {"kind": "l2", "strength": {"fixed": 0.3}}]
    job, data, problem = made("diabetes", data={"split": {"kind": "kfold", "folds": 2}}, regularizers=regularizers)
    model = finish(problem, at(problem, 0.2), build_terms(job, job.model), seed=job.seed)
    rows = data.parts.train
    total = 0.2 * model.strength_factor + 0.3
    peer = Ridge(alpha=total * rows.size).fit(data.x[rows], data.y[rows])
    np.testing.assert_allclose(model.weights["weight"][0], peer.coef_, rtol=1e-6)
    assert [term.fixed for term in build_terms(job, job.model)] == [False, True]


def test_a_float32_run_ends_with_a_model_in_float64() -> None:
    single, _, problem = made("wine", resources={"precision": "float32"})
    double, _, exact = made("wine")
    answer = Answer(torch.log(torch.tensor([0.05])), problem.initial_weights(0))
    reference = finish(
        exact, at(exact, float(answer.raw.double().exp())), build_terms(double, double.model), seed=double.seed
    )
    model = finish(problem, answer, build_terms(single, single.model), seed=single.seed)
    assert model.weights["weight"].dtype is torch.float64
    # the data was rounded to 7 digits
    np.testing.assert_allclose(model.weights["weight"], reference.weights["weight"], atol=1e-5)


@pytest.mark.parametrize("split", ["holdout", "kfold"])
@pytest.mark.parametrize("classes", [2, 4])
def test_sparse_data_is_learned_from_as_dense_data_is(tmp_path: Path, split: str, classes: int) -> None:
    generator = np.random.default_rng(0)
    dense = generator.normal(size=(80, 6)) * (generator.random((80, 6)) < 0.4)
    dense[0, 0] = dense[0, -1] = 1.0
    labels = np.arange(80) % classes
    np.savez(tmp_path / "a.npz", features=dense, target=labels)
    with (tmp_path / "a.svmlight").open("wb") as stream:
        dump_svmlight_file(dense, labels, stream, zero_based=False)
    job = JobSpec.model_validate(
        {"data": {"dataset": "ds_1", "standardize": False, "split": {"kind": split}}, "budget": {"outer_steps": 4}}
    )
    found = []
    for kind in ("npz", "svmlight"):
        path = tmp_path / f"a.{kind}"
        seen = describe(path, kind, limit_bytes=1 << 20)
        record = replace(
            BUILTIN_DATASETS["builtin:wine"],
            id="ds_1",
            format=kind,
            rows=seen.rows,
            columns=tuple(seen.columns),
            is_sparse=seen.is_sparse,
            nonzeros=seen.nonzeros,
        )
        assert admit(job, record).is_admitted
        problem = build_linear(job, job.model, load(job.data, record, path, loss=job.loss, seed=0), device="cpu")
        assert problem.train.design.is_sparse == (kind == "svmlight")
        method = build_method(job, size=problem.layout.size)
        *_, (state, _) = run(method, problem, method.init(problem, seed=0), max_steps=60)
        answer = method.answer(problem, state)
        model = finish(problem, at(problem, 0.1), build_terms(job, job.model), seed=job.seed)
        found.append((problem.evaluate(answer.weights, Part.VALID)["loss"], model.weights["weight"]))
        assert examine(problem, answer, job).verdict is not Verdict.NOT_CHECKED
    (dense_loss, dense_weights), (sparse_loss, sparse_weights) = found
    # The same arithmetic in another order: at one strength the same weights, to the accuracy of the training.
    torch.testing.assert_close(sparse_weights, dense_weights, rtol=1e-5, atol=1e-6)
    # Labels are noise here, so the objective is flat: searches agree on its value, to the run's tolerance.
    assert sparse_loss == pytest.approx(dense_loss, rel=1e-4)
