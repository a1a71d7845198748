"""Learned strengths of linear models beside grids, random search by model, and single trainings.

    python benchmarks/linear.py --quick
    python benchmarks/linear.py --data DIR [--out DIR] [--only NAME]

Costs are counted in calls of the losses' derivatives, which no machine changes; seconds are given as ratios within
the run. What a contender is worth is judged outside of its counters: the strengths that it would answer, had it
stopped there, are trained with once more and tightly. The judge also looks for the best known loss: in one
dimension on a fine grid and by Brent's method, in more by long runs of L-BFGS-B on tight hypergradients from two
starts; every answer of every contender counts too.

Always exits with 0: a claim that the run does not bear out says FAIL.
"""

import argparse
import math
import platform
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import linear_judge
import numpy as np
import scipy
import sklearn
import torch
from linear_cases import Case, cases
from linear_report import TARGET, Claim, Point, Report, Row, arrival
from linear_rivals import (
    STOPPED,
    Trace,
    changes,
    learn,
    own_grid,
    problem_of,
    sklearn_cold,
    sklearn_grid,
    tpe,
    train,
)

from workers.learn.methods.hoag import HOAG
from workers.learn.methods.implicit import Implicit

START = 1e-2
"""Where every gradient method starts: the λ that the service suggests, whatever the data."""
POINTS = 20
LOOSE = 1e-4
"""Tolerance of the run that is held against the grid: the default is finer than any use of a strength."""
MOST_STRENGTHS_FOR_TPE = 256
PRECISION = 10
"""How many times as precise as the grid one strength is to be found: a grid knows it to half a spacing."""


class Benchmark:
    """One run over all cases."""

    def __init__(self, report: Report, *, quick: bool) -> None:
        self._report = report
        self._quick = quick

    def measure(self, case: Case, without: Sequence[str]) -> Iterator[None]:
        """Measure all contenders on a case, and pause after each granularity that is not left out."""
        _say(f"{case.name}: {case.train.X.shape[0]} x {case.train.X.shape[1]}, {case.classes} classes")
        single = linear_judge.Judge(problem_of(case, "model", initial=START))
        linear_judge.best_single(case, single)
        best = float(single.best[1].exp())
        _say(f"  best single strength {best:.4g}, validation loss {single.best[0]:.6f}")
        relative, tol = self._cold(case, single, best)
        self._one(case, single, relative=relative, tol=tol)
        yield
        for per in case.granularities[1:]:
            if per not in without and case.effort.trials:
                self._many(case, per, single, relative=relative)
                yield

    def _cold(self, case: Case, judge: linear_judge.Judge, best: float) -> tuple[float, float]:
        """Train once from zero, as loosely as 0.1 % of the loss allows, and return the two tolerances.

        Contenders that train afresh for each strength are given the same tolerances: the cheapest that will do.
        """
        truth, raw = judge.best[0], torch.tensor([math.log(best)], dtype=torch.float64)
        oracle, zero = judge.problem.oracle(), judge.problem.initial_weights(0)
        for relative in 10.0 ** -np.arange(2, 8):
            start = time.perf_counter()
            w, cost = train(oracle, raw, zero, relative=relative)
            seconds, loss = time.perf_counter() - start, float(oracle.outer(w, raw).value)
            if abs(loss / truth - 1) <= 1e-3:
                break
        self._note_cold(case, "our L-BFGS", cost.gradients, seconds, loss)
        for tol in 10.0 ** -np.arange(4, 9):
            loss, cost, seconds = sklearn_cold(case, best, tol=tol)
            if abs(loss / truth - 1) <= 1e-3:
                break
        self._note_cold(case, "scikit-learn", cost.gradients, seconds, loss)
        return float(relative), float(tol)

    def _note_cold(self, case: Case, name: str, gradients: int, seconds: float, loss: float) -> None:
        self._report.colds[f"{case.name}: {name}"] = {
            "gradients": float(gradients),
            "seconds": seconds,
            "valid_loss": loss,
        }
        _say(f"  one training from zero, {name}: {gradients} gradients, {seconds:.2f} s, loss {loss:.5f}")

    def _one(self, case: Case, judge: linear_judge.Judge, *, relative: float, tol: float) -> None:
        """Measure contenders for one strength, and hold the claim about it against the cheapest grid."""
        spacing = math.log(case.box[1] / case.box[0]) / (POINTS - 1)
        low, high = case.box
        traces = [
            learn("implicit", Implicit(), judge.problem, max_steps=100),
            learn(f"implicit, tolerance {LOOSE:g}", Implicit(tolerance=LOOSE), judge.problem, max_steps=100),
        ]
        most = case.effort.colds * self._report.colds[f"{case.name}: scikit-learn"]["gradients"]
        if case.effort.extras:
            for name, initial in (("strongest", high), ("weakest", low)):
                problem = problem_of(case, "model", initial=initial)
                traces.append(learn(f"implicit, from the {name}", Implicit(), problem, max_steps=100))
            traces.append(learn("hoag", HOAG(), judge.problem, max_steps=30 if self._quick else 100, most=most))
        dear = case.effort.beaten * traces[1].cost.gradient_equivalents
        grids = [own_grid(case, judge.problem, points=POINTS, relative=relative, most=dear)]
        grids += [sklearn_grid(case, points=POINTS, tol=t, most=dear) for t in sorted({1e-4, tol}, reverse=True)]
        traces += grids
        if case.effort.trials:
            traces.append(tpe(case, judge.problem, trials=case.effort.trials, relative=relative))
        rows = self._rows(case, "model", judge, traces, spacing=spacing)

        ours, spent = rows[1], rows[1].gradient_equivalents
        for whose in ("scikit-learn", "our L-BFGS"):
            theirs = [r for r in rows if r.contender.startswith("grid") and whose in r.contender]
            right = [r for r in theirs if _within(r.log_error, 1.0) or r.ended.startswith(STOPPED)]
            if not right:
                self._claim(case, "model", f"one strength: {whose}'s grid", "finds no right point", passes=True)
                continue
            # the cheapest whose trainings are good enough to find the right point
            grid = min(right, key=lambda row: row.gradient_equivalents)
            self._claim(
                case,
                "model",
                f"one strength: at most half the cost of the {POINTS}-point grid of {whose}, "
                f"{PRECISION} times as precise",
                f"{spent} of {grid.gradient_equivalents} ({grid.contender}, {grid.ended}); "
                f"log error {ours.log_error:.3f} spacings",
                passes=2 * spent <= grid.gradient_equivalents and _within(ours.log_error, 0.5 / PRECISION),
            )

    def _many(self, case: Case, per: str, single: linear_judge.Judge, *, relative: float) -> None:
        """Measure contenders for a strength for each class or feature."""
        problem = problem_of(case, per, initial=START)
        judge = linear_judge.Judge(problem)
        trials = case.effort.trials
        size = problem.space.size
        cold = self._report.colds[f"{case.name}: scikit-learn"]["gradients"]
        most = (10 if self._quick else case.effort.colds) * cold
        traces = [
            learn(name, method, problem, max_steps=200, most=most)
            for name, method in (("implicit", Implicit()), *((("hoag", HOAG()),) if case.effort.extras else ()))
        ]
        if size <= MOST_STRENGTHS_FOR_TPE:
            traces.append(tpe(case, problem, trials=trials, relative=relative))
            beside = ""
        else:
            traces.append(tpe(case, single.problem, trials=trials, relative=relative))
            beside = f" (of one strength: {size} are out of its reach)"
            traces[-1].name += beside
            for i, visit in enumerate(traces[-1].visits):
                traces[-1].visits[i] = type(visit)(visit.raw.expand(size), visit.claimed, visit.cost, visit.seconds)
        iterations = 10 if self._quick else case.effort.searches
        starts = (single.best[1], torch.tensor([math.log(START)], dtype=torch.float64))
        for start in starts[: case.effort.starts]:
            linear_judge.best_of_many(judge, start.expand(size).clone(), iterations=iterations)
        one = Trace("best single strength", ended="the judge's")
        one.visits = [type(traces[0].visits[0])(single.best[1].expand(size), single.best[0], one.cost, 0.0)]
        rows = self._rows(case, per, judge, [*traces, one], spacing=None)

        ours, searched = rows[0], rows[-2]
        reached = math.inf if ours.arrival is None else ours.arrival.gradient_equivalents / cold
        self._claim(
            case,
            per,
            f"one per {per}: within 0.1 % of the best known for at most five single trainings",
            f"{reached:.1f} trainings of {cold:.0f} gradients; ends {ours.valid_loss / ours.best_known - 1:.2%} above "
            f"after {ours.gradient_equivalents / cold:.1f}",
            passes=reached <= 5,
        )
        by_then = [p for p in ours.points if p.gradient_equivalents <= 5 * cold]
        at_five = by_then[-1].valid_loss if by_then else math.inf
        self._claim(
            case,
            per,
            f"one per {per}: TPE after {trials} trials is behind what five single trainings buy{beside}",
            f"{searched.valid_loss:.5f} after {searched.gradient_equivalents / cold:.1f} trainings, "
            f"against {at_five:.5f}",
            passes=at_five < searched.valid_loss,
        )

    def _rows(
        self, case: Case, per: str, judge: linear_judge.Judge, traces: list[Trace], *, spacing: float | None
    ) -> list[Row]:
        """Judge every answer, then report every trace against the best of all of them."""
        # The last answers first: what is known of the best decides how far back it matters.
        ends = [judge.losses(changes(trace)[-1].raw) for trace in traces]
        judged = [self._judged(case, judge, trace) for trace in traces]
        best, optimum = judge.best
        rows = []
        for trace, points, (valid, test) in zip(traces, judged, ends, strict=True):
            visits = changes(trace)
            error = None if spacing is None else abs(float(visits[-1].raw - optimum)) / spacing
            rows.append(
                Row(
                    dataset=case.name,
                    per=per,
                    strengths=judge.problem.space.size,
                    contender=trace.name,
                    gradients=trace.cost.gradients,
                    hessian_vector_products=trace.cost.hessian_vector_products,
                    cross_products=trace.cost.cross_products,
                    gradient_equivalents=trace.cost.gradient_equivalents,
                    seconds=trace.seconds,
                    arrival=arrival(points, best),
                    best_known=best,
                    valid_loss=valid,
                    test_loss=test,
                    steps=len(trace.visits),
                    ended=trace.ended,
                    log_error=error,
                    points=points,
                )
            )
            row = rows[-1]
            until = "-" if row.arrival is None else row.arrival.gradient_equivalents
            _say(
                f"  {per:8} {trace.name:45} {row.gradient_equivalents:6} ({until}) = {row.gradients} + "
                f"2·{row.hessian_vector_products} + 2·{row.cross_products}, {row.steps} steps ({row.ended}), "
                f"{row.seconds:.2f} s, valid {row.valid_loss:.5f} (+{row.valid_loss / best - 1:.2%}), "
                f"test {row.test_loss:.5f}" + ("" if error is None else f", off by {error:.3f} spacings")
            )
        self._report.rows += rows
        return rows

    def _judged(self, case: Case, judge: linear_judge.Judge, trace: Trace) -> tuple[Point, ...]:
        """Return the true loss of every answer; of a large case from the last one back to one that is far off."""
        points: list[Point] = []
        far = False
        for visit in reversed(changes(trace)):
            loss = visit.claimed if far else judge.losses(visit.raw)[0]
            far = far or (not case.effort.extras and loss > judge.best[0] * (1 + 2 * TARGET))
            points.append(Point(visit.cost.gradient_equivalents, visit.seconds, loss))
        return tuple(reversed(points))

    def _claim(self, case: Case, per: str, says: str, measured: str, *, passes: bool) -> None:
        self._report.claims.append(Claim(case.name, per, says, measured, passes))
        _say(f"  {'PASS' if passes else 'FAIL'}: {says}: {measured}")


def _within(error: float | None, most: float) -> bool:
    return error is not None and error <= most


def _say(line: str) -> None:
    print(line, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with a9a.npz and 20news_stripped_mindf2_counts.npz")
    parser.add_argument("--quick", action="store_true", help="digits only, under a minute")
    parser.add_argument("--only", help="one data set by name")
    parser.add_argument("--without", nargs="*", default=[], choices=["class", "feature"], help="leave these out")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    versions = f"Python {platform.python_version()}, torch {torch.__version__}, scikit-learn {sklearn.__version__}"
    settings = {
        "versions": f"{versions}, SciPy {scipy.__version__}",
        "threads": options.threads,
        "box": "λ = 1e-4/n … 1e4/n, the range of LogisticRegressionCV",
        "start": f"λ = {START} for gradient methods",
    }
    report = Report(settings)
    benchmark = Benchmark(report, quick=options.quick)
    loaders = cases(None if options.quick else options.data)
    for load in loaders:
        case = load()
        if options.only in (None, case.name):
            for _ in benchmark.measure(case, options.without):
                report.write(options.out)
    _say(report.markdown())


if __name__ == "__main__":
    main()
