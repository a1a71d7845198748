import pytest
import torch

from tests.learn.cases import named_problem, raw_of, small_problem
from workers.learn.errors import LearnError
from workers.learn.inner.lbfgs import LBFGS
from workers.learn.inner.newton_cg import NewtonCG
from workers.learn.inner.relay import Relay
from workers.learn.problems.layout import Per


def test_the_second_solver_is_not_asked_where_the_first_arrives():
    problem = small_problem("softmax", Per.FEATURE)
    w0, raw = problem.initial_weights(0), raw_of(problem)
    alone = LBFGS().solve(problem.oracle(), raw, w0, tol=1e-6)
    both = Relay((LBFGS(), NewtonCG())).solve(problem.oracle(), raw, w0, tol=1e-6)
    assert torch.equal(both.w, alone.w)
    assert both.cost == alone.cost


def test_the_second_solver_goes_on_where_the_first_gives_up():
    problem = named_problem("breast_cancer")
    w0, raw = problem.initial_weights(0), torch.tensor([-14.0], dtype=torch.float64)
    few = LBFGS(max_iterations=5)
    first = few.solve(problem.oracle(), raw, w0, tol=1e-12)
    both = Relay((few, NewtonCG())).solve(problem.oracle(), raw, w0, tol=1e-12)
    assert not first.converged
    assert both.converged
    assert both.gradient_norm <= 1e-12
    measured = torch.linalg.vector_norm(problem.oracle().inner(both.w, raw).gradient)
    assert both.gradient_norm == pytest.approx(float(measured), rel=1e-12)
    assert both.iterations > first.iterations == 5
    assert both.cost.gradients > first.cost.gradients


def test_a_relay_of_nobody_is_refused():
    with pytest.raises(LearnError):
        Relay(())
