"""Why an answer may be trusted: its hypergradient, its neighbours and its bounds, looked at afresh."""

from dataclasses import dataclass, field
from typing import Final, final

import torch
from pydantic import JsonValue
from torch import Tensor

from service.numbers import jsonable
from service.records import JsonObject
from service.spec.job import JobSpec
from service.spec.linear import EXACT_SOLVERS, LinearSolverSpec
from service.spec.methods import Implicit, solver_of
from workers.build.solvers import build_solver
from workers.learn.cost import Cost
from workers.learn.hypergradient import hypergradient
from workers.learn.hyperparameters import HyperparameterSpace
from workers.learn.inner.base import AbstractInnerSolver, InnerSolution
from workers.learn.inner.lbfgs import LBFGS
from workers.learn.inner.newton_cg import NewtonCG
from workers.learn.inner.reduced_newton import ReducedNewton
from workers.learn.linear.cg import CG
from workers.learn.method import Answer
from workers.learn.oracle import AbstractOracle
from workers.learn.sparse_oracle import SparseOracle
from workers.learn.verification import Neighbour, directional_check, neighbours, random_direction
from workers.learn.whitened_oracle import WhitenedOracle
from workers.precision import P, in_double
from workers.verdict import Findings, Verdict, judge

__all__ = ["Evidence", "Verdict", "examine"]

_MOST_NEIGHBOURS: Final = 5

_MOST_ITERATIONS: Final = 1000
"""Of one inner solve: checks must not take longer than the run, and what was left undone is measured."""

_MOST_NEWTON_STEPS: Final = 50

_NOTHING: Final = 1e-6
"""An objective below this fraction of that of zero weights is nothing: changes are not measured in parts of it."""


@dataclass(frozen=True)
class OwnHypergradient:
    """What a method with an approximate linear solver takes for the hypergradient, beside the exact one."""

    solver: str
    norm: float
    exact_norm: float
    difference_norm: float


@dataclass(frozen=True)
class Evidence:
    """The outcome of all checks; no findings when none was made."""

    verdict: Verdict
    sentence: str
    findings: Findings | None = None
    step: float = 0.0
    """Of the central differences."""
    seed: int = 0
    """Of their direction."""
    strengths: tuple[float, ...] = ()
    """Natural value of the moved strength of each neighbour."""
    own: OwnHypergradient | None = None
    cost: Cost = field(default_factory=Cost)

    def body(self) -> JsonObject:
        """The `evidence` of a result."""
        body: JsonObject = {"verdict": self.verdict.value, "sentence": self.sentence}
        found = self.findings
        if found is None:
            return body
        moved = zip(found.neighbours, self.strengths, strict=True)
        own: JsonValue = None
        if self.own is not None:
            own = {
                "solver": self.own.solver,
                "norm": jsonable(self.own.norm),
                "exact_norm": jsonable(self.own.exact_norm),
                "difference_norm": jsonable(self.own.difference_norm),
            }
        return {
            **body,
            "objective_at_answer": jsonable(found.objective),
            "projected_hypergradient_norm": jsonable(found.slope),
            "hypergradient_check": {
                "direction": {"seed": self.seed, "size": found.strengths, "in": "logarithms of the strengths"},
                "analytic": jsonable(found.analytic),
                "central_difference": jsonable(found.difference),
                "uncertainty": jsonable(found.uncertainty),
                "relative_error": jsonable(found.relative_error),
                "step": self.step,
            },
            "method_hypergradient": own,
            "neighbours": [_neighbour(neighbour, strength) for neighbour, strength in moved],
            "at_bounds": [
                *({**_scalar(name), "bound": "low"} for name in found.at_low),
                *({**_scalar(name), "bound": "high"} for name in found.at_high),
            ],
            "cost": {
                "inner_iterations": self.cost.inner_iterations,
                "gradients": self.cost.gradients,
                "hessian_vector_products": self.cost.hessian_vector_products,
            },
        }


@final
class _Watched(AbstractInnerSolver):
    """An inner solver that keeps account of what it spent and of the largest gradient that it left."""

    def __init__(self, solver: AbstractInnerSolver) -> None:
        self._solver = solver
        self.cost = Cost()
        self.worst = 0.0

    def solve(self, oracle: AbstractOracle, raw: Tensor, w0: Tensor, *, tol: float) -> InnerSolution:
        solution = self._solver.solve(oracle, raw, w0, tol=tol)
        self.cost += solution.cost
        self.worst = max(self.worst, solution.gradient_norm)
        return solution


def examine(problem: P, answer: Answer, spec: JobSpec) -> Evidence:
    """Check an answer by training again at it and around it.

    - The hypergradient, with the linear system solved exactly, against central differences of the outer objective
      along a random direction that the job's seed draws.
    - The objective with each strength halved and doubled, for the five whose slope is largest.
    - Which strengths lie on a bound, and whether the objective presses them against it.
    - For a method whose linear solver only approximates: how far its own hypergradient is off.

    All in float64, whatever the run was in.

    Args:
        problem: the problem that the job posed, with its folds if it has any.
        answer: what the method found.
        spec: whether to check, the method's solver, the tolerance and the seed.
    """
    if not spec.verify:
        return Evidence(Verdict.NOT_CHECKED, "The answer was not checked, as the job asked (verify is false).")
    problem, answer = in_double(problem, answer)
    raw = answer.raw
    oracle = problem.oracle()
    metric = oracle.metric(raw, answer.weights)
    seen: AbstractOracle = oracle if metric is None else WhitenedOracle(oracle, metric)
    u = answer.weights if metric is None else metric.inverse(answer.weights)
    solver = LBFGS(max_iterations=_MOST_ITERATIONS, first_step=None if metric is None else 1.0)
    # Quasi-Newton steps stall where rounding hides what they gain; Newton's reach the last digits.
    inner, loose = _Watched(NewtonCG(max_iterations=_MOST_NEWTON_STEPS)), _Watched(solver)
    if isinstance(oracle, SparseOracle):
        inner = loose = _Watched(ReducedNewton(margin=1e-3))

    start = seen.outer(u, raw)
    pull = max(_norm(start.gradient), 1e-300)
    of_nothing = float(oracle.outer(torch.zeros_like(answer.weights), raw).value)
    size = max(abs(float(start.value)), _NOTHING * abs(of_nothing), 1e-300)
    # Training to a gradient g leaves an error ⟨q, g⟩ in the objective; ‖q‖ ≈ ‖∂_w outer‖ where H is near the identity.
    tol = 1e-10 * size / pull
    w = inner.solve(seen, raw, u, tol=tol).w
    exact = hypergradient(seen, w, raw, CG(), tol=1e-10 * pull, seed=spec.seed)
    check = directional_check(
        seen,
        inner,
        raw,
        w,
        exact.value,
        random_direction(raw, seed=spec.seed),
        tol=tol,
        steps=(1e-2, 1e-3, 1e-4),
    )
    around = neighbours(seen, loose, problem.space, raw, w, exact.value, tol=1e3 * tol, most=_MOST_NEIGHBOURS)
    findings = Findings(
        objective=around.value,
        size=size,
        slope=around.projected_norm,
        analytic=check.predicted,
        difference=check.best.derivative,
        uncertainty=_norm(exact.adjoint.x) * inner.worst / check.best.step,
        neighbours=around.neighbours,
        blocked=around.blocked,
        at_low=around.at_low,
        at_high=around.at_high,
        strengths=raw.numel(),
        tolerance=spec.budget.tolerance,
    )
    verdict, sentence = judge(findings)
    own = None
    approximate = solver_of(spec.method)
    if approximate is not None and not isinstance(approximate, EXACT_SOLVERS):
        # `implicit` solves in the metric's coordinates, `hoag` in the original ones.
        at = (seen, w) if metric is None or isinstance(spec.method, Implicit) else (oracle, metric.forward(w))
        own = _own(*at, raw, exact.value, approximate, seed=spec.seed)
        sentence += (
            f" The method itself went by the approximate solver {own.solver!r}, whose hypergradient here has norm "
            f"{own.norm:.2g}, where the exact one has {own.exact_norm:.2g} and differs by {own.difference_norm:.2g}."
        )
        if verdict is Verdict.DESCENDING:
            sentence += " The solver 'cg' does not err like that."
    return Evidence(
        verdict,
        sentence,
        findings,
        step=check.best.step,
        seed=spec.seed,
        strengths=_strengths(problem.space, raw, around.neighbours),
        own=own,
        cost=inner.cost + (loose.cost if loose is not inner else Cost()) + exact.cost,
    )


def _own(
    oracle: AbstractOracle, w: Tensor, raw: Tensor, exact: Tensor, approximate: LinearSolverSpec, *, seed: int
) -> OwnHypergradient:
    solver = build_solver(approximate, w.numel())
    own = hypergradient(oracle, w, raw, solver, tol=0.0, seed=seed).value
    return OwnHypergradient(approximate.kind, _norm(own), _norm(exact), _norm(own - exact))


def _norm(vector: Tensor) -> float:
    return float(torch.linalg.vector_norm(vector))


def _strengths(space: HyperparameterSpace, raw: Tensor, found: tuple[Neighbour, ...]) -> tuple[float, ...]:
    natural = torch.cat([part.reshape(-1) for part in space.constrain(raw).values()]).tolist()
    at = dict(zip(space.scalar_names(), natural, strict=True))
    return tuple(at[neighbour.name] * neighbour.factor for neighbour in found)


def _neighbour(neighbour: Neighbour, strength: float) -> JsonObject:
    return {
        **_scalar(neighbour.name),
        "factor": jsonable(neighbour.factor),
        "strength": jsonable(strength),
        "objective": jsonable(neighbour.value),
    }


def _scalar(name: str) -> JsonObject:
    """`l2[3]` is the fourth of the strengths `l2`; `l2` alone has no index."""
    block, bracket, rest = name.partition("[")
    return {"name": block, "index": int(rest.removesuffix("]")) if bracket else None}
