"""The bounds that MAID stands on, against errors that are known."""

import itertools
import math

import pytest
import torch

from tests.learn.cases import small_problem
from workers.learn.hypergradient import hypergradient
from workers.learn.inner.lbfgs import LBFGS
from workers.learn.linear.cg import CG
from workers.learn.linear.direct import Direct
from workers.learn.linear.lanczos import ritz_values
from workers.learn.methods.maid_bounds import error_bound, sandwich
from workers.learn.oracle import Convexity
from workers.learn.problems.layout import Per
from workers.learn.problems.quadratic import QuadraticProblem

KINDS = ("squared", "logistic", "softmax")


def direction(like, seed):
    generator = torch.Generator().manual_seed(seed)
    v = torch.randn(like.shape, generator=generator, dtype=torch.float64)
    return v / torch.linalg.vector_norm(v)


class Exact:
    """A small linear problem at given strengths, solved to working precision."""

    def __init__(self, kind, seed, *, biases=True, per=Per.FEATURE, folds=0):
        problem = small_problem(kind, per, biases=biases, seed=seed, n=40, folds=folds)
        self.oracle = problem.oracle()
        raw = problem.space.initial(torch.float64, torch.device("cpu"))
        self.raw = raw + 2.0 * math.sqrt(raw.numel()) * direction(raw, seed)
        self.w = LBFGS(max_iterations=2000).solve(self.oracle, self.raw, problem.initial_weights(0), tol=1e-13).w
        self.gradient = hypergradient(self.oracle, self.w, self.raw, Direct(), tol=1e-13).value

    def inexact(self, distance, residual, seed):
        """Return z, and what its bound is made of, at weights and an adjoint that are wrong by so much."""
        w = self.w + distance * direction(self.w, seed)
        outer = self.oracle.outer(w, self.raw)
        product = self.oracle.hvp(w, self.raw)
        q = Direct().solve(product, outer.gradient + residual * direction(w, seed + 1), x0=None, tol=0.0).x
        z = outer.raw_gradient - self.oracle.cross(w, self.raw, q)
        bound = error_bound(
            self.oracle.constants(self.raw),
            self.oracle.convexity(w, self.raw),
            distance=distance,
            residual=float(torch.linalg.vector_norm(product(q) - outer.gradient)),
            cross_norm=self.oracle.cross_norm(w, self.raw),
            outer_gradient_norm=float(torch.linalg.vector_norm(outer.gradient)),
            adjoint_norm=float(torch.linalg.vector_norm(q)),
        )
        return z, bound

    def error(self, z):
        return float(torch.linalg.vector_norm(z - self.gradient))


@pytest.mark.parametrize("biases", [True, False], ids=["penalised", "unpenalised"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_error_never_exceeds_its_bound(kind, biases):
    above, ratios = 0, []
    for seed in range(17):  # 102 problems in all
        exact = Exact(
            kind, seed, biases=biases, per=(Per.FEATURE, Per.MODEL, Per.PARAMETER)[seed % 3], folds=seed % 2 * 2
        )
        for distance, residual in ((1e-1, 1e-1), (1e-2, 1e-4), (1e-4, 1e-2), (1e-6, 1e-6)):
            z, bound = exact.inexact(distance, residual, seed)
            error = exact.error(z)
            above += error > bound.total + 1e-10  # of the solution that is taken for exact
            ratios.append(bound.total / max(error, 1e-300))
    assert above == 0
    assert sorted(ratios)[len(ratios) // 2] < 3e3  # a bound that is of use


def test_the_bound_is_sharper_than_the_theorem():
    """The theorem's own constant, for a penalty with μ much below the curvature that the adjoint meets."""
    exact = Exact("logistic", 1, biases=True)
    constants, w = exact.oracle.constants(exact.raw), exact.w
    mu, r = constants.strong_convexity, 1e-5
    steepness = float(torch.linalg.vector_norm(exact.oracle.outer(w, exact.raw).gradient))
    J, L_g, L_J = exact.oracle.cross_norm(w, exact.raw), constants.outer_smoothness, constants.cross_lipschitz
    c = L_g * J / mu + constants.hessian_lipschitz / mu**2 * steepness * J + L_J * steepness / mu
    theorem = c * r + L_J * L_g / mu * r**2
    _, bound = exact.inexact(r, 0.0, 3)
    assert bound.inner < 0.5 * theorem


@pytest.mark.parametrize("kind", KINDS)
def test_the_error_is_proportional_to_the_distance_and_to_the_residual(kind):
    exact = Exact(kind, 2)
    sizes = [10.0**-k for k in range(2, 7)]
    for vary in (lambda s: exact.inexact(s, 0.0, 5), lambda s: exact.inexact(0.0, s, 5)):
        errors = [exact.error(vary(s)[0]) for s in sizes]
        bounds = [vary(s)[1].total for s in sizes]
        for values in (errors, bounds):
            slopes = [math.log10(a / b) for a, b in itertools.pairwise(values)]
            assert max(abs(slope - 1.0) for slope in slopes[1:]) < 0.05


def test_the_error_of_truncated_conjugate_gradients_is_within_the_bound():
    for seed in range(20):
        problem = QuadraticProblem.random(seed, p=40, h=3, condition=200.0)
        oracle, raw = problem.oracle(), direction(problem.initial, seed)
        w, exact = problem.solution(raw), problem.gradient(raw)
        for tol in (1.0, 1e-1, 1e-3, 1e-6):
            at = hypergradient(oracle, w, raw, CG(), tol=tol)
            residual = float(torch.linalg.vector_norm(oracle.hvp(w, raw)(at.adjoint.x) - at.outer_gradient))
            bound = error_bound(
                oracle.constants(raw),
                oracle.convexity(w, raw),
                distance=0.0,
                residual=residual,
                cross_norm=oracle.cross_norm(w, raw),
                outer_gradient_norm=float(torch.linalg.vector_norm(at.outer_gradient)),
                adjoint_norm=float(torch.linalg.vector_norm(at.adjoint.x)),
            )
            assert float(torch.linalg.vector_norm(at.value - exact)) <= bound.total + 1e-10
            assert bound.inner == 0.0


@pytest.mark.parametrize("kind", KINDS)
def test_the_exact_value_lies_between_its_bounds(kind):
    for seed in range(20):
        exact = Exact(kind, seed)
        value = float(exact.oracle.outer(exact.w, exact.raw).value)
        constants = exact.oracle.constants(exact.raw)
        for distance in (1.0, 1e-2, 1e-5):
            w = exact.w + distance * direction(exact.w, seed)
            at = exact.oracle.outer(w, exact.raw)
            bounds = sandwich(
                float(at.value),
                float(torch.linalg.vector_norm(at.gradient)),
                distance,
                smoothness=constants.outer_smoothness,
                convex=constants.outer_is_convex,
            )
            assert bounds.lower <= value + 1e-12
            assert value <= bounds.upper + 1e-12


def test_nothing_is_bounded_where_the_distance_is_unknown():
    problem = QuadraticProblem.random(0, p=4, h=2, condition=3.0)
    constants = problem.oracle().constants(problem.initial)
    convexity = Convexity(0.1, 10.0, holds_everywhere=False)
    assert convexity.distance(1.0) == math.inf
    bound = error_bound(
        constants,
        convexity,
        distance=math.inf,
        residual=0.0,
        cross_norm=1.0,
        outer_gradient_norm=1.0,
        adjoint_norm=1.0,
    )
    assert bound.total == math.inf


@pytest.mark.parametrize("convexity", [Convexity(0.3, 0.0, True), Convexity(0.3, 7.0, False)], ids=["global", "local"])
def test_the_gradient_that_suffices_for_a_distance_proves_it(convexity):
    for distance in (1e-9, 1e-3, 0.5, 3.0):
        assert convexity.distance(convexity.sufficient(distance)) == pytest.approx(distance, rel=1e-6)
        # Less than the bound that holds all the way would ask for: the segment has better parts.
        assert convexity.sufficient(distance) >= distance * convexity.within(distance) * (1 - 1e-12)


def test_ritz_values_lie_between_the_eigenvalues_and_find_them():
    H = QuadraticProblem.random(3, p=20, h=1, condition=50.0).H
    exact, start = torch.linalg.eigvalsh(H), direction(H[0], 1)
    for steps in (1, 5, 20, 50):
        found = ritz_values(lambda v: H @ v, start, steps=steps)
        assert found.numel() == min(steps, 20)
        assert float(exact[0]) - 1e-12 <= float(found[0]) <= float(found[-1]) <= float(exact[-1]) + 1e-12
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-10)
    two = ritz_values(lambda v: H @ v, torch.linalg.eigh(H).eigenvectors[:, 3], steps=10)
    assert two.numel() == 1
    assert float(two[0]) == pytest.approx(float(exact[3]), rel=1e-10)
