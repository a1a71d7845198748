"""Self-tuning networks and the evidence beside what is known of them, with figures.

    python tests/proofs/families.py

Each line is one number: what it is, what was found, and what it ought to be. Ends with 1 if one is not. The fixed
points on ridge regression follow from the moments of e^ε; the evidence of linear regression is that of scikit-learn and
of the Gaussian's density. The tests in tests/learn ask the same and more.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.stats
import torch
from sklearn.linear_model import ARDRegression, BayesianRidge

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.learn.evidence_cases import diabetes, evidence_problem, finished, first_case, numbers, regression, wide_case
from tests.learn.stn_cases import Ridge
from tests.learn.test_stn import TABLE, fitted, run_on_ridge
from workers.learn.gaussian_elbo import gap
from workers.learn.gaussian_evidence import Gaussians, log_evidence
from workers.learn.gaussian_regression import Priors, fit
from workers.learn.methods.exact_evidence import ExactEvidence
from workers.learn.methods.gaussian_elbo import GaussianELBo
from workers.learn.methods.stn_state import Variant
from workers.learn.problems.layout import Per


@dataclass(frozen=True)
class Figure:
    """A number beside what it ought to be."""

    what: str
    found: float
    known: float
    within: float

    @property
    def holds(self) -> bool:
        """Whether it is near enough."""
        return abs(self.found - self.known) <= self.within


def resting_points() -> Iterator[Figure]:
    ridge = Ridge()
    best = ridge.rest(ridge.exact)
    yield Figure("ridge: log λ of the lowest validation loss", best, -2.02174, 5.1e-6)
    for sigma, *printed in TABLE:
        for variant, (lam, loss, cosine) in zip((Variant.CENTERED, Variant.CLASSIC), printed, strict=True):
            response = fitted(ridge, variant, sigma)
            rest = ridge.rest(response)
            theta, jacobian = response(best)[1], ridge.exact(best)[1]
            name = f"ridge, σ = {sigma}, {variant.value}"
            yield Figure(f"{name}: log λ at rest", rest, lam, 5.1e-5)
            yield Figure(f"{name}: validation loss there", ridge.valid_loss(response(rest)[0]), loss, 5.1e-7)
            found = float(theta @ jacobian / np.linalg.norm(theta) / np.linalg.norm(jacobian))
            yield Figure(f"{name}: cosine of response and Jacobian", found, cosine, 5.1e-5)


def runs() -> Iterator[Figure]:
    ridge = Ridge()
    for variant in Variant:
        known = ridge.rest(fitted(ridge, variant, 0.3))
        yield Figure(f"ridge, σ = 0.3, {variant.value}: log λ of a run", run_on_ridge(variant, 0.3), known, 0.02)


def evidences() -> Iterator[Figure]:
    x, y = first_case()
    data, priors = regression(x, y), Priors.common(10)
    here = Gaussians(numbers(0.25), numbers(0.25)[0])
    density = scipy.stats.multivariate_normal(cov=0.25 * np.eye(40) + 0.25 * x @ x.T).logpdf(y)
    found = float(log_evidence(data, here, fit(data, priors, here.v, here.noise)))
    yield Figure("40 × 10: log evidence, v = s² = 0.25", found, -42.848990, 1e-6)
    yield Figure("40 × 10: the same by the Gaussian density", found, float(density), 1e-9)
    yield Figure("40 × 10: what one σ costs", float(gap(data, priors, here, diagonal=False)), 0.588847, 1e-6)
    yield Figure(
        "40 × 10: what a σ for each weight costs", float(gap(data, priors, here, diagonal=True)), 0.536031, 1e-6
    )
    yield from _learned("40 × 10, exact", ExactEvidence(tolerance=1e-12), x, y, 0.175110, 0.207124, -42.325810)
    for kappa, v, noise, objective in ((1.0, 0.173371, 0.207783, -42.907288), (4.0, 0.180266, 0.165743, -108.954923)):
        method = GaussianELBo(kappa=kappa, tolerance=1e-13)
        yield from _learned(f"40 × 10, isotropic, κ = {kappa:g}", method, x, y, v, noise, objective)
    x, y = diabetes()
    yield from _learned("diabetes, exact", ExactEvidence(tolerance=1e-12), x, y, 0.033286, 0.494509, -485.776330)
    yield from _learned("diabetes, isotropic", GaussianELBo(kappa=1.0), x, y, 0.029053, 0.495924, -488.6359, 1e-4)


def _learned(
    name: str,
    method: ExactEvidence | GaussianELBo,
    x: np.ndarray,
    y: np.ndarray,
    v: float,
    noise: float,
    objective: float,
    within: float = 1e-6,
) -> Iterator[Figure]:
    _, points = finished(method, evidence_problem(x, y))
    last = points[-1].metrics
    yield Figure(f"{name}: prior variance", last["prior_variance.l2"], v, 1e-6)
    yield Figure(f"{name}: noise variance", last["noise"] ** 2, noise, 1e-6)
    yield Figure(f"{name}: objective", -last["objective"] * len(y) * last["kappa"], objective, within)


def peers() -> Iterator[Figure]:
    x, y = diabetes()
    flat = {"alpha_1": 0, "alpha_2": 0, "lambda_1": 0, "lambda_2": 0}
    ridge = BayesianRidge(**flat, tol=1e-12, max_iter=5000, compute_score=True, fit_intercept=False).fit(x, y)
    _, points = finished(ExactEvidence(tolerance=1e-12), evidence_problem(x, y))
    yield Figure("diabetes: log evidence, BayesianRidge", points[-1].metrics["log_evidence"], ridge.scores_[-1], 1e-8)
    peer = ARDRegression(**flat, tol=1e-14, max_iter=20000, threshold_lambda=1e7).fit(x, y)
    method, problem = ExactEvidence(tolerance=1e-10), evidence_problem(x, y, Per.FEATURE, intercept=True)
    state, points = finished(method, problem)
    error = np.abs(method.answer(problem, state).weights[:10].numpy() - peer.coef_).max()
    yield Figure("diabetes: weights beside ARDRegression, largest difference", float(error), 0.0, 1e-5)
    yield Figure(
        "diabetes: features left out, ARDRegression", points[-1].metrics["pruned"], (peer.lambda_ >= 1e7).sum(), 0
    )


def collapse() -> Iterator[Figure]:
    for d, known in ((10, 0.007), (20, 0.17), (40, 0.65), (80, 1.76)):
        _, points = finished(GaussianELBo(kappa=1.0), evidence_problem(*wide_case(d)))
        yield Figure(f"20 × {d}, κ = 1: mean square of residuals", 2.0 * points[-1].train_loss, known, 0.05 * known)
    _, points = finished(GaussianELBo(kappa=1.0), evidence_problem(*wide_case(160)))
    yield Figure("20 × 160, κ = 1: collapsed", points[-1].metrics["collapsed"], 1.0, 0.0)
    _, points = finished(GaussianELBo(), evidence_problem(*wide_case(160)))
    yield Figure("20 × 160, κ = 8: collapsed", points[-1].metrics["collapsed"], 0.0, 0.0)


CHECKS = (resting_points, evidences, peers, collapse, runs)


def main() -> int:
    """Run all checks and print them as they come."""
    torch.set_num_threads(1)
    failed = 0
    print(f"{'number':70} {'found':>12} {'known':>12} {'within':>8}")
    for check in CHECKS:
        for figure in check():
            failed += not figure.holds
            print(
                f"{figure.what:70} {figure.found:12.6f} {figure.known:12.6f} {figure.within:8.0e}"
                f"{'' if figure.holds else '   FAILS'}",
                flush=True,
            )
    print(f"{failed} numbers are off" if failed else "all numbers hold")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
