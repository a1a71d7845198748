import math
from dataclasses import replace

import pytest
import torch

from tests.learn.cases import CPU, named_problem, small_problem
from workers.learn.hypergradient import hypergradient
from workers.learn.inner.lbfgs import LBFGS
from workers.learn.linear.cg import CG
from workers.learn.method import Status, run
from workers.learn.methods.implicit import Implicit
from workers.learn.outer.path import Path, PathPoint, PathState


def points(method, problem, max_steps=40):
    return list(run(method, problem, method.init(problem, seed=0), max_steps=max_steps))


def on_a_curve(raw):
    """Return the point at `raw` of the path w = (raw, raw²/2), with the outer loss ‖w‖²/2 and its slope."""
    w = torch.tensor([raw, 0.5 * raw * raw], dtype=torch.float64)
    tangent = torch.tensor([1.0, raw], dtype=torch.float64)
    return PathPoint(raw, w, tangent, float(0.5 * w @ w), float(w @ tangent))


def test_two_tangents_foretell_a_quadratic_path_exactly():
    w, tangent = Path().at(on_a_curve(2.0), on_a_curve(3.0), 0.7)
    there = on_a_curve(0.7)
    torch.testing.assert_close(w, there.weights)
    torch.testing.assert_close(tangent, there.tangent)


def test_one_tangent_foretells_the_path_to_first_order():
    here = on_a_curve(2.0)
    off = [float((Path().at(here, None, 2.0 - t)[0] - on_a_curve(2.0 - t).weights).norm()) for t in (0.02, 0.01)]
    assert off[0] / off[1] == pytest.approx(4.0, rel=0.05)


def test_a_look_along_the_path_finds_where_the_slope_vanishes():
    path, here, other = Path(most_looks=12), on_a_curve(2.0), on_a_curve(4.0)

    def slope_at(raw):
        w, tangent = path.at(here, other, raw)
        return float(w @ tangent)

    sight = path.look(slope_at, here, other, ends=(-5.0, 5.0), reach=3.0, resolution=1e-3)
    assert abs(sight.raw) < 0.2
    assert sight.curvature > 0.0
    assert 1 <= sight.looks <= 12


@pytest.mark.parametrize("ends", [(1.5, 5.0), (-5.0, 5.0)])
def test_a_look_leaves_neither_the_box_nor_the_reach(ends):
    path, here = Path(), on_a_curve(2.0)
    sight = path.look(lambda _: 1.0, here, None, ends=ends, reach=1.0, resolution=0.01)
    assert sight.raw == max(ends[0], 1.0)
    assert sight.curvature <= 0.0


def test_a_trial_that_is_worse_is_a_wall_and_shortens_the_reach():
    path, best = Path(), on_a_curve(1.0)
    state = PathState.start(-10.0, 10.0, 3.0)
    worse = replace(on_a_curve(-2.0), value=best.value + 1.0)
    state, accepted = path.take(state, best, worse, noise=0.0, uncertainty=0.0)
    assert not accepted
    assert state.below == -2.0
    assert state.reach == 1.5


@pytest.mark.parametrize("initial", [1e-7, 1e-4, 1e-2, 1.0, 100.0])
@pytest.mark.parametrize("name", ["digits", "breast_cancer", "diabetes"])
def test_the_same_strength_is_found_from_everywhere(name, initial):
    problem = named_problem(name, initial=initial)
    state, point = points(Implicit(), problem)[-1]
    assert point.status is Status.CONVERGED
    oracle, raw = problem.oracle(), state.best.raw
    w = LBFGS().solve(oracle, raw, state.best.weights, tol=1e-9).w
    found = hypergradient(oracle, w, raw, CG(), tol=1e-9)
    reference = points(Implicit(tolerance=1e-8), named_problem(name))[-1][0].best
    assert abs(float(raw - reference.raw)) <= 0.06
    assert abs(float(found.value)) <= 0.01 * found.outer


def test_a_strength_too_weak_to_train_with_is_left_for_a_stronger_one():
    problem = named_problem("digits", initial=1e-6)
    method = Implicit(inner=LBFGS(max_iterations=5))
    run_of = points(method, problem, max_steps=3)
    first, second, third = (float(point.hyperparameters["l2"]) for _, point in run_of)
    assert second == pytest.approx(first * math.exp(4.0))
    assert third == pytest.approx(second * math.exp(4.0))
    assert torch.equal(method.answer(problem, run_of[0][0]).raw, problem.space.initial(torch.float64, CPU))


def test_a_finer_tolerance_finds_a_smaller_slope():
    slopes = []
    for tolerance in (1e-3, 1e-6, 1e-9):
        problem = small_problem("logistic", n=80, initial=0.5)
        state, point = points(Implicit(tolerance=tolerance), problem)[-1]
        assert point.status is Status.CONVERGED
        oracle, raw = problem.oracle(), state.best.raw
        w = LBFGS().solve(oracle, raw, state.best.weights, tol=1e-12).w
        slopes.append(abs(float(hypergradient(oracle, w, raw, CG(), tol=1e-12).value)) / state.best.value)
    assert slopes[0] <= 2e-2
    assert slopes[1] <= 1e-3
    assert slopes[2] <= 1e-4


def test_in_single_precision_it_ends_too():
    problem = small_problem("softmax", n=80, dtype=torch.float32)
    assert points(Implicit(), problem)[-1][1].status is Status.CONVERGED


def test_folds_have_one_path():
    problem = small_problem("logistic", folds=4, n=80)
    state, point = points(Implicit(tolerance=1e-7), problem)[-1]
    assert point.status is Status.CONVERGED
    oracle, raw = problem.oracle(), state.best.raw
    w = LBFGS().solve(oracle, raw, state.best.weights, tol=1e-11).w
    assert abs(float(hypergradient(oracle, w, raw, CG(), tol=1e-11).value)) <= 1e-3 * state.best.value
