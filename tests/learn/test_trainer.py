import math

import numpy as np
import pytest
import torch

from tests.learn.cases import CPU, named_problem, small_problem
from tests.learn.denoising_cases import tv_problem
from workers.learn.cost import Cost
from workers.learn.inner.fista import FISTA
from workers.learn.inner.lbfgs import LBFGS
from workers.learn.inner.newton_cg import NewtonCG
from workers.learn.problems.layout import Per
from workers.learn.trainer import ConvexTrainer
from workers.learn.whitened_oracle import WhitenedOracle


def at(*logs):
    return torch.tensor(logs, dtype=torch.float64)


def exactly(problem, raw, near):
    """Return the outer loss where Newton's method ends, started at weights that are nearly right."""
    oracle = problem.oracle()
    metric = oracle.metric(raw, near)
    seen = WhitenedOracle(oracle, metric)
    found = NewtonCG().solve(seen, raw, metric.inverse(near), tol=1e-12)
    return float(seen.outer(found.w, raw).value)


@pytest.mark.parametrize("kind", ["squared", "logistic", "softmax"])
@pytest.mark.parametrize("log_strength", [4.0, 0.0, -4.0, -9.0])
def test_training_errs_no_more_than_it_was_allowed(kind, log_strength):
    problem = small_problem(kind, n=60)
    for accuracy in (1e-3, 1e-6):
        trained = ConvexTrainer(accuracy=accuracy).train(problem, at(log_strength), w0=None, seed=0)
        exact = exactly(problem, at(log_strength), trained.weights)
        # The metric leaves out how outputs are coupled, and weak strengths show it: a margin of ten.
        assert abs(trained.value - exact) <= 10 * accuracy * abs(exact)
        assert trained.value == pytest.approx(float(problem.oracle().outer(trained.weights, at(log_strength)).value))


@pytest.mark.parametrize("name", ["digits", "breast_cancer"])
def test_a_warm_start_finds_the_same_model_for_less(name):
    warm, cold = [], []
    for costs, is_warm in ((warm, True), (cold, False)):
        problem, near = named_problem(name), None
        for log_strength in np.linspace(2.0, -9.0, 8):
            trained = ConvexTrainer().train(problem, at(log_strength), w0=near if is_warm else None, seed=0)
            near = trained.weights
            costs.append((trained.cost.gradient_equivalents, trained.value))
    for (_, value), (_, other) in zip(warm, cold, strict=True):
        assert value == pytest.approx(other, rel=3e-6)
    assert sum(cost for cost, _ in warm) < 0.85 * sum(cost for cost, _ in cold)


def test_without_a_metric_training_is_as_accurate_where_the_convexity_is_known():
    problem = small_problem("logistic", n=60, biases=True)
    trainer = ConvexTrainer(accuracy=1e-8, inner=LBFGS(), precondition=False)
    for log_strength in (2.0, -2.0):
        trained = trainer.train(problem, at(log_strength), w0=None, seed=0)
        exact = exactly(problem, at(log_strength), trained.weights)
        assert abs(trained.value - exact) <= 1e-7 * exact


@pytest.mark.parametrize("smoothing", [1e-1, 1e-3])
def test_denoising_is_as_accurate_as_it_was_allowed(smoothing):
    problem = tv_problem(smoothing=smoothing)
    raw = problem.space.initial(torch.float64, CPU)
    exact = float(
        problem.oracle().outer(FISTA().solve(problem.oracle(), raw, problem.initial_weights(0), tol=1e-12).w, raw).value
    )
    for accuracy in (1e-2, 1e-4, 1e-6):
        trained = ConvexTrainer(accuracy=accuracy).train(problem, raw, w0=None, seed=0)
        assert abs(trained.value - exact) <= accuracy * exact  # the constant is proven


def test_single_precision_ends_where_it_sees_nothing_more():
    # Rows that can be separated, and next to no penalty: the hardest case.
    problem = small_problem("logistic", dtype=torch.float32)
    trained = ConvexTrainer().train(problem, torch.tensor([-18.0]), w0=None, seed=0)
    assert trained.cost.gradient_equivalents < 500


def test_broken_numbers_are_told_and_do_not_raise():
    problem = small_problem("logistic")
    problem.train.design.matrix[0, 0] = math.nan
    trained = ConvexTrainer().train(problem, at(0.0), w0=None, seed=0)
    assert not math.isfinite(trained.value) or not math.isfinite(trained.residual)


def test_the_cost_counts_every_call():
    problem = small_problem("softmax", Per.FEATURE, n=60)
    raw = at(*np.linspace(-4.0, 0.0, problem.space.size))
    counted = Counting(problem)
    trained = ConvexTrainer(precondition=False).train(counted, raw, w0=None, seed=0)
    assert trained.cost == Cost(inner_iterations=trained.iterations, gradients=counted.gradients)


class Counting:
    """A problem whose oracle counts gradients."""

    def __init__(self, problem):
        self._problem = problem
        self.gradients = 0

    def __getattr__(self, name):
        return getattr(self._problem, name)

    def oracle(self):
        return CountingOracle(self._problem.oracle(), self)


class CountingOracle:
    def __init__(self, oracle, counter):
        self._oracle = oracle
        self._counter = counter

    def __getattr__(self, name):
        return getattr(self._oracle, name)

    def inner(self, w, raw):
        self._counter.gradients += 1
        return self._oracle.inner(w, raw)

    def outer(self, w, raw):
        self._counter.gradients += 1
        return self._oracle.outer(w, raw)
