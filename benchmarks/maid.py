"""What MAID proves, and what it does not need to be told.

    python benchmarks/maid.py --data DIR [--out FILE] [--quick]

First, on random quadratic problems whose objective and gradient are known in closed form: the error of every
hypergradient against its bound, and the exact decrease of every accepted step against what the step claims.

Second, the strength and the smoothing of a total variation penalty, learned on four images with noise: where MAID
ends for initial accuracies and first steps over several decades, and where HOAG does. Ends are judged outside of
the runs: by the outer loss of weights that are trained to 1e-9 at the answer.

Costs are calls of the losses' derivatives, which no machine changes. Always exits with 0: a claim that the run does
not bear out says FAIL. DIR holds `denoise_bsd400_first100.npz`: `X`, uint8, [n, h, w].
"""

import argparse
import math
import platform
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from workers.learn.inner.fista import FISTA
from workers.learn.inner.lbfgs import LBFGS
from workers.learn.method import Status, run
from workers.learn.methods.hoag import HOAG
from workers.learn.methods.maid import MAID
from workers.learn.problems.denoising import DenoisingProblem
from workers.learn.problems.denoising_data import Pairs, as_images, denoising_problem, noisy
from workers.learn.problems.quadratic import QuadraticProblem
from workers.learn.regularizers.image import Quantity
from workers.learn.regularizers.tv import TV

SIGMA = 0.1
START = -5.0
"""Both hyperparameters, in the parametrisation of the paper: strength ½ e^θ₀, smoothing e^θ₁."""
SPREAD = 2e-3
"""Relative spread of the final loss within which starts are said to make no difference."""


@dataclass
class Quadratics:
    """What was seen on the quadratic problems."""

    problems: int = 0
    points: int = 0
    steps: int = 0
    ratios: list[float] = field(default_factory=list)
    """Bound over error, where the error is more than rounding."""
    worst_decrease: float = math.inf
    """Least of (f(θ) − f(θ⁺)) / (λ ⟨z, θ − θ⁺⟩): one or more bears out the claim."""
    outside: int = 0
    """Points whose exact value is not between the bounds."""
    above: int = 0
    """Points whose error exceeds the bound."""
    gaps: list[float] = field(default_factory=list)
    """(f − f*) / (f₀ − f*) at the end, without a box."""


def quadratics(count: int) -> Quadratics:
    """Run MAID on random quadratic problems, every third of them in a box that binds."""
    found = Quadratics()
    for seed in range(count):
        condition = 10.0 ** (0.5 + 2.5 * (seed % 7) / 6)
        boxed = seed % 3 == 2
        problem = QuadraticProblem.random(
            seed,
            p=10 + seed % 31,
            h=1 + seed % 8,
            condition=condition,
            low=-0.2 if boxed else None,
            high=0.3 if boxed else None,
        )
        method = MAID(tolerance=1e-7)
        found.problems += 1
        before = math.inf
        for state, point in run(method, problem, method.init(problem, seed=0), max_steps=40):
            here = state.here
            exact = problem.value(here.at.raw)
            error = float(torch.linalg.vector_norm(problem.gradient(here.at.raw) - here.gradient))
            rounding = 1e-13 * abs(exact)
            found.points += 1
            bound, claim = point.certificate["error_bound"], point.metrics["claimed_decrease"]
            found.above += error > bound + rounding
            if error > 100 * rounding:
                found.ratios.append(bound / error)
            found.outside += not here.bounds.lower - rounding <= exact <= here.bounds.upper + rounding
            if claim > 10 * rounding:
                found.steps += 1
                found.worst_decrease = min(found.worst_decrease, (before - exact) / claim)
            before = exact
        if not boxed:
            start, best = problem.value(problem.initial), problem.value(problem.minimiser())
            found.gaps.append((exact - best) / (start - best))
    return found


def images(data: Path) -> DenoisingProblem:
    """Return four crops of 64 × 64 with noise, and a total variation to be learned."""
    with np.load(data / "denoise_bsd400_first100.npz", allow_pickle=False) as file:
        truth = as_images(file["X"][:4, 58:122, 58:122])
    penalty = TV(Quantity("tv", 0.5 * math.exp(START)), Quantity("tv.smoothing", math.exp(START)))
    return denoising_problem(Pairs(noisy(truth, SIGMA, 0), truth), penalty, dtype=torch.float64, device="cpu")


@dataclass(frozen=True)
class End:
    """Where a run ended."""

    method: str
    accuracy: float | None
    change: float
    value: float
    """Of the exact objective, or nearly."""
    raw: tuple[float, ...]
    points: int
    gradients: int
    products: int
    failures: int
    certified: bool
    ended: str


def end_of(problem: DenoisingProblem, method: MAID | HOAG, *, accuracy: float | None, change: float, steps: int) -> End:
    """Run a method on the images and judge its answer."""
    failures, certified, points = 0, True, 0
    for state, point in run(method, problem, method.init(problem, seed=0), max_steps=steps):  # noqa: B007
        points += 1
        if point.certificate is None:
            certified = False
        else:
            failures += int(point.certificate["failures"])
            certified = certified and bool(point.certificate["certified"])
    answer = method.answer(problem, state)
    weights = FISTA().solve(problem.oracle(), answer.raw, answer.weights, tol=1e-9).w
    ended = "steps" if point.status is Status.RUNNING else point.status.value
    return End(
        type(method).__name__,
        accuracy,
        change,
        float(problem.oracle().outer(weights, answer.raw).value),
        tuple(answer.raw.tolist()),
        points,
        state.cost.gradients,
        state.cost.hessian_vector_products,
        failures,
        certified,
        ended,
    )


def ends(problem: DenoisingProblem, *, quick: bool) -> Iterator[End]:
    """Run every start of both methods."""
    accuracies: tuple[float | None, ...] = (10.0, 1e-3) if quick else (None, 10.0, 1.0, 1e-1, 1e-2, 1e-3)
    changes = (0.05, 5.0) if quick else (0.05, 0.5, 5.0)
    steps = 20 if quick else 60
    for change in changes:
        for accuracy in accuracies:
            maid = MAID(inner=LBFGS(), initial_accuracy=accuracy, first_change=change)
            yield end_of(problem, maid, accuracy=accuracy, change=change, steps=steps)
    for change in changes:
        for accuracy in accuracies:
            if accuracy is not None:
                hoag = HOAG(first_tolerance=accuracy, first_change=change)
                yield end_of(problem, hoag, accuracy=accuracy, change=change, steps=steps)


def spread(some: list[End]) -> float:
    """Return how far the worst end is above the best one."""
    values = [end.value for end in some]
    return max(values) / min(values) - 1.0


def report(found: Quadratics, tv: list[End]) -> str:
    """Return the tables."""
    maid, hoag = ([end for end in tv if end.method == name] for name in ("MAID", "HOAG"))
    sane = [end for end in hoag if end.accuracy is not None and end.accuracy < 1.0]
    claims = [
        ("error ≤ bound at every point", found.above == 0, f"{found.above} of {found.points} points above"),
        ("exact value between its bounds", found.outside == 0, f"{found.outside} of {found.points} outside"),
        (
            "f(θ) − f(θ⁺) ≥ λ ⟨z, θ − θ⁺⟩ at every accepted step",
            found.worst_decrease >= 1.0,
            f"least ratio {found.worst_decrease:.2f} over {found.steps} steps",
        ),
        (
            "TV: ends within 0.2 % of each other",
            spread(maid) <= SPREAD,
            f"{100 * spread(maid):.1e} % over {len(maid)} starts",
        ),
    ]
    ratios = sorted(found.ratios)
    lines = [
        "# What MAID proves, and what it does not need to be told",
        "",
        f"- versions: Python {platform.python_version()}, torch {torch.__version__}",
        "- command: `python benchmarks/maid.py --data DIR`",
        "",
        "| claim | | measured |",
        "| --- | --- | --- |",
        *(f"| {says} | {'PASS' if holds else 'FAIL'} | {measured} |" for says, holds, measured in claims),
        "",
        f"{found.problems} random quadratic problems (10 to 40 parameters, 1 to 8 hyperparameters, condition 3 to "
        "1000, every third in a box that binds), at most 40 points each. Bound over error: median "
        f"{statistics.median(ratios):.1f}, least {ratios[0]:.2f}, 95th percentile "
        f"{ratios[int(0.95 * len(ratios))]:.0f}. "
        f"Left of the initial gap to the minimum, without a box: median {statistics.median(found.gaps):.1e}.",
        "",
        "Total variation, noise of 0.1, four crops of 64 × 64 of BSD400, from θ = (−5, −5): the value of the exact "
        "objective at the end. MAID takes the accuracy as ε and δ of its first solves (none: its own choice), HOAG "
        "as its first relative tolerance (exponential schedule). The first step changes θ by so much (root mean "
        "square). "
        f"MAID's ends lie {100 * spread(maid):.1e} % apart, HOAG's {100 * spread(hoag):.2f} %, and "
        f"{100 * spread(sane):.2f} % without first tolerances of 1 and more, which leave its first weights untrained.",
        "",
        "| method | accuracy | first step | end value | above best | log strength, log smoothing | points | gradients "
        "| HVPs | failures | certified | ended |",
        "| --- | ---: | ---: | ---: | ---: | --- | ---: | ---: | ---: | ---: | --- | --- |",
    ]
    best = min(end.value for end in tv)
    for end in tv:
        accuracy = "—" if end.accuracy is None else f"{end.accuracy:g}"
        lines.append(
            f"| {end.method} | {accuracy} | {end.change:g} | {end.value:.5f} | {100 * (end.value / best - 1):.3f} % | "
            f"{', '.join(f'{x:.3f}' for x in end.raw)} | {end.points} | {end.gradients} | {end.products} | "
            f"{end.failures} | {'yes' if end.certified else 'no'} | {end.ended} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of denoise_bsd400_first100.npz")
    parser.add_argument("--out", type=Path, help="file to write the tables to")
    parser.add_argument("--quick", action="store_true", help="ten quadratic problems and four starts of each method")
    options = parser.parse_args()
    found = quadratics(10 if options.quick else 100)
    tv = []
    for end in ends(images(options.data), quick=options.quick):
        tv.append(end)
        print(end, flush=True)
    text = report(found, tv)
    print(text)
    if options.out is not None:
        options.out.write_text(text)


if __name__ == "__main__":
    main()
