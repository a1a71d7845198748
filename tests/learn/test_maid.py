"""MAID on problems whose solutions are known, and what it promises on all."""

import math

import numpy as np
import pytest
import torch

from tests.learn.cases import named_problem, small_problem
from tests.learn.test_methods import CountingProblem, copied, grid_minimum, same
from workers.learn.errors import LearnError
from workers.learn.inner.fista import FISTA
from workers.learn.inner.lbfgs import LBFGS
from workers.learn.inner.newton_cg import NewtonCG
from workers.learn.linear.direct import Direct
from workers.learn.method import Status, run
from workers.learn.methods.maid import MAID
from workers.learn.oracle import AbstractOracle
from workers.learn.outer.box import projected_gradient
from workers.learn.problems.layout import Per
from workers.learn.problems.quadratic import QuadraticProblem


def quadratic(seed, **box):
    return QuadraticProblem.random(seed, p=8 + seed % 13, h=1 + seed % 5, condition=3.0 + 20.0 * (seed % 4), **box)


def points_of(problem, method, steps, seed=0):
    return list(run(method, problem, method.init(problem, seed=seed), max_steps=steps))


@pytest.mark.parametrize("box", [{}, {"low": -0.2, "high": 0.3}], ids=["free", "boxed"])
@pytest.mark.parametrize("seed", range(6))
def test_the_exact_objective_falls_at_every_accepted_step_by_what_is_claimed(seed, box):
    problem = quadratic(seed, **box)
    before = math.inf
    for state, point in points_of(problem, MAID(tolerance=1e-8), 30):
        exact, rounding = problem.value(state.here.at.raw), 1e-13 * abs(point.valid_loss)
        assert state.here.bounds.lower - rounding <= exact <= state.here.bounds.upper + rounding
        if point.step:
            assert exact <= before - point.metrics["claimed_decrease"] + rounding
        if point.step > 0 and point.status is Status.RUNNING:
            assert exact < before
        before = exact
        raw = state.here.at.raw
        assert torch.equal(problem.space.clamp(raw), raw)


@pytest.mark.parametrize("seed", range(6))
def test_the_end_is_the_known_minimiser(seed):
    problem = quadratic(seed)
    state, point = points_of(problem, MAID(tolerance=1e-7), 300)[-1]
    assert point.status is Status.CONVERGED
    start, best = problem.value(problem.initial), problem.value(problem.minimiser())
    assert problem.value(state.here.at.raw) - best <= 1e-5 * (start - best)


@pytest.mark.parametrize("method", [MAID(), MAID(descent_test=False)], ids=["tested", "untested"])
def test_the_end_does_not_depend_on_the_initial_accuracy(method):
    problem = quadratic(5)
    best = problem.value(problem.minimiser())
    for accuracy in (None, 1e3, 1e-1, 1e-5):
        for change in (0.05, 5.0):
            settings = {"initial_accuracy": accuracy, "first_change": change, "tolerance": 1e-6}
            state, point = points_of(problem, type(method)(descent_test=method.descent_test, **settings), 200)[-1]
            assert point.status is Status.CONVERGED, settings
            assert problem.value(state.here.at.raw) <= best * (1 + 1e-5), settings


def test_accuracies_so_loose_that_the_gradient_vanishes_are_not_taken():
    # At w = 0 the cross derivative of a penalty is zero, and at q = 0 so is any hypergradient.
    problem = small_problem("logistic", Per.FEATURE, n=60, initial=0.5)
    for descent_test in (True, False):
        method = MAID(initial_accuracy=1e6, descent_test=descent_test)
        points = [p for _, p in points_of(problem, method, 10)]
        assert points[0].hypergradient_norm > 0.0
        assert points[-1].valid_loss < points[0].valid_loss


def test_without_the_descent_test_failures_make_up_for_it():
    problem = quadratic(1)
    points = [p for _, p in points_of(problem, MAID(descent_test=False, initial_accuracy=1.0, tolerance=1e-6), 200)]
    assert sum(p.certificate["failures"] for p in points) > 0
    assert points[-1].status is Status.CONVERGED
    assert points[-1].valid_loss == pytest.approx(problem.value(problem.minimiser()), rel=1e-6)


def test_accuracies_are_tightened_only_for_need_and_relaxed_after_success():
    problem = quadratic(1)
    points = [p for _, p in points_of(problem, MAID(descent_test=False, tolerance=1e-7), 60)]
    accuracies = [p.certificate["inner_accuracy"] for p in points]
    relaxed = 0
    for before, after, point in zip(accuracies, accuracies[1:], points[1:], strict=False):
        if point.certificate["failures"] == 0:
            assert after == pytest.approx(1.1 * before, rel=1e-12)
            relaxed += 1
        elif point.status is Status.RUNNING:
            assert after < 1.1 * before
    assert relaxed > 3


def test_a_binding_box_ends_at_its_known_corner_or_edge():
    problem = QuadraticProblem(
        H=torch.eye(2, dtype=torch.float64),
        B=torch.eye(2, dtype=torch.float64),
        c=torch.zeros(2, dtype=torch.float64),
        D=torch.eye(2, dtype=torch.float64),
        e=torch.tensor([2.0, 0.1], dtype=torch.float64),  # outer = ½‖θ − e‖²
        initial=torch.zeros(2, dtype=torch.float64),
        low=-1.0,
        high=0.5,
    )
    state, point = points_of(problem, MAID(tolerance=1e-6), 60)[-1]
    assert point.status is Status.CONVERGED
    assert not point.certificate["at_floor"]
    torch.testing.assert_close(state.here.at.raw, torch.tensor([0.5, 0.1], dtype=torch.float64), rtol=0, atol=2e-6)


def test_precision_ends_a_run_that_asks_for_more():
    problem = quadratic(0)
    state, point = points_of(problem, MAID(tolerance=0.0), 2000)[-1]
    assert point.status is Status.CONVERGED
    assert point.certificate["at_floor"]
    assert point.certificate["step"] == 0.0
    assert problem.value(state.here.at.raw) <= problem.value(problem.minimiser()) * (1 + 1e-11)


@pytest.mark.parametrize("stop", [1, 3, 6])
@pytest.mark.parametrize("kind", ["squared", "softmax"])
def test_a_resumed_run_is_the_same_run(kind, stop):
    def problem():
        return small_problem(kind, Per.FEATURE, n=60)

    method = MAID()
    whole = points_of(problem(), method, 10, seed=3)
    first = points_of(problem(), method, stop, seed=3)
    rest = list(run(method, problem(), copied(first[-1][0]), max_steps=10))
    assert [p.step for _, p in first + rest] == [p.step for _, p in whole] == list(range(len(whole)))
    for (state, point), (other_state, other_point) in zip(whole, first + rest, strict=True):
        assert same(state, other_state)
        assert point.certificate == other_point.certificate
        assert (point.valid_loss, point.train_loss) == (other_point.valid_loss, other_point.train_loss)
        assert point.metrics == other_point.metrics
        assert torch.equal(point.hyperparameters["l2"], other_point.hyperparameters["l2"])


def fine_grid(name):
    """Return the best of a fine grid; of 60 strengths around the known minimum where training takes long."""
    if name != "digits":
        return grid_minimum(named_problem(name))
    problem = named_problem(name)
    oracle, w, best = problem.oracle(), problem.initial_weights(0), (math.inf, math.nan)
    for log_strength in np.linspace(-5.0, -8.5, 60):
        raw = torch.tensor([log_strength], dtype=torch.float64)
        w = LBFGS().solve(oracle, raw, w, tol=1e-6).w
        best = min(best, (float(oracle.outer(w, raw).value), float(log_strength)))
    return best


@pytest.mark.parametrize("name", ["digits", "breast_cancer", "diabetes"])
def test_one_strength_is_as_good_as_the_best_of_a_fine_grid(name):
    value, where = fine_grid(name)
    problem, method = named_problem(name), MAID()
    state, point = points_of(problem, method, 60)[-1]
    answer = method.answer(problem, state)
    w = LBFGS().solve(problem.oracle(), answer.raw, answer.weights, tol=1e-8).w
    assert float(problem.oracle().outer(w, answer.raw).value) <= 1.001 * value
    assert point.status is Status.CONVERGED
    assert point.certificate["certified"] is True
    assert abs(float(answer.raw) - where) <= 0.121 + 0.058  # as for the siblings


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
@pytest.mark.parametrize("folds", [0, 3])
@pytest.mark.parametrize("per", [Per.MODEL, Per.TENSOR, Per.FEATURE, Per.CLASS, Per.PARAMETER])
@pytest.mark.parametrize("kind", ["squared", "logistic", "softmax"])
def test_every_linear_problem_is_certified_and_improves(kind, per, folds, sparse):
    problem = small_problem(kind, per, sparse=sparse, folds=folds, initial=0.5, n=60)
    points = [p for _, p in points_of(problem, MAID(tolerance=1e-4), 5)]
    assert all(p.certificate["certified"] for p in points)
    assert all(math.isfinite(p.certificate["error_bound"]) for p in points)
    assert points[-1].valid_loss < points[0].valid_loss
    values = np.array([p.metrics["highest_value"] for p in points])
    lower = np.array([p.metrics["lowest_value"] for p in points])
    assert (lower <= values).all()


@pytest.mark.parametrize(
    "method",
    [
        MAID(inner=NewtonCG()),
        MAID(inner=LBFGS(), precondition=False),
        MAID(inner=FISTA(), precondition=False),
        MAID(spectral=False),
        MAID(solver=Direct()),
    ],
    ids=["newton", "plain", "fista", "growth", "direct"],
)
def test_any_solver_will_do(method):
    problem = small_problem("logistic", n=80, biases=True)
    ends = [points_of(problem, m, 30)[-1] for m in (MAID(), method)]
    for _, point in ends:
        assert point.certificate["certified"]
    assert ends[0][1].valid_loss == pytest.approx(ends[1][1].valid_loss, rel=1e-4)


class Hidden(AbstractOracle):
    """An oracle that keeps its constants to itself."""

    def __init__(self, oracle):
        self._oracle = oracle

    def inner(self, w, raw):
        return self._oracle.inner(w, raw)

    def outer(self, w, raw):
        return self._oracle.outer(w, raw)

    def hvp(self, w, raw):
        return self._oracle.hvp(w, raw)

    def cross(self, w, raw, q):
        return self._oracle.cross(w, raw, q)

    def cross_forward(self, w, raw, direction):
        return self._oracle.cross_forward(w, raw, direction)

    def metric(self, raw, w):
        return self._oracle.metric(raw, w)

    def constants(self, raw):
        return None

    def convexity(self, w, raw):
        return None

    def cross_norm(self, w, raw):
        return None


class HiddenProblem:
    def __init__(self, problem):
        self._problem = problem

    def __getattr__(self, name):
        return getattr(self._problem, name)

    def oracle(self):
        return Hidden(self._problem.oracle())


def test_a_problem_without_known_constants_is_solved_and_not_certified():
    value, _ = grid_minimum(named_problem("breast_cancer"))
    problem, method = HiddenProblem(named_problem("breast_cancer")), MAID()
    points = points_of(problem, method, 60)
    for _, point in points:
        assert point.certificate["certified"] is False
        assert point.certificate["error_bound"] is None
    state, point = points[-1]
    assert point.status is Status.CONVERGED
    answer = method.answer(problem, state)
    w = LBFGS().solve(problem.oracle(), answer.raw, answer.weights, tol=1e-8).w
    assert float(problem.oracle().outer(w, answer.raw).value) <= 1.001 * value


def test_the_cost_that_is_reported_covers_what_was_called():
    counting = CountingProblem(small_problem("softmax", Per.FEATURE, n=60))
    method = MAID(precondition=False)
    for state, _ in run(method, counting, method.init(counting, seed=0), max_steps=5):  # noqa: B007
        pass
    assert state.cost.gradients == counting.calls["inner"] + counting.calls["outer"]
    assert state.cost.cross_products >= counting.calls["cross"]
    assert state.cost.hessian_vector_products >= counting.calls["product"]


def test_the_first_point_is_the_initial_one_and_nothing_to_learn_is_refused():
    problem, method = small_problem("logistic", n=80, initial=0.5), MAID()
    points = [p for _, p in points_of(problem, method, 5)]
    assert float(points[0].hyperparameters["l2"]) == pytest.approx(0.5, rel=1e-12)
    with pytest.raises(LearnError):
        method.answer(problem, method.init(problem, seed=0))


def test_the_slope_that_is_reported_is_the_one_that_the_box_leaves():
    problem = quadratic(4, low=-0.05, high=0.05)
    low, high = problem.space.bounds(torch.float64, torch.device("cpu"))
    for state, point in points_of(problem, MAID(), 10):
        z = projected_gradient(state.here.at.raw, state.here.gradient, low, high)
        assert point.hypergradient_norm == pytest.approx(float(torch.linalg.vector_norm(z)), abs=1e-15)


def test_broken_numbers_end_a_run():
    problem = small_problem("squared")
    problem.train.y[0] = math.nan
    points = [p for _, p in points_of(problem, MAID(), 5)]
    assert len(points) == 1
    assert points[0].status is Status.DIVERGED
