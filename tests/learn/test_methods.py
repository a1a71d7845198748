import dataclasses
import math

import numpy as np
import pytest
import torch

from tests.learn.cases import named_problem, small_problem
from workers.learn.errors import LearnError
from workers.learn.inner.cholesky import Cholesky
from workers.learn.inner.lbfgs import LBFGS
from workers.learn.linear.direct import Direct
from workers.learn.method import Cost, Status, run
from workers.learn.methods.hoag import HOAG, Schedule
from workers.learn.methods.implicit import Implicit
from workers.learn.outer.adam import Adam, AdamState
from workers.learn.outer.quasi_newton import QuasiNewton
from workers.learn.problems.layout import Per
from workers.learn.verification import neighbours

METHODS = {
    "hoag": HOAG(),
    "hoag-quadratic": HOAG(schedule=Schedule.QUADRATIC),
    "implicit": Implicit(),
    "implicit-plain": Implicit(precondition=False, inner=LBFGS()),
    "implicit-adam": Implicit(outer=Adam(rate=0.2)),
    "implicit-direct": Implicit(solver=Direct()),
}


def copied(value):
    """Return what a checkpoint would bring back: equal, and nothing of it shared."""
    if isinstance(value, torch.Tensor):
        return value.clone()
    if isinstance(value, tuple):
        return tuple(copied(v) for v in value)
    if dataclasses.is_dataclass(value):
        return type(value)(**{f.name: copied(getattr(value, f.name)) for f in dataclasses.fields(value)})
    assert value is None or isinstance(value, bool | int | float | str)
    return value


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    if dataclasses.is_dataclass(a):
        return all(same(getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(a))
    return a == b or (isinstance(a, float) and math.isnan(a) and math.isnan(b))


@pytest.mark.parametrize("per", [Per.FEATURE, Per.MODEL])
@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("stop", [1, 3, 5])
def test_a_resumed_run_is_the_same_run(method, stop, per):
    def problem():
        return small_problem("softmax", per, n=60)

    one = problem()
    whole = list(run(method, one, method.init(one, seed=3), max_steps=8))
    two = problem()
    first = list(run(method, two, method.init(two, seed=3), max_steps=stop))
    three = problem()  # another process: nothing that an oracle remembers is left
    ended = first[-1][1].status is not Status.RUNNING
    rest = [] if ended else list(run(method, three, copied(first[-1][0]), max_steps=8))
    assert [p.step for _, p in first + rest] == [p.step for _, p in whole] == list(range(len(whole)))
    for (state, point), (other_state, other_point) in zip(whole, first + rest, strict=True):
        assert same(state, other_state)
        assert point.valid_loss == other_point.valid_loss
        assert point.train_loss == other_point.train_loss
        assert point.hypergradient_norm == other_point.hypergradient_norm
        assert torch.equal(point.hyperparameters["l2"], other_point.hyperparameters["l2"])


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_the_first_point_is_the_initial_one_and_the_answer_the_best(method):
    problem = small_problem("logistic", n=80, initial=0.5)
    points = []
    for state, point in run(method, problem, method.init(problem, seed=0), max_steps=12):  # noqa: B007
        points.append(point)
    assert float(points[0].hyperparameters["l2"]) == pytest.approx(0.5, rel=1e-12)
    assert state.step == len(points)
    assert state.cost.gradient_equivalents > 0
    answer = method.answer(problem, state)
    value = float(problem.oracle().outer(answer.weights, answer.raw).value)
    assert value <= min(p.valid_loss for p in points) * (1 + 1e-3)  # points of loose solves report what they see
    with pytest.raises(LearnError):
        method.answer(problem, method.init(problem, seed=0))


def grid_minimum(problem):
    """Return the best of 400 strengths over the box, and where, each solved to high accuracy."""
    oracle = problem.oracle()
    w, best = problem.initial_weights(0), (math.inf, math.nan)
    inner = Cholesky() if problem.loss.curvature_lipschitz == 0.0 else LBFGS()
    for log_strength in np.linspace(math.log(1e2), math.log(1e-8), 400):
        raw = torch.tensor([log_strength], dtype=torch.float64)
        solution = inner.solve(oracle, raw, w, tol=1e-6)
        w = solution.w
        value = float(oracle.outer(w, raw).value)
        best = min(best, (value, float(log_strength)))
        if value > 1.5 * best[0]:  # far behind the minimum, and ever dearer
            break
    return best


@pytest.mark.parametrize("name", ["digits", "breast_cancer", "diabetes"])
def test_one_strength_is_as_good_as_the_best_of_a_fine_grid(name):
    value, where = grid_minimum(named_problem(name))
    for method in (HOAG(), Implicit()):
        problem = named_problem(name)
        for state, point in run(method, problem, method.init(problem, seed=0), max_steps=60):  # noqa: B007
            pass
        answer = method.answer(problem, state)
        w = LBFGS().solve(problem.oracle(), answer.raw, answer.weights, tol=1e-8).w
        assert float(problem.oracle().outer(w, answer.raw).value) <= 1.001 * value
        if isinstance(method, Implicit):
            assert point.status is Status.CONVERGED
            # A tenth of the spacing of 20 strengths over ten decades, and the spacing of the fine grid.
            assert abs(float(answer.raw) - where) <= 0.121 + 0.058


@pytest.mark.parametrize("per", [Per.FEATURE, Per.MODEL])
def test_the_cost_that_is_reported_is_what_was_called(per):
    problem = small_problem("softmax", per, n=60)
    counting = CountingProblem(problem)
    method = Implicit(precondition=False)
    for state, _ in run(method, counting, method.init(counting, seed=0), max_steps=5):  # noqa: B007
        pass
    assert state.cost.gradients == counting.calls["inner"] + counting.calls["outer"]
    assert state.cost.hessian_vector_products == counting.calls["product"]
    assert state.cost.cross_products == counting.calls["cross"]


class CountingProblem:
    """A problem whose oracle counts its calls."""

    def __init__(self, problem):
        self._problem = problem
        self.calls = dict.fromkeys(("inner", "outer", "product", "cross"), 0)

    def __getattr__(self, name):
        return getattr(self._problem, name)

    def oracle(self):
        return CountingOracle(self._problem.oracle(), self.calls)


class CountingOracle:
    def __init__(self, oracle, calls):
        self._oracle = oracle
        self._calls = calls

    def __getattr__(self, name):
        return getattr(self._oracle, name)

    def inner(self, w, raw):
        self._calls["inner"] += 1
        return self._oracle.inner(w, raw)

    def outer(self, w, raw):
        self._calls["outer"] += 1
        return self._oracle.outer(w, raw)

    def cross(self, w, raw, q):
        self._calls["cross"] += 1
        return self._oracle.cross(w, raw, q)

    def cross_forward(self, w, raw, direction):
        self._calls["cross"] += 1
        return self._oracle.cross_forward(w, raw, direction)

    def hvp(self, w, raw):
        product = self._oracle.hvp(w, raw)

        def counted(v):
            self._calls["product"] += 1
            return product(v)

        return counted


def test_costs_add_up():
    total = Cost(1, 2, 3, 4) + Cost(10, 20, 30, 40)
    assert total == Cost(11, 22, 33, 44)
    assert total.gradient_equivalents == 22 + 66 + 88


def test_broken_numbers_end_a_run():
    problem = small_problem("squared")
    problem.train.y[0] = math.nan
    method = HOAG()
    points = [p for _, p in run(method, problem, method.init(problem, seed=0), max_steps=5)]
    assert len(points) == 1
    assert points[0].status is Status.DIVERGED


def test_adam_loses_its_momentum_at_a_bound():
    adam, low, high = Adam(rate=1.0), torch.tensor([-1.0]), torch.tensor([1.0])
    state, raw = AdamState.zeros(low), torch.tensor([0.5])
    state, raw = adam.update(state, raw, torch.tensor([-3.0]), low, high)
    assert float(raw) == 1.0
    assert float(state.first) == 0.0
    state, raw = adam.update(state, raw, torch.tensor([3.0]), low, high)
    assert float(raw) < 1.0


def test_quasi_newton_minimises_a_quadratic_in_a_box():
    A = torch.diag(torch.tensor([1.0, 5.0, 20.0], dtype=torch.float64))
    center = torch.tensor([0.5, -3.0, 0.2], dtype=torch.float64)
    low, high = torch.full((3,), -1.0).double(), torch.full((3,), 1.0).double()
    outer = QuasiNewton()

    def evaluate(x):
        return float(0.5 * (x - center) @ A @ (x - center)), A @ (x - center)

    x = torch.zeros(3, dtype=torch.float64)
    state = outer.start(x, *evaluate(x))
    for _ in range(30):
        x, _ = outer.propose(state, low, high)
        state, _ = outer.advance(state, x, *evaluate(x), noise=0.0, gradient_noise=0.0)
        if outer.is_stationary(state, low, high, tol=1e-9):
            break
    torch.testing.assert_close(state.raw, torch.tensor([0.5, -1.0, 0.2], dtype=torch.float64), rtol=0, atol=1e-8)


def test_the_answer_on_a_bound_is_known_to_be_there():
    problem = small_problem("squared", n=400, d=2, initial=1e-3)
    method = Implicit()
    for state, _ in run(method, problem, method.init(problem, seed=0), max_steps=40):  # noqa: B007
        pass
    best = state.best
    assert best is not None
    found = neighbours(problem.oracle(), LBFGS(), problem.space, best.raw, best.weights, best.gradient, tol=1e-9)
    assert found.projected_norm < 1e-4
