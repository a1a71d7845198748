import math

import numpy as np
import pytest
import torch

from tests.learn.cases import CPU, raw_of, small_problem
from workers.learn.hypergradient import hypergradient
from workers.learn.inner.lbfgs import LBFGS
from workers.learn.linear.cg import CG
from workers.learn.problems.layout import Per
from workers.learn.verification import directional_check, neighbours, random_direction
from workers.learn.whitened_oracle import WhitenedOracle

KINDS = ["squared", "logistic", "softmax"]
GRANULARITIES = [Per.MODEL, Per.FEATURE, Per.CLASS, Per.PARAMETER]


@pytest.mark.parametrize("per", GRANULARITIES)
def test_ridge_hypergradient_is_the_closed_form(per):
    problem = small_problem("squared", per, intercept=False)
    raw = raw_of(problem)
    X, y = problem.train.design.matrix, problem.train.y
    assert problem.valid is not None
    V, t = problem.valid.design.matrix, problem.valid.y
    groups, _ = problem.layout.groups(per, biases=False)
    strength = raw.exp()[groups]
    A = X.T @ X / len(y) + torch.diag(strength)
    w = torch.linalg.solve(A, X.T @ y / len(y))
    q = torch.linalg.solve(A, V.T @ (V @ w - t) / len(t))
    exact = torch.zeros_like(raw).index_add_(0, groups, -strength * w * q)
    found = LBFGS().solve(problem.oracle(), raw, problem.initial_weights(0), tol=1e-13).w
    ours = hypergradient(problem.oracle(), found, raw, CG(), tol=1e-13)
    # Residuals of 1e-13 over a strong convexity of about 0.03.
    assert float((ours.value - exact).norm() / exact.norm()) < 1e-8
    assert ours.outer == pytest.approx(0.5 * float((V @ w - t).square().mean()), rel=1e-10)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("per", GRANULARITIES)
@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
@pytest.mark.parametrize("folds", [0, 3], ids=["holdout", "folds"])
def test_hypergradient_agrees_with_central_differences(kind, per, sparse, folds):
    problem = small_problem(kind, per, sparse=sparse, folds=folds)
    raw, oracle = raw_of(problem), problem.oracle()
    w = LBFGS().solve(oracle, raw, problem.initial_weights(0), tol=1e-11).w
    gradient = hypergradient(oracle, w, raw, CG(), tol=1e-11).value
    check = directional_check(
        oracle,
        LBFGS(),
        raw,
        w,
        gradient,
        random_direction(raw, seed=3),
        tol=1e-11,
        steps=(1e-3, 1e-4),
    )
    assert check.relative_error < 1e-5


def test_other_coordinates_give_the_same_hypergradient():
    problem = small_problem("softmax", Per.FEATURE)
    raw, oracle = raw_of(problem), problem.oracle()
    w = LBFGS().solve(oracle, raw, problem.initial_weights(0), tol=1e-12).w
    metric = oracle.metric(raw, w)
    assert metric is not None
    plain = hypergradient(oracle, w, raw, CG(), tol=1e-12).value
    white = hypergradient(WhitenedOracle(oracle, metric), metric.inverse(w), raw, CG(), tol=1e-12).value
    torch.testing.assert_close(plain, white, rtol=1e-8, atol=1e-10)


def test_the_error_is_proportional_to_the_inner_tolerance():
    problem = small_problem("softmax", Per.FEATURE)
    raw, oracle = raw_of(problem), problem.oracle()
    exact_w = LBFGS().solve(oracle, raw, problem.initial_weights(0), tol=1e-13).w
    exact = hypergradient(oracle, exact_w, raw, CG(), tol=1e-13).value
    direction = torch.randn(problem.layout.size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    errors = []
    for size in (1e-2, 1e-3, 1e-4, 1e-5):
        at = hypergradient(oracle, exact_w + size * direction, raw, CG(), tol=1e-13).value
        errors.append(float((at - exact).norm()))
    slopes = -np.diff(np.log10(errors))
    np.testing.assert_allclose(slopes, 1.0, atol=0.1)


def test_neighbours_of_an_optimum_lie_higher():
    problem = small_problem("squared", initial=1.0, n=40, d=14)
    oracle, raw = problem.oracle(), problem.space.initial(torch.float64, CPU)
    best = min((neighbours_at(problem, math.log(s)) for s in np.geomspace(1e-3, 1e3, 61)), key=lambda pair: pair[0])
    at = torch.tensor([best[1]], dtype=torch.float64)
    w = LBFGS().solve(oracle, at, problem.initial_weights(0), tol=1e-10).w
    gradient = hypergradient(oracle, w, at, CG(), tol=1e-10).value
    found = neighbours(oracle, LBFGS(), problem.space, at, w, gradient, tol=1e-10)
    assert [n.factor for n in found.neighbours] == pytest.approx([0.5, 2.0])
    assert found.deepest < 0.0
    assert not found.at_low
    assert not found.at_high
    away = neighbours(oracle, LBFGS(), problem.space, raw + 4, w, gradient, tol=1e-10)
    assert away.deepest > 0.0


def test_a_neighbour_beyond_the_box_is_left_out():
    problem = small_problem("squared", initial=1e4)
    raw = problem.space.initial(torch.float64, CPU)
    gradient = torch.tensor([-1.0], dtype=torch.float64)
    found = neighbours(problem.oracle(), LBFGS(), problem.space, raw, problem.initial_weights(0), gradient, tol=1e-8)
    assert [n.factor for n in found.neighbours] == pytest.approx([0.5])
    assert found.at_high == ("l2",)
    assert found.projected_norm == 0.0
    assert found.blocked == 1


def neighbours_at(problem, log_strength):
    raw = torch.tensor([log_strength], dtype=torch.float64)
    w = LBFGS().solve(problem.oracle(), raw, problem.initial_weights(0), tol=1e-9).w
    return float(problem.oracle().outer(w, raw).value), log_strength
