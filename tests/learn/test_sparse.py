"""Strengths of absolute values: models that leave weights out."""

import math

import numpy as np
import pytest
import scipy.sparse
import torch
from sklearn.datasets import load_breast_cancer, load_diabetes, load_wine
from sklearn.linear_model import ElasticNet, Lasso, LogisticRegression
from sklearn.preprocessing import StandardScaler

from workers.learn.errors import LearnError
from workers.learn.hypergradient import hypergradient
from workers.learn.inner.lbfgs import LBFGS
from workers.learn.inner.reduced_newton import ReducedNewton
from workers.learn.linear.base import AbstractLinearSolver
from workers.learn.linear.cg import CG
from workers.learn.linear.direct import Direct
from workers.learn.linear.margin import Margin
from workers.learn.linear.minres import MINRES
from workers.learn.linear.neumann import Neumann
from workers.learn.method import AbstractMethod, Status, run
from workers.learn.methods.hoag import HOAG
from workers.learn.methods.implicit import Implicit
from workers.learn.problems.layout import Per
from workers.learn.problems.linear import LinearProblem
from workers.learn.problems.linear_data import Examples, L1Term, L2Term, LinearData, linear_problem

LOADERS = {"diabetes": load_diabetes, "breast_cancer": load_breast_cancer, "wine": load_wine}
TIGHT = 1e-12


def problem_of(
    name: str,
    *terms: L1Term | L2Term,
    folds: int = 0,
    as_sparse: bool = False,
    intercept: bool = True,
    rows: int | None = None,
) -> LinearProblem:
    X, y = LOADERS[name](return_X_y=True)
    order = np.random.default_rng(0).permutation(len(y))[:rows]
    X, y = StandardScaler().fit_transform(X)[order], y[order]
    if name == "diabetes":
        y = (y - y.mean()) / y.std()
    half = len(y) // 2

    def part(at: slice) -> Examples:
        return Examples(scipy.sparse.csr_array(X[at]) if as_sparse else X[at], y[at])

    if folds:
        data = LinearData(part(slice(None)), fold=np.arange(len(y)) % folds)
    else:
        data = LinearData(part(slice(half)), part(slice(half, None)))
    return linear_problem(
        data,
        loss="squared" if name == "diabetes" else "cross_entropy",
        terms=list(terms) or [L1Term("l1", 1e-2, low=1e-8, high=1e4)],
        intercept=intercept,
        dtype=torch.float64,
        device="cpu",
    )


def trained(problem: LinearProblem, raw: torch.Tensor, *, tol: float = TIGHT) -> torch.Tensor:
    solution = ReducedNewton(margin=1.0).solve(problem.oracle(), raw, problem.initial_weights(0), tol=tol)
    assert solution.converged
    return solution.w


def raw_at(problem: LinearProblem, strength: float) -> torch.Tensor:
    return torch.full((problem.space.size,), math.log(strength), dtype=torch.float64)


@pytest.mark.parametrize("strength", [0.3, 0.03, 1e-3])
def test_the_lasso_is_scikit_learns(strength: float) -> None:
    problem = problem_of("diabetes")
    w = trained(problem, raw_at(problem, strength))
    design = problem.train.design.matrix.numpy()
    peer = Lasso(alpha=strength, tol=1e-14, max_iter=100_000).fit(design, problem.train.y.numpy())
    named = problem.named_weights(w)
    np.testing.assert_allclose(named["weight"][0], peer.coef_, atol=1e-9)
    np.testing.assert_allclose(named["bias"][0], peer.intercept_, atol=1e-9)
    np.testing.assert_array_equal(named["weight"][0] == 0.0, peer.coef_ == 0.0)


def test_absolute_values_and_squares_together_are_the_elastic_net() -> None:
    problem = problem_of("diabetes", L2Term("l2", 0.05, low=1e-8, high=1e4), L1Term("l1", 0.02, low=1e-8, high=1e4))
    assert problem.space.names == ("l2", "l1")
    w = trained(problem, torch.tensor([0.05, 0.02], dtype=torch.float64).log())
    design = problem.train.design.matrix.numpy()
    peer = ElasticNet(alpha=0.07, l1_ratio=0.02 / 0.07, tol=1e-14, max_iter=100_000)
    peer.fit(design, problem.train.y.numpy())
    np.testing.assert_allclose(problem.named_weights(w)["weight"][0], peer.coef_, atol=1e-9)


@pytest.mark.parametrize("as_sparse", [False, True])
def test_sparse_logistic_regression_is_scikit_learns(as_sparse: bool) -> None:
    problem = problem_of("breast_cancer", as_sparse=as_sparse, intercept=False)
    w = trained(problem, raw_at(problem, 0.02))
    matrix = problem.train.design.matrix
    design = (matrix.to_dense() if as_sparse else matrix).numpy()
    peer = LogisticRegression(
        C=1.0 / (0.02 * len(design)), l1_ratio=1.0, solver="liblinear", fit_intercept=False, tol=1e-12, max_iter=10_000
    )
    peer.fit(design, problem.train.y.numpy())
    np.testing.assert_allclose(problem.named_weights(w)["weight"][0], peer.coef_[0], atol=1e-5)


@pytest.mark.parametrize("per", [Per.MODEL, Per.FEATURE, Per.CLASS, Per.PARAMETER])
@pytest.mark.parametrize("name", ["diabetes", "breast_cancer", "wine"])
@pytest.mark.parametrize("folds", [0, 3])
@pytest.mark.parametrize("with_squares", [False, True])
def test_the_hypergradient_is_that_of_central_differences(per: Per, name: str, folds: int, with_squares: bool) -> None:
    squares = [L2Term("l2", 0.02, per, 1e-8, 1e4)] if with_squares else []
    problem = problem_of(name, *squares, L1Term("l1", 0.01, per, 1e-8, 1e4), folds=folds, rows=90)
    generator = torch.Generator().manual_seed(1)
    raw = problem.space.initial(torch.float64, torch.device("cpu"))
    raw = raw + 0.3 * torch.rand(raw.shape, generator=generator, dtype=torch.float64) - 0.5
    direction = torch.randn(raw.shape, generator=generator, dtype=torch.float64)
    direction = direction / direction.norm()
    oracle = problem.oracle()
    w = trained(problem, raw)
    found = hypergradient(oracle, w, raw, CG(), tol=1e-12)
    predicted = float(found.value @ direction)
    errors = []
    for step in (3e-4, 1e-4, 3e-5):  # a support that changes in between makes some of them useless
        ahead, back = (
            float(oracle.outer(trained(problem, raw + sign * step * direction), raw).value) for sign in (1.0, -1.0)
        )
        errors.append(abs((ahead - back) / (2 * step) - predicted) / max(abs(predicted), 1e-3))
    assert min(errors) <= 1e-5
    assert 0 < int((w == 0.0).sum()) < w.numel()


@pytest.mark.parametrize("solver", [CG(), MINRES(), Direct(max_size=100), Neumann(terms=20_000)])
def test_every_linear_solver_gives_the_same(solver: AbstractLinearSolver) -> None:
    problem = problem_of("diabetes", L1Term("l1", 0.05, Per.FEATURE, 1e-8, 1e4))
    raw = raw_at(problem, 0.05)
    w = trained(problem, raw)
    exact = hypergradient(problem.oracle(), w, raw, CG(), tol=1e-13).value
    found = hypergradient(problem.oracle(), w, raw, solver, tol=1e-12).value
    assert float((found - exact).norm() / exact.norm()) <= 1e-6


def test_on_the_support_the_hypergradient_is_the_closed_form() -> None:
    """−λ sign(w_S)ᵀ (X_Sᵀ X_S / n)⁻¹ ∂_S outer: Bertrand et al. (2020)."""
    problem = problem_of("diabetes", intercept=False)
    raw = raw_at(problem, 0.05)
    w = trained(problem, raw)
    support = w != 0.0
    X, n = problem.train.design.matrix[:, support], problem.train.design.rows
    pull = problem.oracle().outer(w, raw).gradient[support]
    q = torch.linalg.solve(X.T @ X / n, pull)
    closed = -0.05 * float(w[support].sign() @ q)
    assert float(hypergradient(problem.oracle(), w, raw, CG(), tol=1e-13).value) == pytest.approx(closed, rel=1e-9)


def test_above_the_largest_useful_strength_nothing_is_left_and_boxes_end_there() -> None:
    problem = problem_of("diabetes")
    (block,) = problem.space.blocks
    assert block.high is not None
    just_above = torch.tensor([math.log(block.high * 1.000001)], dtype=torch.float64)
    just_below = torch.tensor([math.log(block.high * 0.99)], dtype=torch.float64)
    nothing, something = trained(problem, just_above), trained(problem, just_below)
    assert int((nothing[:10] != 0.0).sum()) == 0
    assert int((something[:10] != 0.0).sum()) == 1
    flat = hypergradient(problem.oracle(), nothing, just_above, CG(), tol=1e-12).value
    assert float(flat) == 0.0


def test_every_group_starts_where_some_of_it_is_active() -> None:
    problem = problem_of("wine", L1Term("l1", 1e3, Per.FEATURE, 1e-8, 1e4))
    raw = problem.space.initial(torch.float64, torch.device("cpu"))
    weight = problem.named_weights(trained(problem, raw))["weight"]
    assert bool((weight != 0.0).any(dim=0).float().mean() > 0.5)


METHODS = [
    Implicit(solver=Margin(CG()), inner=ReducedNewton(), smooth_path=False),
    HOAG(solver=Margin(CG()), inner=ReducedNewton()),
]


@pytest.mark.parametrize("method", METHODS, ids=["implicit", "hoag"])
@pytest.mark.parametrize("name", ["diabetes", "breast_cancer", "wine"])
def test_one_learned_strength_is_as_good_as_the_best_of_a_fine_grid(method: AbstractMethod, name: str) -> None:
    problem = problem_of(name)
    steps = run(method, problem, method.init(problem, seed=0), max_steps=200)
    *_, (state, point) = steps
    assert point.status is Status.CONVERGED
    (block,) = problem.space.blocks
    oracle, w, values = problem.oracle(), problem.initial_weights(0), []
    for strength in np.geomspace(block.high, 1e-5, 400):
        raw = raw_at(problem, float(strength))
        w = ReducedNewton(margin=1.0).solve(oracle, raw, w, tol=1e-8).w
        values.append(float(oracle.outer(w, raw).value))
        if values[-1] > 1.5 * min(values):
            break
    answer = method.answer(problem, state)
    learned = float(oracle.outer(trained(problem, answer.raw), answer.raw).value)
    assert learned <= 1.001 * min(values)


def test_folds_are_the_mean_of_separate_models() -> None:
    problem = problem_of("diabetes", folds=3)
    raw = raw_at(problem, 0.05)
    together = float(problem.oracle().outer(trained(problem, raw), raw).value)
    matrix, y = problem.train.design.matrix.numpy(), problem.train.y.numpy()
    fold, apart = np.arange(len(y)) % 3, []
    for left_out in range(3):
        data = LinearData(
            Examples(matrix[fold != left_out], y[fold != left_out]),
            Examples(matrix[fold == left_out], y[fold == left_out]),
        )
        alone = linear_problem(
            data, loss="squared", terms=[L1Term("l1", 0.05)], intercept=True, dtype=torch.float64, device="cpu"
        )
        apart.append(float(alone.oracle().outer(trained(alone, raw), raw).value))
    assert together == pytest.approx(np.mean(apart), rel=1e-10)


def test_a_reduced_newton_method_wants_kinks() -> None:
    smooth = problem_of("diabetes", L2Term("l2", 0.1))
    with pytest.raises(LearnError, match="L-BFGS"):
        ReducedNewton().solve(smooth.oracle(), raw_at(smooth, 0.1), smooth.initial_weights(0), tol=1e-6)


def test_it_costs_little_more_than_a_smooth_solve() -> None:
    sparse, smooth = problem_of("breast_cancer"), problem_of("breast_cancer", L2Term("l2", 1e-3))
    raw = raw_at(sparse, 1e-3)
    kinked = ReducedNewton(margin=1.0).solve(sparse.oracle(), raw, sparse.initial_weights(0), tol=1e-8)
    plain = LBFGS().solve(smooth.oracle(), raw, smooth.initial_weights(0), tol=1e-8)
    assert kinked.converged
    assert kinked.cost.gradient_equivalents <= 10 * plain.cost.gradient_equivalents
