import dataclasses
import math

import pytest
import torch

from tests.learn.network_cases import small_network, training
from tests.learn.test_methods import copied, same
from workers.learn.errors import LearnError
from workers.learn.hypergradient import hypergradient
from workers.learn.linear.base import AbstractLinearSolver, LinearSolution, Outcome
from workers.learn.linear.cg import CG
from workers.learn.linear.direct import Direct
from workers.learn.linear.identity import Identity
from workers.learn.linear.minres import MINRES
from workers.learn.linear.neumann import Neumann
from workers.learn.linear.nystrom import Nystrom
from workers.learn.method import Status, run
from workers.learn.methods.implicit_online import ImplicitOnline
from workers.learn.models.mlp import Normalization
from workers.learn.outer.adam import Adam as OuterAdam
from workers.learn.outer.adam import AdamState as OuterAdamState
from workers.learn.problem import Part
from workers.learn.problems.layout import Per
from workers.learn.training.optimizers import SGD, Adam
from workers.learn.training.schedule import Cosine
from workers.learn.training.training import Training

SOLVERS = {
    "neumann": Neumann(terms=3),
    "cg": CG(max_steps=4),
    "minres": MINRES(max_steps=4),
    "nystrom": Nystrom(rank=4, rho=1e-2),
    "identity": Identity(),
    "direct": Direct(),
}


def method(solver=SOLVERS["neumann"], **settings):
    return ImplicitOnline(**{"training": training(), "solver": solver, "inner_steps": 5, "outer_rows": 20, **settings})


def points_of(rule, problem, *, seed=0, max_steps=10):
    return list(run(rule, problem, rule.init(problem, seed=seed), max_steps=max_steps))


@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
@pytest.mark.parametrize("stop", [1, 4])
def test_a_resumed_run_is_the_same_run(solver, stop):
    rule = method(solver, refresh=2, training=Training(Adam(0.01), Cosine(60)))
    settings = {"normalization": Normalization.BATCH, "dtype": torch.float32}
    whole = points_of(rule, small_network(**settings), seed=3, max_steps=7)
    first = points_of(rule, small_network(**settings), seed=3, max_steps=stop)
    rest = list(run(rule, small_network(**settings), copied(first[-1][0]), max_steps=7))
    assert [p.step for _, p in first + rest] == list(range(7))
    for (state, point), (other, seen) in zip(whole, first + rest, strict=True):
        assert same(state, other)
        assert repr(point.metrics) == repr(seen.metrics)
        assert (point.valid_loss, point.train_loss) == (seen.valid_loss, seen.train_loss)
        assert torch.equal(point.hyperparameters["l2"], seen.hyperparameters["l2"])


@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
@pytest.mark.parametrize("per", [Per.MODEL, Per.LAYER, Per.TENSOR, Per.PARAMETER])
def test_every_solver_steps_every_granularity(solver, per):
    problem = small_network(per=per, dtype=torch.float32)
    found = points_of(method(solver, burn_in=5), problem, max_steps=5)
    state, last = found[-1]
    assert last.status is Status.RUNNING
    assert float(last.hyperparameters["l2"].min()) > 0
    assert not torch.equal(last.hyperparameters["l2"], found[0][1].hyperparameters["l2"])
    assert math.isfinite(last.hypergradient_norm)
    assert state.cost.inner_iterations == 25
    assert state.cost.gradients == 25 + 4  # a hypergradient in all steps but the first
    assert state.cost.cross_products == 4


def test_strengths_stay_until_the_burn_in_is_over():
    problem = small_network(batch_size=10)  # six steps an epoch
    found = points_of(method(inner_steps=2), problem, max_steps=6)
    strengths = [point.hyperparameters["l2"] for _, point in found]
    slopes = [point.hypergradient_norm for _, point in found]
    assert [math.isnan(slope) for slope in slopes] == [True, True, True, False, False, False]
    assert torch.equal(strengths[0], strengths[3])
    assert not torch.equal(strengths[3], strengths[4])
    assert ["burn_in" in point.metrics for _, point in found] == [True, True, True, False, False, False]


def test_a_step_is_the_hypergradient_where_training_stands():
    problem = small_network("squared", Per.LAYER, dtype=torch.float64)
    rule = method(CG(), burn_in=0, damping=0.0, inner_rows=60, outer_rows=60, clip=1e9, tolerance=1e-10)
    ((state, point),) = points_of(rule, problem, max_steps=1)
    w, raw = state.training.average, problem.space.initial(torch.float64, torch.device("cpu"))
    expected = hypergradient(problem.oracle(), w, raw, CG(), tol=1e-12)
    assert point.hypergradient_norm == pytest.approx(float(expected.value.norm()), rel=1e-6)
    assert point.valid_loss == pytest.approx(expected.outer)
    assert point.inner_residual == pytest.approx(float(problem.oracle().inner(w, raw).gradient.norm()))
    # Adam's first step is its rate, against the sign
    torch.testing.assert_close(state.raw - raw, -0.1 * expected.value.sign(), rtol=1e-5, atol=0)


def test_statistics_are_as_training_left_them():
    problem = small_network(normalization=Normalization.BATCH)
    rule = method(burn_in=0)
    state = rule.init(problem, seed=0)
    for _ in range(3):
        alone, _ = rule.training.advance(problem, state.training, state.raw, seed=0, steps=5)
        before = state.training.buffers.clone()
        after, _ = rule.step(problem, state)
        assert torch.equal(after.training.buffers, alone.buffers)
        assert torch.equal(state.training.buffers, before)
        assert torch.equal(after.training.w, alone.w)
        state = after


class Failing(AbstractLinearSolver):
    """Fails as it is told to."""

    def __init__(self, factor, outcome):
        self._factor, self._outcome = factor, outcome

    def solve(self, matvec, b, *, x0, tol, seed=0):
        return LinearSolution(self._factor * b, float(b.norm()), 3, self._outcome)


@pytest.mark.parametrize("outcome", [Outcome.DIVERGED, Outcome.INDEFINITE])
def test_a_solve_that_fails_is_visible_and_moves_nothing_without_a_direction(outcome):
    problem = small_network()
    found = points_of(method(Failing(0.0, outcome), burn_in=0), problem, max_steps=3)
    assert all(point.metrics["solver_failed"] == 1.0 for _, point in found)
    assert all(point.metrics["solver_residual"] == pytest.approx(1.0) for _, point in found)
    assert torch.equal(found[0][1].hyperparameters["l2"], found[2][1].hyperparameters["l2"])
    assert found[-1][1].status is Status.RUNNING
    found = points_of(method(Failing(1.0, outcome), burn_in=0), problem, max_steps=3)
    assert not torch.equal(found[0][1].hyperparameters["l2"], found[2][1].hyperparameters["l2"])


def test_curvature_is_measured_when_it_is_due_and_after_a_failure():
    problem = small_network(dtype=torch.float32)
    state = None
    spent = []
    rule = method(Neumann(terms=2), burn_in=0, refresh=3)
    state = rule.init(problem, seed=0)
    for _ in range(7):
        before = state.cost.hessian_vector_products
        state, point = rule.step(problem, state)
        spent.append(state.cost.hessian_vector_products - before)
        assert point.metrics["solver_failed"] == 0.0
    assert [products > 15 for products in spent] == [True, False, False, True, False, False, True]
    # half the curvature: a step that is too long, which the series notices
    state = dataclasses.replace(state, curvature=1e-3 * state.curvature, curvature_age=0)
    state, point = rule.step(problem, state)
    assert point.metrics["solver_failed"] == 1.0
    assert state.curvature is None
    state, point = rule.step(problem, state)
    assert point.metrics["solver_failed"] == 0.0


def test_large_hypergradients_are_clipped():
    problem = small_network()
    big = points_of(method(Failing(1e12, Outcome.APPROXIMATE), burn_in=0), problem, max_steps=2)
    assert big[0][1].metrics["clipped"] == 1.0
    assert float(big[1][0].adam.first.norm()) <= 10.0


def test_the_answer_is_the_point_with_the_lowest_validation_loss():
    problem = small_network(n=60)
    rule = method(outer_rows=60, outer=OuterAdam(rate=0.3), training=training(SGD(0.3, momentum=0.9)))
    found = points_of(rule, problem, max_steps=25)
    values = [point.valid_loss for _, point in found]
    answer = rule.answer(problem, found[-1][0])
    best = values.index(min(values))
    assert problem.evaluate(answer.weights, Part.VALID)["loss"] == pytest.approx(min(values))
    strengths = problem.space.constrain(answer.raw)["l2"]
    torch.testing.assert_close(strengths.double(), found[best][1].hyperparameters["l2"])
    with pytest.raises(LearnError):
        rule.answer(problem, rule.init(problem, seed=0))


def test_all_validation_rows_are_looked_at_now_and_then():
    problem = small_network(n=60)
    found = points_of(method(outer_rows=15), problem, max_steps=20)
    judged = [state.judged for state, _ in found]
    assert judged[:5] == [0, 1, 2, 3, 3]
    late = sorted(set(judged))[-2:]
    assert late[1] - late[0] == 4  # four times 15 are all rows
    for state, point in found:
        if state.judged == point.step:
            whole = problem.evaluate(state.training.average, Part.VALID)["loss"]
            assert point.valid_loss == pytest.approx(whole)
    values = [point.valid_loss for state, point in found if state.judged == point.step]
    assert found[-1][0].best.value == min(values)


def test_learning_beats_the_strength_that_it_starts_from():
    def last(rate):
        problem = small_network(n=200, initial=0.1, dtype=torch.float32)  # too strong by far
        rule = method(CG(max_steps=10), inner_steps=20, outer=OuterAdam(rate=rate), outer_rows=200)
        return points_of(rule, problem, max_steps=40)[-1][1].valid_loss

    assert last(0.2) < 0.8 * last(1e-9)


def test_training_that_breaks_down_ends_the_run():
    found = points_of(method(training=training(SGD(1e30))), small_network(), max_steps=5)
    assert found[-1][1].status is Status.DIVERGED


def test_nothing_to_learn_is_refused():
    problem = small_network()
    fixed = dataclasses.replace(problem, regularizers=(dataclasses.replace(problem.regularizers[0], fixed=True),))
    with pytest.raises(LearnError, match="nothing to learn"):
        method().init(fixed, seed=0)


def test_outer_steps_settle():
    rule, raw = OuterAdam(rate=0.1, settling=4.0), torch.zeros(1, dtype=torch.float64)
    state, bound = OuterAdamState.zeros(raw), torch.full_like(raw, math.inf)
    lengths = []
    for _ in range(13):
        state, moved = rule.update(state, raw, torch.ones_like(raw), -bound, bound)
        lengths.append(float(raw - moved))
        raw = moved
    assert lengths[0] == pytest.approx(0.1)
    assert lengths[4] == pytest.approx(0.1 / math.sqrt(2))
    assert lengths[12] == pytest.approx(0.05)
