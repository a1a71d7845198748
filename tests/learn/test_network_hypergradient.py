import dataclasses

import pytest
import torch

from tests.learn.network_cases import raw_of, small_network
from workers.learn.hypergradient import hypergradient
from workers.learn.inner.lbfgs import LBFGS
from workers.learn.inner.newton_cg import NewtonCG
from workers.learn.linear.cg import CG
from workers.learn.linear.direct import Direct
from workers.learn.linear.minres import MINRES
from workers.learn.linear.neumann import Neumann, largest_eigenvalue
from workers.learn.linear.nystrom import Nystrom
from workers.learn.models.mlp import Activation, Normalization
from workers.learn.problems.layout import Per
from workers.learn.verification import directional_check, random_direction

GRANULARITIES = [Per.MODEL, Per.LAYER, Per.TENSOR, Per.PARAMETER]


def trained(problem, raw):
    """Return weights at a minimum: L-BFGS goes near one, Newton's steps reach the last digits."""
    near = LBFGS(max_iterations=5000).solve(problem.oracle(), raw, problem.initial_weights(1), tol=1e-6)
    solution = NewtonCG().solve(problem.oracle(), raw, near.w, tol=1e-11)
    assert solution.converged
    return solution.w


def checked(problem, raw):
    """Return the hypergradient's relative error beside central differences of re-solved problems."""
    oracle = problem.oracle()
    w = trained(problem, raw)
    assert float(w.norm()) > 1.0  # not the network of zero weights
    gradient = hypergradient(oracle, w, raw, MINRES(), tol=1e-11).value
    direction = random_direction(raw, seed=3)
    check = directional_check(oracle, NewtonCG(), raw, w, gradient, direction, tol=1e-11, steps=(1e-3, 1e-4))
    assert all(difference.inner_converged for difference in check.differences)
    return check.relative_error


@pytest.mark.parametrize("kind", ["squared", "logistic", "softmax"])
@pytest.mark.parametrize("per", GRANULARITIES)
def test_hypergradient_agrees_with_central_differences(kind, per):
    # biases penalised too: free ones of three classes share a direction that changes nothing
    problem = small_network(kind, per, widths=(3,), initial=0.01, biases=True)
    assert checked(problem, raw_of(problem)) < 1e-4  # long differences err by curvature, short ones by rounding


@pytest.mark.parametrize("activation", [Activation.TANH, Activation.GELU, Activation.SILU])
def test_hypergradient_agrees_in_deeper_networks(activation):
    problem = small_network("softmax", Per.LAYER, widths=(3, 2), activation=activation, initial=0.01, biases=True)
    assert checked(problem, raw_of(problem)) < 1e-4  # long differences err by curvature, short ones by rounding


@pytest.mark.parametrize(
    ("solver", "error"),
    [
        (Direct(), 1e-8),
        (CG(), 1e-6),
        (MINRES(), 1e-6),
        (Neumann(terms=3000), 1e-5),
        (Nystrom(rank=1000, rho=1e-9), 1e-4),
    ],
    ids=lambda v: type(v).__name__,
)
def test_every_solver_finds_the_dense_hypergradient(solver, error):
    problem = small_network("softmax", Per.TENSOR, widths=(3,), initial=0.01, biases=True)
    raw, oracle = raw_of(problem), problem.oracle()
    w = trained(problem, raw)
    eye = torch.eye(w.numel(), dtype=w.dtype)
    H = torch.stack([oracle.hvp(w, raw)(column) for column in eye])
    assert float(torch.linalg.eigvalsh(H).min()) > 0  # a minimum
    q = torch.linalg.solve(H, oracle.outer(w, raw).gradient)
    exact = -oracle.cross(w, raw, q)
    ours = hypergradient(oracle, w, raw, solver, tol=1e-9).value
    assert float((ours - exact).norm()) <= error * float(exact.norm())


@pytest.mark.parametrize("solver", [CG(damping=0.1), MINRES(damping=0.1), Neumann(terms=2000, damping=0.1)])
def test_damping_is_added_to_the_hessian(solver):
    problem = small_network("softmax", Per.LAYER)
    w, raw = problem.initial_weights(0), raw_of(problem)
    matvec = problem.oracle().hvp(w, raw)
    b = problem.oracle().outer(w, raw).gradient
    H = torch.stack([matvec(column) for column in torch.eye(w.numel(), dtype=w.dtype)])
    lowest = float(torch.linalg.eigvalsh(H).min())
    damping = 0.1 + max(-lowest, 0.0)
    found = dataclasses.replace(solver, damping=damping).solve(matvec, b, x0=None, tol=1e-10)
    exact = torch.linalg.solve(H + damping * torch.eye(len(b), dtype=b.dtype), b)
    assert found.converged
    torch.testing.assert_close(found.x, exact, rtol=1e-7, atol=1e-8)
    assert found.residual <= 1e-10


def test_curvature_is_measured_to_a_tenth():
    problem = small_network("softmax", Per.LAYER)
    w, raw = problem.initial_weights(0), raw_of(problem)
    matvec = problem.oracle().hvp(w, raw)
    H = torch.stack([matvec(column) for column in torch.eye(w.numel(), dtype=w.dtype)])
    top = float(torch.linalg.eigvalsh(H).abs().max())
    assert 0.9 * top <= largest_eigenvalue(matvec, w, steps=15, seed=0) <= top * (1 + 1e-12)


def test_frozen_statistics_make_one_function_of_weights_and_strengths():
    problem = small_network("softmax", widths=(3,), normalization=Normalization.BATCH, initial=0.01, biases=True)
    frozen = dataclasses.replace(problem, buffers=problem.statistics(problem.initial_weights(0)))
    assert checked(frozen, raw_of(frozen)) < 1e-4  # long differences err by curvature, short ones by rounding
