import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from torch.autograd import gradcheck, gradgradcheck

from tests.learn.cases import CPU, named_problem, raw_of, small_problem
from workers.learn.autograd_oracle import AutogradOracle
from workers.learn.errors import LearnError
from workers.learn.inner.base import AbstractInnerSolver
from workers.learn.inner.cholesky import Cholesky
from workers.learn.inner.lbfgs import LBFGS
from workers.learn.inner.newton_cg import NewtonCG
from workers.learn.problem import Part
from workers.learn.problems.layout import Per, contrasts
from workers.learn.problems.linear_data import Examples, L2Term, LinearData, linear_problem, refit_problem
from workers.learn.whitened_oracle import WhitenedOracle

KINDS = ["squared", "logistic", "softmax"]
GRANULARITIES = [Per.MODEL, Per.TENSOR, Per.FEATURE, Per.CLASS, Per.PARAMETER]


def somewhere(size: int, seed: int) -> torch.Tensor:
    return torch.randn(size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("per", GRANULARITIES)
@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
@pytest.mark.parametrize("folds", [0, 3], ids=["holdout", "folds"])
@pytest.mark.parametrize("biases", [False, True], ids=["", "biases"])
def test_closed_forms_agree_with_autograd(kind, per, sparse, folds, biases):
    problem = small_problem(kind, per, sparse=sparse, folds=folds, biases=biases)
    closed, auto = problem.oracle(), AutogradOracle(problem)
    raw, p = raw_of(problem), problem.layout.size
    w, v, direction = somewhere(p, 0), somewhere(p, 1), somewhere(raw.numel(), 2)
    pairs = [
        (closed.inner(w, raw).value, auto.inner(w, raw).value),
        (closed.inner(w, raw).gradient, auto.inner(w, raw).gradient),
        (closed.outer(w, raw).value, auto.outer(w, raw).value),
        (closed.outer(w, raw).gradient, auto.outer(w, raw).gradient),
        (closed.outer(w, raw).raw_gradient, auto.outer(w, raw).raw_gradient),
        (closed.hvp(w, raw)(v), auto.hvp(w, raw)(v)),
        (closed.cross(w, raw, v), auto.cross(w, raw, v)),
        (closed.cross_forward(w, raw, direction), auto.cross_forward(w, raw, direction)),
    ]
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
def test_definitions_differentiate_twice(kind, sparse):
    problem = small_problem(kind, Per.FEATURE, sparse=sparse, n=10, d=3)
    w = somewhere(problem.layout.size, 0).requires_grad_()
    raw = raw_of(problem).requires_grad_()
    assert gradcheck(problem.inner, (w, raw))
    assert gradgradcheck(problem.inner, (w, raw))
    assert gradcheck(problem.outer, (w, raw))


@pytest.mark.parametrize("kind", KINDS)
def test_folds_side_by_side_equal_separate_problems(kind):
    together = small_problem(kind, Per.FEATURE, folds=3)
    raw = raw_of(together)
    w = LBFGS().solve(together.oracle(), raw, together.initial_weights(0), tol=1e-11).w
    named = together.named_weights(w)
    X, y = together.train.design.matrix.numpy(), together.train.y.numpy()
    losses = []
    for fold in range(3):
        inside = np.arange(len(y)) % 3 == fold
        single = linear_problem(
            LinearData(Examples(X[~inside], y[~inside]), Examples(X[inside], y[inside])),
            loss="squared" if kind == "squared" else "cross_entropy",
            terms=[L2Term("l2", 0.05, Per.FEATURE)],
            intercept=True,
            dtype=torch.float64,
            device=CPU,
            classes={"squared": None, "logistic": 2, "softmax": 3}[kind],
        )
        alone = LBFGS().solve(single.oracle(), raw, single.initial_weights(0), tol=1e-11).w
        losses.append(float(single.oracle().outer(alone, raw).value))
        for name, tensor in single.named_weights(alone).items():
            torch.testing.assert_close(named[name][fold], tensor, rtol=1e-8, atol=1e-8)
    assert float(together.oracle().outer(w, raw).value) == pytest.approx(np.mean(losses), rel=1e-9)


def test_confined_softmax_intercepts_leave_a_nonsingular_hessian():
    problem = small_problem("softmax")
    raw = problem.space.initial(torch.float64, CPU)
    product = problem.oracle().hvp(somewhere(problem.layout.size, 0), raw)
    hessian = torch.stack([product(e) for e in torch.eye(problem.layout.size, dtype=torch.float64)])
    torch.testing.assert_close(hessian, hessian.T, rtol=0, atol=1e-14)
    # The weights have at least the penalty 0.05; intercepts have the curvature of the data.
    assert float(torch.linalg.eigvalsh(hessian)[0]) > 1e-3
    w = LBFGS().solve(problem.oracle(), raw, problem.initial_weights(0), tol=1e-10).w
    assert abs(float(problem.named_weights(w)["bias"].sum())) < 1e-12


def test_contrasts_are_orthonormal_and_sum_to_zero():
    basis = contrasts(torch.eye(5, dtype=torch.float64))
    torch.testing.assert_close(basis.T @ basis, torch.eye(4, dtype=torch.float64))
    torch.testing.assert_close(basis.sum(0), torch.zeros(4, dtype=torch.float64))


@pytest.mark.parametrize("inner", [LBFGS(), NewtonCG()], ids=["lbfgs", "newton_cg"])
@pytest.mark.parametrize("name", ["digits", "breast_cancer"])
def test_weights_are_those_of_scikit_learn(name, inner: AbstractInnerSolver):
    problem = named_problem(name)
    raw = problem.space.initial(torch.float64, CPU)
    X, y = problem.train.design.matrix.numpy(), problem.train.y.numpy()
    reference = LogisticRegression(C=1 / (0.01 * len(y)), tol=1e-10, max_iter=10_000).fit(X, y)
    solution = inner.solve(problem.oracle(), raw, problem.initial_weights(0), tol=1e-9)
    assert solution.converged
    named = problem.named_weights(solution.w)
    # Gradients of 1e-9 over the strong convexity 1e-2; scikit-learn stops earlier.
    np.testing.assert_allclose(named["weight"].numpy(), reference.coef_, atol=2e-5)
    bias = reference.intercept_ - (reference.intercept_.mean() if len(reference.intercept_) > 1 else 0.0)
    np.testing.assert_allclose(named["bias"].numpy(), bias, atol=2e-4)


@pytest.mark.parametrize("inner", [LBFGS(), NewtonCG(), Cholesky()], ids=["lbfgs", "newton_cg", "cholesky"])
def test_ridge_weights_are_those_of_scikit_learn(inner: AbstractInnerSolver):
    problem = named_problem("diabetes")
    X, y = problem.train.design.matrix.numpy(), problem.train.y.numpy()
    reference = Ridge(alpha=0.01 * len(y)).fit(X, y)
    raw = problem.space.initial(torch.float64, CPU)
    solution = inner.solve(problem.oracle(), raw, problem.initial_weights(0), tol=1e-9)
    assert solution.converged
    named = problem.named_weights(solution.w)
    np.testing.assert_allclose(named["weight"][0].numpy(), reference.coef_, rtol=1e-7, atol=1e-7)
    assert float(named["bias"][0]) == pytest.approx(reference.intercept_, rel=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_the_order_of_rows_does_not_matter(kind):
    order = np.random.default_rng(5).permutation(36)
    one, other = small_problem(kind), small_problem(kind, order=order)
    raw, w = raw_of(one), somewhere(one.layout.size, 0)
    first, second = one.oracle(), other.oracle()
    torch.testing.assert_close(first.inner(w, raw).gradient, second.inner(w, raw).gradient, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(first.outer(w, raw).value, second.outer(w, raw).value, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("per", [Per.MODEL, Per.CLASS])
@pytest.mark.parametrize("folds", [0, 3], ids=["holdout", "folds"])
@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
def test_a_metric_is_a_change_of_variables(kind, per, folds, sparse):
    problem = small_problem(kind, per, folds=folds, sparse=sparse)
    raw, p = raw_of(problem), problem.layout.size
    at = somewhere(p, 3)
    for where in (None, at):
        metric = problem.oracle().metric(raw, where)
        assert metric is not None
        u, v = somewhere(p, 0), somewhere(p, 1)
        torch.testing.assert_close(metric.inverse(metric.forward(u)), u, rtol=1e-9, atol=1e-9)
        lhs, rhs = torch.dot(metric.forward(u), v), torch.dot(u, metric.transpose(v))
        torch.testing.assert_close(lhs, rhs, rtol=1e-9, atol=1e-9)
        if kind != "softmax" and (where is not None or kind == "squared"):
            # One output: the metric is the Hessian itself, so in the new coordinates it is the identity.
            white = WhitenedOracle(problem.oracle(), metric).hvp(metric.inverse(at), raw)
            torch.testing.assert_close(white(u), u, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("kind", KINDS)
def test_proven_constants_bound_what_they_bound(kind):
    problem = small_problem(kind, Per.FEATURE, biases=True)
    raw, p = raw_of(problem), problem.layout.size
    constants = problem.oracle().constants(raw)
    assert constants is not None
    eye = torch.eye(p, dtype=torch.float64)
    hessians = []
    for seed in range(3):
        product = problem.oracle().hvp(somewhere(p, seed), raw)
        hessians.append(torch.stack([product(e) for e in eye]))
    for hessian in hessians:
        values = torch.linalg.eigvalsh(hessian)
        assert constants.strong_convexity <= float(values[0]) + 1e-12
        assert float(values[-1]) <= constants.smoothness
    change = torch.linalg.matrix_norm(hessians[0] - hessians[1], 2)
    moved = torch.linalg.vector_norm(somewhere(p, 0) - somewhere(p, 1))
    assert float(change) <= constants.hessian_lipschitz * float(moved) + 1e-12


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("folds", [0, 3])
def test_the_data_hold_intercepts_that_nobody_penalises(kind, folds):
    problem = small_problem(kind, Per.FEATURE, folds=folds)
    oracle, raw, p = problem.oracle(), raw_of(problem), problem.layout.size
    constants = oracle.constants(raw)
    assert constants is not None
    assert (constants.strong_convexity > 0.0) == (kind == "squared")
    for seed in range(3):
        w = somewhere(p, seed)
        convexity = oracle.convexity(w, raw)
        assert convexity is not None
        for length in (0.0, 0.1, 1.0, 3.0):
            there = w + length * torch.nn.functional.normalize(somewhere(p, seed + 7), dim=0)
            product = oracle.hvp(there, raw)
            hessian = torch.stack([product(e) for e in torch.eye(p, dtype=torch.float64)])
            least = float(torch.linalg.eigvalsh(hessian)[0])
            assert 0.0 < convexity.within(length) <= least
            assert constants.strong_convexity <= least
            if length == 0.0:
                assert convexity.strong_convexity > 0.02 * least  # a bound that is of use


@pytest.mark.parametrize("kind", KINDS)
def test_the_distance_to_the_minimiser_is_bounded_by_the_gradient(kind):
    problem = small_problem(kind)
    oracle, raw = problem.oracle(), raw_of(problem)
    exact = LBFGS().solve(oracle, raw, problem.initial_weights(0), tol=1e-12).w
    for length in (1e-4, 1e-2, 0.1):
        w = exact + length * torch.nn.functional.normalize(somewhere(problem.layout.size, 5), dim=0)
        convexity = oracle.convexity(w, raw)
        assert convexity is not None
        assert convexity.distance(float(torch.linalg.vector_norm(oracle.inner(w, raw).gradient))) >= length


@pytest.mark.parametrize("per", list(Per))
@pytest.mark.parametrize("kind", KINDS)
def test_the_bound_of_the_cross_derivative_is_its_norm(kind, per):
    problem = small_problem(kind, per, folds=3, biases=True)
    raw, w = raw_of(problem), somewhere(problem.layout.size, 2)
    eye = torch.eye(raw.numel(), dtype=torch.float64)
    J = torch.stack([problem.oracle().cross_forward(w, raw, e) for e in eye], dim=1)
    norm = float(torch.linalg.matrix_norm(J, 2))
    bound = problem.oracle().cross_norm(w, raw)
    assert bound is not None
    assert norm <= bound * (1 + 1e-12)
    assert bound == pytest.approx(norm, rel=1e-9)  # every parameter has one strength


def test_single_precision_stops_and_says_that_it_did_not_arrive():
    problem = small_problem("softmax", dtype=torch.float32)
    raw = problem.space.initial(torch.float32, CPU)
    for inner in (LBFGS(), NewtonCG(), Cholesky()):
        solution = inner.solve(problem.oracle(), raw, problem.initial_weights(0), tol=1e-12)
        assert not solution.converged
        assert solution.gradient_norm < 1e-4
        assert solution.iterations < 1000
        found = problem.oracle().inner(solution.w, raw).gradient
        assert solution.gradient_norm == pytest.approx(float(torch.linalg.vector_norm(found)))


def test_metrics_are_those_of_their_definitions():
    problem = named_problem("diabetes")
    raw = problem.space.initial(torch.float64, CPU)
    w = Cholesky().solve(problem.oracle(), raw, problem.initial_weights(0), tol=1e-8).w
    metrics = problem.evaluate(w, Part.VALID)
    assert problem.valid is not None
    z = problem.outputs(w, problem.valid.design)[:, 0, 0].numpy()
    y = problem.valid.y.numpy()
    assert metrics["mse"] == pytest.approx(np.mean((z - y) ** 2))
    assert metrics["loss"] == pytest.approx(0.5 * metrics["mse"])
    assert metrics["r2"] == pytest.approx(1 - np.mean((z - y) ** 2) / np.var(y))
    assert metrics["mae"] == pytest.approx(np.mean(np.abs(z - y)))
    with pytest.raises(LearnError, match="test"):
        problem.evaluate(w, Part.TEST)


def test_a_refit_after_folds_is_one_model_of_all_rows():
    problem = small_problem("softmax", Per.FEATURE, folds=3)
    terms = [L2Term("l2", 0.05, Per.FEATURE)]
    final = refit_problem(problem, terms)
    raw = raw_of(problem)
    w = LBFGS().solve(final.oracle(), raw, final.initial_weights(0), tol=1e-10).w
    assert final.named_weights(w)["weight"].shape == (3, 4)
    assert final.space.size == problem.space.size


def test_a_fixed_strength_is_not_learned_but_counts():
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(20, 3)), rng.normal(size=20)
    part = Examples(X, y)

    def problem(terms):
        return linear_problem(
            LinearData(part, part), loss="squared", terms=terms, intercept=True, dtype=torch.float64, device=CPU
        )

    both = problem([L2Term("l2", 0.1), L2Term("floor", 0.3, fixed=True)])
    one = problem([L2Term("l2", 0.4)])
    assert both.space.names == ("l2",)
    w = somewhere(4, 0)
    torch.testing.assert_close(
        both.oracle().inner(w, both.space.initial(torch.float64, CPU)).gradient,
        one.oracle().inner(w, one.space.initial(torch.float64, CPU)).gradient,
    )


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (LinearData(Examples(np.zeros((3, 2)), np.zeros(4)), None), "shape"),
        (LinearData(Examples(np.zeros((3, 2)), np.zeros(3)), fold=np.zeros(3, dtype=int)), "at least two"),
    ],
)
def test_data_that_do_not_fit_are_refused(data, message):
    with pytest.raises(LearnError, match=message):
        linear_problem(data, loss="squared", terms=[L2Term("l2", 1.0)], intercept=True, dtype=torch.float64, device=CPU)
