"""The checks that an implementation of hypergradients owes, with their figures.

    python tests/proofs/verification.py

Each line is one check: what was compared, the worst figure found, and the limit that it has to keep. Ends with 1 if one
does not. All in float64, on the sets that come with scikit-learn; the tests in tests/learn ask the same and more.
"""

import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.learn.network_cases import raw_of, small_network
from tests.learn.test_network_hypergradient import checked
from workers.learn.hypergradient import hypergradient
from workers.learn.inner.base import AbstractInnerSolver
from workers.learn.inner.newton_cg import NewtonCG
from workers.learn.inner.reduced_newton import ReducedNewton
from workers.learn.linear.base import AbstractLinearSolver
from workers.learn.linear.cg import CG
from workers.learn.linear.direct import Direct
from workers.learn.linear.minres import MINRES
from workers.learn.linear.neumann import Neumann
from workers.learn.linear.nystrom import Nystrom
from workers.learn.method import run
from workers.learn.methods.hoag import HOAG
from workers.learn.methods.implicit import Implicit
from workers.learn.methods.maid import MAID
from workers.learn.methods.maid_bounds import error_bound
from workers.learn.problem import AbstractBilevelProblem, Part
from workers.learn.problems.denoising_data import Pairs, as_images, denoising_problem, noisy
from workers.learn.problems.layout import Per
from workers.learn.problems.linear import LinearProblem
from workers.learn.problems.linear_data import Examples, L1Term, L2Term, LinearData, linear_problem
from workers.learn.problems.quadratic import QuadraticProblem
from workers.learn.regularizers.image import Quantity
from workers.learn.regularizers.tv import TV

CPU = torch.device("cpu")
LOADERS = {"diabetes": load_diabetes, "breast_cancer": load_breast_cancer, "digits": load_digits}


@dataclass(frozen=True)
class Figure:
    """One check."""

    check: str
    what: str
    worst: float
    limit: float
    at_least: bool = False

    @property
    def holds(self) -> bool:
        """Whether the limit is kept."""
        return self.worst >= self.limit if self.at_least else self.worst <= self.limit


def tabular(
    name: str,
    *terms: L1Term | L2Term,
    folds: int = 0,
    rows: int = 300,
    order: np.ndarray | None = None,
    scale: float = 1.0,
) -> LinearProblem:
    """A linear problem on one of scikit-learn's sets, half of its rows held out or all in folds."""
    X, y = LOADERS[name](return_X_y=True)
    chosen = np.random.default_rng(0).permutation(len(y))[:rows]
    X, y = scale * StandardScaler().fit_transform(X)[chosen], y[chosen]
    if name == "diabetes":
        y = (y - y.mean()) / y.std()
    half, fold = len(y) // 2, np.arange(len(y)) % max(folds, 1)
    train = np.arange(half) if order is None else order
    if folds:
        data = LinearData(Examples(X, y), fold=fold)
    else:
        data = LinearData(Examples(X[train], y[train]), Examples(X[half:], y[half:]))
    return linear_problem(
        data,
        loss="squared" if name == "diabetes" else "cross_entropy",
        terms=list(terms),
        intercept=False,
        dtype=torch.float64,
        device=CPU,
        classes={"diabetes": None, "breast_cancer": 2, "digits": 10}[name],
    )


def l2(per: Per = Per.MODEL, initial: float = 0.05) -> L2Term:
    return L2Term("l2", initial, per, 1e-8, 1e4)


def l1(per: Per = Per.MODEL) -> L1Term:
    return L1Term("l1", 0.02, per, 1e-8, 1e4)


def images() -> AbstractBilevelProblem:
    """Six digits as images, with total variation."""
    truth = as_images(load_digits().images[:6] / 16.0)
    penalty = TV(Quantity("tv", 0.05, low=1e-6, high=1e2), Quantity("tv.smoothing", 0.05, low=1e-4, high=1.0))
    return denoising_problem(Pairs(noisy(truth, 0.1, 0), truth), penalty, dtype=torch.float64, device="cpu")


def trained(problem: AbstractBilevelProblem, raw: Tensor, *, tol: float = 1e-12) -> Tensor:
    kinked = isinstance(problem, LinearProblem) and bool(problem.sparse)
    solver: AbstractInnerSolver = ReducedNewton(margin=1.0) if kinked else NewtonCG()
    return solver.solve(problem.oracle(), raw, problem.initial_weights(0), tol=tol).w


def spread(problem: AbstractBilevelProblem) -> Tensor:
    raw = problem.space.initial(torch.float64, CPU)
    return raw + torch.linspace(-0.3, 0.3, raw.numel() + 2, dtype=torch.float64)[1:-1]


def error_of_differences(problem: AbstractBilevelProblem, solver: AbstractLinearSolver, *, seed: int = 0) -> float:
    """Relative error of ⟨hypergradient, u⟩ against central differences, best of three steps."""
    raw, oracle = spread(problem), problem.oracle()
    direction = torch.randn(raw.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    direction = direction / direction.norm()
    w = trained(problem, raw)
    pull = float(oracle.outer(w, raw).gradient.norm())
    predicted = float(hypergradient(oracle, w, raw, solver, tol=1e-12 * pull).value @ direction)
    errors = []
    for step in (1e-3, 1e-4, 1e-5):
        sides = [raw + sign * step * direction for sign in (1.0, -1.0)]
        ahead, back = (float(oracle.outer(trained(problem, side), side).value) for side in sides)
        errors.append(abs((ahead - back) / (2 * step) - predicted) / max(abs(predicted), 1e-12))
    return min(errors)


def closed_form() -> Iterator[Figure]:
    for per in (Per.MODEL, Per.FEATURE):
        problem = tabular("diabetes", l2(per))
        raw = spread(problem)
        X, y = problem.train.design.matrix, problem.train.y
        assert problem.valid is not None
        V, t = problem.valid.design.matrix, problem.valid.y
        diagonal = raw.exp().expand(X.shape[1])
        A = X.T @ X / len(y) + torch.diag(diagonal)
        w = torch.linalg.solve(A, X.T @ y / len(y))
        q = torch.linalg.solve(A, V.T @ (V @ w - t) / len(t))
        each = -diagonal * w * q
        exact = each.sum()[None] if per is Per.MODEL else each
        found = hypergradient(problem.oracle(), w, raw, CG(), tol=1e-14).value
        yield Figure("V1", f"ridge against the closed form, per {per}", _relative(found, exact), 1e-8)
        yield Figure("V1", f"ridge against central differences, per {per}", error_of_differences(problem, CG()), 1e-6)


def order_of_error() -> Iterator[Figure]:
    problem = tabular("breast_cancer", l2(Per.FEATURE))
    raw, oracle = spread(problem), problem.oracle()
    w = trained(problem, raw)
    exact = hypergradient(oracle, w, raw, CG(), tol=1e-14).value
    away = torch.randn(w.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    by_distance, by_residual, sizes = [], [], [10.0**-k for k in range(2, 7)]
    for size in sizes:
        there = w + size * away / away.norm()
        by_distance.append(float((hypergradient(oracle, there, raw, CG(), tol=1e-14).value - exact).norm()))
        pull = oracle.outer(w, raw).gradient
        q = CG().solve(oracle.hvp(w, raw), pull, x0=None, tol=1e-14).x
        bent = q + size * away / away.norm()
        by_residual.append(float((oracle.cross(w, raw, bent) - oracle.cross(w, raw, q)).norm()))
    for name, errors in (("the distance of w", by_distance), ("the error of q", by_residual)):
        slope = float(np.polyfit(np.log(sizes), np.log(errors), 1)[0])
        yield Figure("V2", f"slope of the error against {name}: |slope − 1|", abs(slope - 1.0), 0.05)


def bounds() -> Iterator[Figure]:
    least, raised, steps = math.inf, 0, 0
    for seed in range(100):
        problem = QuadraticProblem.random(seed, p=12, h=3, condition=30.0)
        method, before = MAID(), math.inf
        for _, point in run(method, problem, method.init(problem, seed=seed), max_steps=8):
            raw = problem.space.unconstrain(point.hyperparameters)
            value = problem.value(raw)
            raised += value > before
            before, steps = value, steps + 1
            least = min(least, _tightness(problem, raw, seed))
    yield Figure("V2", "error bound over true error, least at the points of 100 problems", least, 1.0, at_least=True)
    yield Figure("V9", f"of {steps} points of MAID, those where the exact objective rose", raised, 0)


def _tightness(problem: QuadraticProblem, raw: Tensor, seed: int) -> float:
    """Bound over error of a hypergradient that is wrong on purpose, both in w and in q."""
    oracle, solution, distance = problem.oracle(), problem.solution(raw), 10.0 ** -(seed % 5)
    away = torch.randn(solution.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    w = solution + distance * away / away.norm()
    pull = oracle.outer(w, raw).gradient
    found = hypergradient(oracle, w, raw, CG(max_steps=3), tol=1e-14)
    residual = float((oracle.hvp(w, raw)(found.adjoint.x) - pull).norm())
    convexity, cross = oracle.convexity(w, raw), oracle.cross_norm(w, raw)
    constants = oracle.constants(raw)
    assert convexity is not None
    assert cross is not None
    assert constants is not None
    bound = error_bound(
        constants,
        convexity,
        distance=distance,
        residual=residual,
        cross_norm=cross,
        outer_gradient_norm=float(pull.norm()),
        adjoint_norm=float(found.adjoint.x.norm()),
    )
    return bound.total / max(float((found.value - problem.gradient(raw)).norm()), 1e-300)


def linear_systems() -> Iterator[Figure]:
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(40, 40, generator=generator, dtype=torch.float64)
    H = root @ root.T / 40 + 0.5 * torch.eye(40, dtype=torch.float64)
    b = torch.randn(40, generator=generator, dtype=torch.float64)
    exact = torch.linalg.solve(H, b)
    solvers: dict[str, AbstractLinearSolver] = {
        "cg": CG(),
        "minres": MINRES(),
        "direct": Direct(max_size=40),
        "neumann": Neumann(terms=3000),
    }
    for name, solver in solvers.items():
        found = solver.solve(lambda v: H @ v, b, x0=None, tol=1e-13, seed=0).x
        yield Figure("V3", f"{name} against a dense solve", _relative(found, exact), 1e-10)
    full = Nystrom(rank=40, rho=0.1).solve(lambda v: H @ v, b, x0=None, tol=0.0, seed=0).x
    damped = torch.linalg.solve(H + 0.1 * torch.eye(40, dtype=torch.float64), b)
    yield Figure("V3", "nystrom of full rank against (H + ρ)⁻¹ b", _relative(full, damped), 1e-6)
    alpha, terms = 0.1, 12
    powers = sum(
        (torch.linalg.matrix_power(torch.eye(40).double() - alpha * H, k) @ b for k in range(terms + 1)), 0.0 * b
    )
    series = Neumann(terms=terms, alpha=alpha).solve(lambda v: H @ v, b, x0=None, tol=0.0, seed=0).x
    yield Figure("V3", "neumann against α Σ (I − αH)^k b", _relative(series, alpha * powers), 1e-12)


def derivatives() -> Iterator[Figure]:
    problems = {"logistic": tabular("breast_cancer", l2(), rows=60), "tv": images(), "ridge": tabular("diabetes", l2())}
    for name, problem in problems.items():
        raw, oracle = spread(problem), problem.oracle()
        w = problem.initial_weights(0) + 0.1 * torch.randn(
            problem.initial_weights(0).shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64
        )
        u, v = (torch.randn(w.shape, generator=torch.Generator().manual_seed(s), dtype=torch.float64) for s in (1, 2))
        product = oracle.hvp(w, raw)
        hu, hv = product(u), product(v)
        asymmetry = abs(float(u @ hv - v @ hu)) / float(u.norm() * hv.norm())
        yield Figure("V6", f"asymmetry of Hessian products, {name}", asymmetry, 1e-12)
        yield Figure("V6", f"the same product twice, {name}", float((product(v) - hv).norm()), 0.0)
        step = 1e-5
        change = (oracle.inner(w + step * v, raw).gradient - oracle.inner(w - step * v, raw).gradient) / (2 * step)
        yield Figure("V4", f"Hessian products against differences of gradients, {name}", _relative(change, hv), 1e-6)
        slope = float(oracle.inner(w, raw).gradient @ v)
        sides = [float(oracle.inner(w + sign * step * v, raw).value) for sign in (1.0, -1.0)]
        yield Figure(
            "V4", f"gradient against differences, {name}", abs((sides[0] - sides[1]) / (2 * step) / slope - 1), 1e-6
        )


def whole_pipeline() -> Iterator[Figure]:
    softmax = tabular("digits", l2(initial=1e-2))
    yield Figure("V5", "softmax on digits against retraining", error_of_differences(softmax, CG()), 1e-5)
    yield Figure("V5", "total variation against solving again", error_of_differences(images(), CG()), 1e-5)


def beside_scikit_learn() -> Iterator[Figure]:
    problem = tabular("breast_cancer", l2(initial=1e-2), rows=569)
    assert problem.valid is not None
    X, y = problem.train.design.matrix.numpy(), problem.train.y.numpy()
    strengths, losses = np.geomspace(1e-5, 1.0, 200), []
    for strength in strengths:
        peer = LogisticRegression(C=1 / (len(y) * strength), fit_intercept=False, tol=1e-10, max_iter=10_000).fit(X, y)
        w = torch.as_tensor(peer.coef_[0])
        losses.append(problem.evaluate(w, Part.VALID)["loss"])
    best = int(np.argmin(losses))
    for name, method in (("implicit", Implicit()), ("hoag", HOAG()), ("maid", MAID())):
        *_, (state, _) = run(method, problem, method.init(problem, seed=0), max_steps=400)
        raw = method.answer(problem, state).raw
        found = float(problem.oracle().outer(trained(problem, raw), raw).value)
        yield Figure("V7", f"{name}: held-out loss above scikit-learn's best of 200", found - losses[best], 1e-5)
        yield Figure(
            "V7", f"{name}: |log λ − that of scikit-learn's best|", abs(float(raw) - math.log(strengths[best])), 0.1
        )


def lasso() -> Iterator[Figure]:
    generator = np.random.default_rng(0)
    X = generator.normal(size=(200, 400))
    y = X[:, :20] @ generator.normal(size=20) + 0.5 * generator.normal(size=200)
    data = LinearData(Examples(X[:100], y[:100]), Examples(X[100:], y[100:]))
    problem = linear_problem(
        data,
        loss="squared",
        terms=[L1Term("l1", 1.0, low=1e-6, high=1e3)],
        intercept=False,
        dtype=torch.float64,
        device=CPU,
    )
    (block,) = problem.space.blocks
    assert block.high is not None
    oracle = problem.oracle()
    for share in (0.5, math.exp(-1), math.exp(-2)):
        raw = torch.tensor([math.log(share * block.high)], dtype=torch.float64)
        w = trained(problem, raw)
        value = float(hypergradient(oracle, w, raw, CG(), tol=1e-13).value)
        sides = [raw + sign * 1e-5 for sign in (1.0, -1.0)]
        ahead, back = (float(oracle.outer(trained(problem, side), side).value) for side in sides)
        size = int((w != 0).sum())
        yield Figure(
            "V8", f"lasso, {size} of 400 weights, against differences", abs((ahead - back) / 2e-5 / value - 1), 1e-5
        )
    above = torch.tensor([math.log(1.01 * block.high)], dtype=torch.float64)
    flat = float(hypergradient(oracle, trained(problem, above), above, CG(), tol=1e-13).value)
    yield Figure("V8", "lasso above the strength that leaves nothing: hypergradient", abs(flat), 0.0)


def starts_of_maid() -> Iterator[Figure]:
    problem, ends = QuadraticProblem.random(7, p=12, h=3, condition=30.0), []
    for accuracy in (1e6, 1e-1, 1e-3, 1e-5):
        method = MAID(initial_accuracy=accuracy, tolerance=1e-8)
        *_, (state, _) = run(method, problem, method.init(problem, seed=0), max_steps=400)
        ends.append(problem.value(method.answer(problem, state).raw))
    least = problem.value(problem.minimiser())
    yield Figure("V9", "MAID from ε₀ = 1e6 … 1e-5: largest excess over the minimum", max(ends) - least, 1e-6)


def matrix() -> Iterator[Figure]:
    kinds: dict[str, Callable[[int], AbstractBilevelProblem]] = {
        "ridge": lambda folds: tabular("diabetes", l2(Per.FEATURE), folds=folds, rows=120),
        "logistic": lambda folds: tabular("breast_cancer", l2(Per.FEATURE), folds=folds, rows=120),
        "softmax": lambda folds: tabular("digits", l2(Per.CLASS), folds=folds, rows=200),
        "lasso": lambda folds: tabular("diabetes", l1(), folds=folds, rows=120),
        "elastic net": lambda folds: tabular("diabetes", l2(), l1(), folds=folds, rows=120),
        "sparse logistic": lambda folds: tabular("breast_cancer", l2(), l1(), folds=folds, rows=120),
    }
    for name, make in kinds.items():
        for folds in (0, 3):
            problem = make(folds)
            size = problem.initial_weights(0).numel()
            for solver in (CG(), Direct(max_size=size), Neumann(terms=20_000)):
                label = f"{name}, {type(solver).__name__}, {f'{folds} folds' if folds else 'held out'}"
                yield Figure("V12", label, error_of_differences(problem, solver), 1e-5)
    for solver in (CG(), Neumann(terms=20_000)):
        yield Figure("V12", f"total variation, {type(solver).__name__}", error_of_differences(images(), solver), 1e-5)


def networks() -> Iterator[Figure]:
    for kind in ("squared", "softmax"):
        for per in (Per.MODEL, Per.LAYER, Per.TENSOR, Per.PARAMETER):
            problem = small_network(kind, per, widths=(3,), initial=0.01, biases=True)
            yield Figure("V12", f"mlp, {kind}, per {per}", checked(problem, raw_of(problem)), 1e-3)


def properties() -> Iterator[Figure]:
    plain = tabular("digits", l2(Per.FEATURE))
    half = 150
    shuffled = tabular("digits", l2(Per.FEATURE), order=np.random.default_rng(1).permutation(half))
    raw = spread(plain)
    at = [hypergradient(p.oracle(), trained(p, raw), raw, CG(), tol=1e-13).value for p in (plain, shuffled)]
    yield Figure("V13", "rows in another order", _relative(at[1], at[0]), 1e-8)
    scaled = tabular("digits", l2(Per.FEATURE), scale=3.0)
    moved = raw + 2.0 * math.log(3.0)
    far = hypergradient(scaled.oracle(), trained(scaled, moved), moved, CG(), tol=1e-13).value
    yield Figure("V13", "X → 3 X with log λ → log λ + 2 log 3", _relative(far, at[0]), 1e-6)
    zero = plain.oracle().cross(
        torch.zeros(plain.layout.size, dtype=torch.float64), raw, torch.ones(plain.layout.size, dtype=torch.float64)
    )
    yield Figure("V13", "no weights, no influence of the strengths: ‖Jᵀq‖", float(zero.norm()), 0.0)


def _relative(found: Tensor, exact: Tensor) -> float:
    return float((found - exact).norm() / exact.norm())


CHECKS = (
    closed_form,
    order_of_error,
    bounds,
    linear_systems,
    derivatives,
    whole_pipeline,
    beside_scikit_learn,
    lasso,
    starts_of_maid,
    matrix,
    networks,
    properties,
)


def main() -> int:
    """Run all checks and print them as they come."""
    torch.set_num_threads(1)
    failed = 0
    print(f"{'':4} {'check':72} {'worst':>10} {'limit':>9}")
    for check in CHECKS:
        for figure in check():
            failed += not figure.holds
            sign = "≥" if figure.at_least else "≤"
            print(
                f"{figure.check:4} {figure.what:72} {figure.worst:10.2e} {sign}{figure.limit:8.0e}"
                f"{'' if figure.holds else '   FAILS'}",
                flush=True,
            )
    print(f"{failed} checks fail" if failed else "all checks hold")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
