import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.sparse.linalg import LinearOperator
from scipy.sparse.linalg import cg as scipy_cg
from scipy.sparse.linalg import minres as scipy_minres
from torch import Tensor

from workers.learn.errors import LearnError
from workers.learn.linear import (
    CG,
    MINRES,
    AbstractLinearSolver,
    Direct,
    Identity,
    Neumann,
    Nystrom,
    Outcome,
)
from workers.learn.linear.neumann import largest_eigenvalue

P = 40

EXACT = [
    pytest.param(Direct(), id="direct"),
    pytest.param(CG(), id="cg"),
    pytest.param(MINRES(), id="minres"),
    pytest.param(Neumann(terms=4000), id="neumann"),
]
ALL = [
    *EXACT,
    pytest.param(Nystrom(rank=10, rho=0.1), id="nystrom"),
    pytest.param(Identity(scale=0.5), id="identity"),
]


def symmetric(eigenvalues: Tensor, *, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    p = len(eigenvalues)
    basis, _ = torch.linalg.qr(torch.randn(p, p, generator=generator, dtype=torch.float64))
    h = (basis * eigenvalues.double()) @ basis.T
    return 0.5 * h + 0.5 * h.mT


def definite(condition: float, *, p: int = P, seed: int = 0) -> Tensor:
    return symmetric(torch.logspace(-math.log10(condition), 0, p, dtype=torch.float64), seed=seed)


def rhs(p: int = P, *, seed: int = 1) -> Tensor:
    return torch.randn(p, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Counting:
    """A dense operator that counts its products; batches are seen once, as vmap calls once."""

    def __init__(self, h: Tensor) -> None:
        self.h = h
        self.calls = 0

    def __call__(self, v: Tensor) -> Tensor:
        self.calls += 1
        product: Tensor = self.h @ v
        return product


def unbatched(h: Tensor) -> Callable[[Tensor], Tensor]:
    def matvec(v: Tensor) -> Tensor:
        return torch.from_numpy(h.numpy() @ v.numpy())  # leaves torch, so that vmap cannot follow

    return matvec


# --- every strategy --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", EXACT)
@pytest.mark.parametrize("condition", [1.0, 10.0, 100.0])
def test_the_solution_is_that_of_a_dense_solve(solver: AbstractLinearSolver, condition: float) -> None:
    h, b = definite(condition), rhs()
    solution = solver.solve(lambda v: h @ v, b, x0=None, tol=1e-10)
    assert solution.converged
    # residual 1e-10 times the condition number
    assert torch.allclose(solution.x, torch.linalg.solve(h, b), rtol=0, atol=1e-10 * max(condition, 10))


@pytest.mark.parametrize("solver", ALL)
def test_the_residual_is_measured_and_every_product_counted(solver: AbstractLinearSolver) -> None:
    h, b = definite(30.0), rhs()
    solution = solver.solve(lambda v: h @ v, b, x0=rhs(seed=5), tol=1e-6)
    if isinstance(solver, Identity):
        assert (solution.steps, math.isnan(solution.residual)) == (0, True)
        return
    residual = float(torch.linalg.vector_norm(h @ solution.x - b))
    assert solution.residual == pytest.approx(residual, rel=1e-6, abs=1e-14)
    counting = Counting(h)
    again = solver.solve(counting, b, x0=rhs(seed=5), tol=1e-6)
    assert torch.equal(again.x, solution.x)
    match solver:
        case Direct():  # one batch of columns, and one product that measures
            assert (again.steps, counting.calls) == (P + 1, 2)
        case Nystrom():
            assert (again.steps, counting.calls) == (solver.rank + 1, 2)
        case _:
            assert again.steps == counting.calls


@pytest.mark.parametrize("solver", ALL)
def test_the_same_seed_gives_the_same_answer(solver: AbstractLinearSolver) -> None:
    h, b = definite(1e3), rhs()
    torch.manual_seed(0)
    first = solver.solve(lambda v: h @ v, b, x0=None, tol=1e-3, seed=7)
    torch.manual_seed(1)
    second = solver.solve(lambda v: h @ v, b, x0=None, tol=1e-3, seed=7)
    assert torch.equal(first.x, second.x)
    assert (first.steps, first.outcome) == (second.steps, second.outcome)


@pytest.mark.parametrize("solver", ALL)
def test_a_zero_right_hand_side_is_answered_at_no_cost(solver: AbstractLinearSolver) -> None:
    counting = Counting(definite(10.0))
    solution = solver.solve(counting, torch.zeros(P, dtype=torch.float64), x0=rhs(), tol=0.0)
    assert torch.equal(solution.x, torch.zeros(P, dtype=torch.float64))
    assert (solution.residual, solution.steps, counting.calls, solution.converged) == (0.0, 0, 0, True)


@pytest.mark.parametrize("solver", ALL)
@pytest.mark.parametrize("tol", [1.0, 1e6])
def test_a_tolerance_above_the_right_hand_side_is_no_reason_to_answer_zero(
    solver: AbstractLinearSolver, tol: float
) -> None:
    h, b = definite(10.0), rhs()
    for x0 in (None, torch.zeros_like(b), rhs(seed=3)):
        solution = solver.solve(lambda v: h @ v, b, x0=x0, tol=tol * float(b.norm()))
        assert float(torch.dot(solution.x, b)) > 0


@pytest.mark.parametrize("solver", ALL)
@pytest.mark.parametrize(("dtype", "scale"), [(torch.float64, 1e-13), (torch.float64, 1e-200), (torch.float32, 1e-30)])
def test_a_tiny_right_hand_side_gives_the_same_solution_tiny(
    solver: AbstractLinearSolver, dtype: torch.dtype, scale: float
) -> None:
    h, b = definite(30.0).to(dtype), rhs().to(dtype)
    big = solver.solve(lambda v: h @ v, b, x0=None, tol=1e-4)
    tiny = solver.solve(lambda v: h @ v, b * scale, x0=None, tol=1e-4 * scale)
    assert tiny.outcome == big.outcome
    assert torch.allclose(tiny.x / scale, big.x, rtol=1e-4, atol=1e-4)
    if not math.isnan(big.residual):
        assert 0 < tiny.residual < 1e3 * scale


@pytest.mark.parametrize("solver", ALL)
def test_single_precision_stays_single_and_is_as_good_as_it_can_be(solver: AbstractLinearSolver) -> None:
    h, b = definite(100.0).float(), rhs().float()
    solution = solver.solve(lambda v: h @ v, b, x0=None, tol=2e-5)
    assert solution.x.dtype == torch.float32
    if isinstance(solver, Nystrom | Identity):
        assert solution.outcome is Outcome.APPROXIMATE
        return
    assert solution.converged
    exact = torch.linalg.solve(h.double(), b.double())
    assert float((solution.x - exact).norm()) <= 2e-5 * 100  # residual times 1/λ_min


@pytest.mark.parametrize("solver", [CG(), MINRES(), Direct()])
def test_a_tolerance_below_rounding_ends_and_says_so(solver: AbstractLinearSolver) -> None:
    h, b = definite(100.0).float(), rhs().float()
    solution = solver.solve(lambda v: h @ v, b, x0=None, tol=1e-12)
    assert solution.outcome is Outcome.ITERATION_LIMIT
    assert solution.residual < 1e-4
    assert solution.steps < 5 * P


@pytest.mark.parametrize("solver", ALL)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_an_operator_that_is_not_finite_is_reported_and_the_answer_is_finite(
    solver: AbstractLinearSolver, bad: float
) -> None:
    h, b = definite(10.0), rhs()
    h[3, 4] = h[4, 3] = bad
    solution = solver.solve(lambda v: h @ v, b, x0=None, tol=1e-8)
    assert bool(torch.isfinite(solution.x).all())
    if not isinstance(solver, Identity):
        assert solution.outcome is Outcome.DIVERGED
        assert not solution.converged


@pytest.mark.parametrize("solver", ALL)
def test_a_right_hand_side_that_is_not_finite_is_reported(solver: AbstractLinearSolver) -> None:
    h, b = definite(10.0), rhs()
    b[2] = math.nan
    solution = solver.solve(lambda v: h @ v, b, x0=None, tol=1e-8)
    assert solution.outcome is Outcome.DIVERGED
    assert bool(torch.isfinite(solution.x).all())


@pytest.mark.parametrize("solver", [CG(), MINRES(), Neumann(terms=50), Direct(), Nystrom(rank=40, rho=1e-3)])
def test_an_operator_that_breaks_down_midway_leaves_a_finite_answer(solver: AbstractLinearSolver) -> None:
    h, b = definite(1e4), rhs()
    left = iter(range(9))

    def matvec(v: Tensor) -> Tensor:
        return h @ v if next(left, None) is not None else torch.full_like(v, math.nan)

    solution = solver.solve(matvec, b, x0=None, tol=1e-12)
    assert not solution.converged or isinstance(solver, Direct)  # which asks twice, batched
    assert bool(torch.isfinite(solution.x).all())


@pytest.mark.parametrize("solver", ALL)
def test_wrong_shapes_are_refused(solver: AbstractLinearSolver) -> None:
    h = definite(10.0)
    with pytest.raises(LearnError, match=r"shape \(40, 1\)"):
        solver.solve(lambda v: h @ v, rhs()[:, None], x0=None, tol=1e-6)
    with pytest.raises(LearnError, match="warm start"):
        solver.solve(lambda v: h @ v, rhs(), x0=rhs(3), tol=1e-6)


@pytest.mark.parametrize("solver", ALL)
def test_a_scalar_system_is_a_system(solver: AbstractLinearSolver) -> None:
    h = torch.tensor([[2.0]], dtype=torch.float64)
    solution = solver.solve(lambda v: h @ v, torch.tensor([3.0], dtype=torch.float64), x0=None, tol=1e-9)
    expected = {Nystrom: 3 / 2.1, Identity: 1.5}.get(type(solver), 1.5)
    assert float(solution.x) == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize("solver", ALL)
def test_arguments_are_left_as_they_were(solver: AbstractLinearSolver) -> None:
    h, b, x0 = definite(10.0), rhs(), rhs(seed=2)
    b0, x00 = b.clone(), x0.clone()
    solver.solve(lambda v: h @ v, b, x0=x0, tol=1e-6)
    assert torch.equal(b, b0)
    assert torch.equal(x0, x00)


@pytest.mark.parametrize("solver", ALL)
def test_hessians_of_autograd_are_taken_under_either_grad_mode(solver: AbstractLinearSolver) -> None:
    data = torch.randn(60, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    w = torch.zeros(7, dtype=torch.float64, requires_grad=True)
    loss = torch.nn.functional.softplus(data @ w).mean() + 0.05 * (w**2).sum()
    (gradient,) = torch.autograd.grad(loss, w, create_graph=True)

    def matvec(v: Tensor) -> Tensor:
        return torch.autograd.grad(gradient, w, v, retain_graph=True)[0]

    b = rhs(7)
    solution = solver.solve(matvec, b.requires_grad_(), x0=None, tol=1e-9)
    with torch.no_grad():
        again = solver.solve(matvec, b, x0=None, tol=1e-9)
    assert torch.equal(solution.x, again.x)
    assert not solution.x.requires_grad
    if solver in (CG(), MINRES(), Direct()):
        hessian = data.T @ data / 60 * 0.25 + 0.1 * torch.eye(7, dtype=torch.float64)
        assert torch.allclose(solution.x, torch.linalg.solve(hessian, b), atol=1e-7)


# --- warm starts -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", [CG(), MINRES(), Neumann(terms=4000, alpha=1.0)])
def test_a_near_solution_saves_products(solver: AbstractLinearSolver) -> None:
    h, b = definite(100.0), rhs()
    cold = solver.solve(lambda v: h @ v, b, x0=None, tol=1e-8)
    warm = solver.solve(lambda v: h @ v, b, x0=cold.x + 1e-7 * rhs(seed=9), tol=1e-8)
    assert warm.converged
    assert warm.steps < 0.7 * cold.steps


@pytest.mark.parametrize("solver", [CG(), MINRES()])
def test_a_solution_that_is_handed_back_costs_one_product(solver: AbstractLinearSolver) -> None:
    h, b = definite(100.0), rhs()
    x = torch.linalg.solve(h, b)
    again = solver.solve(lambda v: h @ v, b, x0=x, tol=1e-8)
    assert (again.steps, again.converged) == (1, True)
    assert torch.allclose(again.x, x, rtol=1e-12)


@pytest.mark.parametrize("solver", [CG(), MINRES(), Neumann(terms=4000, alpha=1.0)])
@pytest.mark.parametrize("factor", [1e12, -1e12, math.nan])
def test_a_bad_warm_start_costs_a_product_and_nothing_else(solver: AbstractLinearSolver, factor: float) -> None:
    h, b = definite(100.0), rhs()
    cold = solver.solve(lambda v: h @ v, b, x0=None, tol=1e-8)
    warm = solver.solve(lambda v: h @ v, b, x0=factor * rhs(seed=9), tol=1e-8)
    assert warm.converged
    assert warm.steps <= 1.1 * cold.steps + 2


# --- conjugate gradients ---------------------------------------------------------------------------------------


def test_cg_is_scipys_iterate_by_iterate() -> None:
    h, b = definite(50.0), rhs()
    theirs: list[np.ndarray] = []
    scipy_cg(h.numpy(), b.numpy(), rtol=1e-14, maxiter=16, callback=lambda x: theirs.append(x.copy()))
    for k, expected in enumerate(theirs, start=1):
        ours = CG(max_steps=k).solve(lambda v: h @ v, b, x0=None, tol=1e-13)
        assert ours.steps <= k + 1
        # two orders of the same sums part by rounding, which the iteration multiplies (2e-12 at its end)
        assert np.linalg.norm(ours.x.numpy() - expected) <= 1e-10 * np.linalg.norm(expected)
    assert len(theirs) == 16


def test_cg_ends_after_as_many_steps_as_there_are_eigenvalues() -> None:
    h = symmetric(torch.tensor([1.0, 2.0, 5.0, 9.0]).repeat_interleave(10))
    solution = CG().solve(lambda v: h @ v, rhs(), x0=None, tol=1e-9)
    assert solution.converged
    assert solution.steps == 4


@pytest.mark.parametrize("condition", [10.0, 1e4, 1e8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("relative", [1e-1, 1e-4, 1e-8])
def test_cg_measures_only_where_its_recurrence_may_be_wrong(
    condition: float, dtype: torch.dtype, relative: float
) -> None:
    h, b = definite(condition).to(dtype), rhs().to(dtype)
    counting, tol = Counting(h), relative * float(b.norm())
    solution = CG().solve(counting, b, x0=None, tol=tol)
    assert solution.steps == counting.calls
    true = float((h.double() @ solution.x.double() - b.double()).norm())
    # an unmeasured residual is right to a hundredth of the tolerance, a measured one to rounding
    rounding = 100 * torch.finfo(dtype).eps * float(solution.x.double().norm() + b.double().norm())
    assert abs(true - solution.residual) <= 0.01 * tol + rounding
    if (condition, dtype, relative) == (10.0, torch.float64, 1e-4):
        unmeasured = CG(max_steps=solution.steps - 1).solve(lambda v: h @ v, b, x0=None, tol=tol)
        assert (unmeasured.steps, unmeasured.outcome) == (solution.steps - 1, Outcome.ITERATION_LIMIT)


def test_cg_converges_as_fast_as_its_bound() -> None:
    condition, k = 50.0, 15
    h, b = definite(condition, p=200), rhs(200)
    exact = torch.linalg.solve(h, b)
    error = CG(max_steps=k).solve(lambda v: h @ v, b, x0=None, tol=0.0).x - exact
    rate = (math.sqrt(condition) - 1) / (math.sqrt(condition) + 1)
    assert float(error @ h @ error) ** 0.5 <= 2 * rate**k * float(exact @ h @ exact) ** 0.5


@pytest.mark.parametrize("smallest", [-1e-1, -1e-3, 0.0])
def test_cg_reports_curvature_that_is_not_positive(smallest: float) -> None:
    values = torch.linspace(0.1, 1.0, P, dtype=torch.float64)
    values[0] = smallest
    h = symmetric(values)
    solution = CG().solve(lambda v: h @ v, rhs(), x0=None, tol=1e-10)
    assert solution.outcome is Outcome.INDEFINITE
    assert not solution.converged
    assert bool(torch.isfinite(solution.x).all())
    assert float(solution.x.norm()) > 0


def test_cg_on_a_singular_system_with_a_solution_finds_the_one_of_least_norm() -> None:
    values = torch.linspace(0.0, 1.0, P, dtype=torch.float64)
    values[1] = 0.0
    h = symmetric(values)
    b = h @ rhs()
    solution = CG().solve(lambda v: h @ v, b, x0=None, tol=1e-9)
    assert solution.converged
    assert torch.allclose(solution.x, torch.linalg.pinv(h, hermitian=True) @ b, atol=1e-6)


def test_cg_stops_at_its_budget_with_the_iterate_it_has() -> None:
    h, b = definite(1e6), rhs()
    solution = CG(max_steps=5).solve(lambda v: h @ v, b, x0=None, tol=1e-10)
    assert solution.outcome is Outcome.ITERATION_LIMIT
    assert solution.steps == 5  # none to measure: the recurrence is known to be right so far from the tolerance
    assert float((h @ solution.x - b).norm()) == pytest.approx(solution.residual, rel=1e-2)
    assert float(solution.x @ h @ solution.x) > 0


def test_cg_restarts_where_its_recurrence_has_drifted_from_the_true_residual() -> None:
    h, b = definite(1e4).float(), rhs().float()
    one_cycle = CG(max_steps=3 * P).solve(lambda v: h @ v, b, x0=None, tol=1e-30)
    reachable = 4 * one_cycle.residual
    solution = CG().solve(lambda v: h @ v, b, x0=None, tol=reachable)
    assert solution.converged
    assert float((h @ solution.x - b).norm()) <= 1.5 * reachable


# --- MINRES ----------------------------------------------------------------------------------------------------


def indefinite() -> Tensor:
    values = torch.cat([-torch.logspace(-1.5, 0, 15), torch.logspace(-1.5, 0.3, 25)])
    return symmetric(values, seed=3)


@pytest.mark.parametrize("h", [definite(50.0), indefinite()], ids=["definite", "indefinite"])
def test_minres_is_scipys_iterate_by_iterate(h: Tensor) -> None:
    b = rhs()
    theirs: list[np.ndarray] = []
    operator = LinearOperator(h.shape, matvec=lambda v: h.numpy() @ v, dtype=np.float64)
    scipy_minres(operator, b.numpy(), rtol=1e-14, maxiter=16, callback=lambda x: theirs.append(x.copy()))
    for k, expected in enumerate(theirs, start=1):
        ours = MINRES(max_steps=k).solve(lambda v: h @ v, b, x0=None, tol=1e-13)
        # both lose the orthogonality of the Lanczos vectors, differently
        assert np.linalg.norm(ours.x.numpy() - expected) <= 1e-10 * np.linalg.norm(expected)
    assert len(theirs) == 16


def test_minres_solves_what_is_indefinite() -> None:
    h, b = indefinite(), rhs()
    solution = MINRES().solve(lambda v: h @ v, b, x0=None, tol=1e-10)
    assert solution.converged
    assert torch.allclose(solution.x, torch.linalg.solve(h, b), atol=1e-8)


def test_residuals_of_minres_never_grow() -> None:
    h, b = indefinite(), rhs()
    residuals = [MINRES(max_steps=k).solve(lambda v: h @ v, b, x0=None, tol=0.0).residual for k in range(1, 30)]
    assert all(later <= earlier * (1 + 1e-9) for earlier, later in itertools.pairwise(residuals))


def test_minres_answers_an_inconsistent_system_by_least_squares_and_does_not_claim_to_have_solved_it() -> None:
    values = torch.linspace(0.1, 1.0, P, dtype=torch.float64)
    values[0] = 0.0
    h, b = symmetric(values), rhs()
    solution = MINRES().solve(lambda v: h @ v, b, x0=None, tol=1e-10)
    assert not solution.converged
    least = float((h @ (torch.linalg.pinv(h, hermitian=True) @ b) - b).norm())
    assert solution.residual == pytest.approx(least, rel=1e-6)


# --- direct ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("h", [definite(1e3), indefinite()], ids=["definite", "indefinite"])
def test_direct_loops_over_columns_where_the_operator_cannot_be_batched(h: Tensor) -> None:
    b = rhs()
    batched = Direct().solve(lambda v: h @ v, b, x0=None, tol=1e-9)
    looped = Direct().solve(unbatched(h), b, x0=None, tol=1e-9)
    assert batched.converged
    assert looped.converged
    assert torch.allclose(batched.x, looped.x, rtol=1e-10)


def test_direct_is_the_same_whatever_the_chunk() -> None:
    h, b = definite(1e2), rhs()
    solutions = [Direct(chunk=c).solve(lambda v: h @ v, b, x0=None, tol=1e-12).x for c in (1, 7, 40, 64)]
    for other in solutions[1:]:
        assert torch.allclose(solutions[0], other, rtol=1e-12)


def test_direct_refuses_a_size_beyond_its_limit() -> None:
    counting = Counting(definite(10.0))
    with pytest.raises(LearnError, match="40 parameters was asked for; it takes at most 39"):
        Direct(max_size=39).solve(counting, rhs(), x0=None, tol=1e-6)
    assert counting.calls == 0


def test_direct_passes_on_the_error_of_an_operator_that_is_wrong_itself() -> None:
    with pytest.raises(RuntimeError, match="size mismatch"):
        Direct().solve(lambda v: torch.zeros(3, 4, dtype=v.dtype) @ v, rhs(), x0=None, tol=1e-6)


def test_direct_on_a_singular_system_is_of_least_norm_and_says_when_there_is_no_solution() -> None:
    values = torch.linspace(0.1, 1.0, P, dtype=torch.float64)
    values[0] = 0.0
    h = symmetric(values)
    within = Direct().solve(lambda v: h @ v, h @ rhs(), x0=None, tol=1e-9)
    assert within.converged
    assert torch.allclose(within.x, torch.linalg.pinv(h, hermitian=True) @ (h @ rhs()), atol=1e-9)
    assert Direct().solve(lambda v: h @ v, rhs(), x0=None, tol=1e-9).outcome is Outcome.INDEFINITE


# --- Neumann ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("terms", [0, 1, 5, 40])
def test_neumann_is_the_sum_of_dense_powers(terms: int) -> None:
    h, b, alpha = definite(20.0), rhs(), 0.7
    step = torch.eye(P, dtype=torch.float64) - alpha * h
    dense = alpha * sum((torch.linalg.matrix_power(step, j) @ b for j in range(terms + 1)), torch.zeros_like(b))
    solution = Neumann(terms=terms, alpha=alpha).solve(lambda v: h @ v, b, x0=None, tol=0.0)
    assert torch.allclose(solution.x, dense, rtol=0, atol=1e-12)
    assert solution.steps == terms + 1
    assert solution.outcome is Outcome.APPROXIMATE


def test_neumann_truncates_by_exactly_the_power_that_is_left() -> None:
    h, b, alpha, terms = definite(20.0), rhs(), 0.7, 30
    exact = torch.linalg.solve(h, b)
    solution = Neumann(terms=terms, alpha=alpha).solve(lambda v: h @ v, b, x0=None, tol=0.0)
    step = torch.eye(P, dtype=torch.float64) - alpha * h
    left = torch.linalg.matrix_power(step, terms + 1) @ exact
    assert torch.allclose(exact - solution.x, left, rtol=0, atol=1e-12)


def test_neumann_is_reverse_mode_through_unrolled_gradient_descent_from_the_optimum() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(30, 6, generator=generator, dtype=torch.float64)
    y = torch.randn(30, generator=generator, dtype=torch.float64)
    raw = torch.tensor(-1.0, dtype=torch.float64, requires_grad=True)
    alpha, terms = 0.1, 12

    def inner(w: Tensor) -> Tensor:
        return 0.5 * ((x @ w - y) ** 2).mean() + 0.5 * torch.exp(raw) * (w**2).sum()

    hessian = x.T @ x / 30 + float(raw.detach().exp()) * torch.eye(6, dtype=torch.float64)
    optimum = torch.linalg.solve(hessian, x.T @ y / 30)
    b = torch.randn(6, generator=generator, dtype=torch.float64)

    w = optimum.clone().requires_grad_()
    for _ in range(terms + 1):
        w = w - alpha * torch.autograd.grad(inner(w), w, create_graph=True)[0]
    (unrolled,) = torch.autograd.grad(w @ b, raw)

    q = Neumann(terms=terms, alpha=alpha).solve(lambda v: hessian @ v, b, x0=None, tol=0.0).x
    implicit = -float(raw.detach().exp()) * (optimum @ q)  # −∂²inner/∂raw∂w · q
    assert float(implicit) == pytest.approx(float(unrolled), rel=1e-10)


def test_neumann_stops_at_the_tolerance_before_its_terms_are_spent() -> None:
    h, b = definite(5.0), rhs()
    solution = Neumann(terms=10_000, alpha=1.0).solve(lambda v: h @ v, b, x0=None, tol=1e-6)
    assert solution.converged
    assert solution.steps < 100


def test_neumann_from_a_warm_start_is_richardsons_iteration_from_its_best_multiple() -> None:
    h, b, alpha, terms = definite(20.0), rhs(), 0.7, 9
    x0 = rhs(seed=4)
    x = x0 * (b @ h @ x0) / (h @ x0).square().sum()
    for _ in range(terms + 1):
        x = x + alpha * (b - h @ x)
    warm = Neumann(terms=terms, alpha=alpha).solve(lambda v: h @ v, b, x0=x0, tol=0.0)
    assert torch.allclose(warm.x, x, rtol=0, atol=1e-12)
    assert warm.steps == terms + 2


def test_neumann_reports_a_factor_that_is_too_large_though_the_sum_has_not_yet_grown() -> None:
    h, b = definite(20.0), rhs()
    solution = Neumann(terms=60, alpha=2.2).solve(lambda v: h @ v, b, x0=None, tol=0.0)
    assert solution.outcome is Outcome.DIVERGED
    assert solution.residual <= float(b.norm())
    assert solution.steps < 60


def test_neumann_reports_negative_curvature() -> None:
    values, basis = torch.linalg.eigh(symmetric(torch.cat([torch.tensor([-0.5]), torch.linspace(0.5, 1.0, P - 1)])))
    h = (basis * values) @ basis.T
    along = Neumann(terms=200, alpha=0.9).solve(lambda v: h @ v, basis[:, 0] + 0.1 * rhs(), x0=None, tol=1e-9)
    assert along.outcome is Outcome.INDEFINITE
    hidden = Neumann(terms=200, alpha=0.9).solve(lambda v: h @ v, rhs(), x0=None, tol=1e-9)
    assert hidden.outcome is Outcome.DIVERGED
    assert hidden.residual < float(rhs().norm())


def test_power_iteration_sees_the_largest_size_of_either_sign() -> None:
    for values in (torch.linspace(0.0, 3.0, P), torch.linspace(-3.0, 1.0, P)):
        h = symmetric(values)
        estimate = largest_eigenvalue(Counting(h), rhs(), steps=60, seed=0)
        assert 0.97 * 3.0 <= estimate <= 3.0 + 1e-9
    assert largest_eigenvalue(lambda v: 0 * v, rhs(), steps=5, seed=0) == 0.0


def test_an_operator_that_is_zero_is_not_inverted() -> None:
    for solver in (CG(), Neumann(terms=5), MINRES(), Direct()):
        solution = solver.solve(lambda v: 0 * v, rhs(), x0=None, tol=1e-6)
        assert not solution.converged
        assert bool(torch.isfinite(solution.x).all())


# --- Nyström ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rho", [1e-3, 0.1, 10.0])
def test_nystrom_of_full_rank_inverts_the_damped_hessian(rho: float) -> None:
    h, b = definite(1e3), rhs()
    exact = torch.linalg.solve(h + rho * torch.eye(P, dtype=torch.float64), b)
    solution = Nystrom(rank=P, rho=rho, jitter=0.0).solve(lambda v: h @ v, b, x0=None, tol=1e-9)
    assert torch.allclose(solution.x, exact, rtol=1e-8)
    with_jitter = Nystrom(rank=P + 5, rho=rho).solve(lambda v: h @ v, b, x0=None, tol=1e-9)
    assert torch.allclose(with_jitter.x, exact, rtol=0, atol=1e-7 / rho**2)  # an error of 1e-8 in H


def test_nystrom_is_woodburys_formula() -> None:
    h, b, rho, rank = definite(50.0), rhs(), 0.2, 8
    solution = Nystrom(rank=rank, rho=rho, jitter=0.0).solve(lambda v: h @ v, b, x0=None, tol=0.0, seed=3)
    chosen = torch.randperm(P, generator=torch.Generator().manual_seed(3))[:rank]
    c = h[:, chosen]
    w = h[chosen][:, chosen]
    woodbury = b / rho - c @ torch.linalg.solve(w + c.T @ c / rho, c.T @ b) / rho**2
    assert torch.allclose(solution.x, woodbury, rtol=1e-9)
    assert (solution.steps, solution.outcome) == (rank + 1, Outcome.APPROXIMATE)


def test_nystrom_finds_a_low_rank_hessian_from_few_columns() -> None:
    factor = torch.randn(P, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    h, b, rho = factor @ factor.T, rhs(), 0.05
    exact = torch.linalg.solve(h + rho * torch.eye(P, dtype=torch.float64), b)
    for seed in range(5):
        solution = Nystrom(rank=8, rho=rho).solve(lambda v: h @ v, b, x0=None, tol=0.0, seed=seed)
        assert torch.allclose(solution.x, exact, rtol=0, atol=1e-4 * float(exact.norm()))


def test_nystrom_draws_its_columns_from_the_seed() -> None:
    h, b = definite(50.0), rhs()
    answers = [Nystrom(rank=5, rho=0.1).solve(lambda v: h @ v, b, x0=None, tol=0.0, seed=s).x for s in (0, 1)]
    assert not torch.allclose(answers[0], answers[1])


def test_nystrom_reports_negative_curvature_beyond_its_damping() -> None:
    h = symmetric(torch.linspace(-1.0, 1.0, P))
    assert Nystrom(rank=P, rho=0.1).solve(lambda v: h @ v, rhs(), x0=None, tol=0.0).outcome is Outcome.INDEFINITE
    mild = symmetric(torch.linspace(-0.01, 1.0, P))
    assert Nystrom(rank=P, rho=0.1).solve(lambda v: mild @ v, rhs(), x0=None, tol=0.0).outcome is Outcome.APPROXIMATE


# --- accelerators ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", [CG(), MINRES(), Neumann(terms=4000, alpha=1.0)])
def test_looking_at_the_residual_less_often_changes_nothing_but_the_count(
    solver: AbstractLinearSolver, monkeypatch: pytest.MonkeyPatch
) -> None:
    h, b = definite(100.0), rhs()
    often = solver.solve(lambda v: h @ v, b, x0=None, tol=1e-8)
    for module in ("cg", "minres", "neumann"):
        monkeypatch.setattr(f"workers.learn.linear.{module}.sync_stride", lambda v: 8)
    seldom = solver.solve(lambda v: h @ v, b, x0=None, tol=1e-8)
    assert torch.equal(often.x, seldom.x)
    assert often.steps <= seldom.steps <= often.steps + 7


@pytest.mark.gpu
@pytest.mark.parametrize("solver", ALL)
def test_a_gpu_gives_what_the_cpu_gives(solver: AbstractLinearSolver) -> None:
    h, b = definite(100.0), rhs()
    on_cpu = solver.solve(lambda v: h @ v, b, x0=None, tol=1e-8)
    device = torch.device("cuda")
    h_gpu = h.to(device)
    on_gpu = solver.solve(lambda v: h_gpu @ v, b.to(device), x0=None, tol=1e-8)
    assert on_gpu.x.device.type == "cuda"
    assert on_gpu.outcome == on_cpu.outcome
    assert torch.allclose(on_gpu.x.cpu(), on_cpu.x, rtol=0, atol=1e-5)
