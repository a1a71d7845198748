"""What a learned penalty makes of images that it has not seen.

    python benchmarks/denoising.py --data DIR [--out FILE] [--quick]

Penalties are learned on crops of BSD400 with Gaussian noise, σ = 0.1, and tested on the twelve images of Set12, whole,
with the same noise: total variation at the best point of a fine grid, total variation learned by each method, and a
field of experts. What each method makes of that for the same gradients is compared on the learning images. PSNR and
SSIM are means over the images.

Costs are gradient-equivalents: gradients + 2 · Hessian-vector products + 2 · cross products, over all learning images.
Always exits with 0: a claim that the run does not bear out says FAIL. DIR holds `denoise_bsd400_first100.npz` (`X`,
uint8, [n, h, w]) and `denoise_set12/*.png`.
"""

import argparse
import platform
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from workers.learn.image_quality import psnr, quality, ssim
from workers.learn.inner.lbfgs import LBFGS
from workers.learn.method import AbstractMethod, Status, run
from workers.learn.methods.hoag import HOAG
from workers.learn.methods.implicit import Implicit
from workers.learn.methods.maid import MAID
from workers.learn.outer.quasi_newton import QuasiNewton
from workers.learn.problem import Part
from workers.learn.problems.denoising import DenoisingProblem, denoise
from workers.learn.problems.denoising_data import Pairs, as_images, denoising_problem, noisy, on_device
from workers.learn.regularizers.field_of_experts import FieldOfExperts
from workers.learn.regularizers.filters import cosine_filters
from workers.learn.regularizers.image import AbstractImageRegularizer, Quantity
from workers.learn.regularizers.tv import TV
from workers.learn.transforms import Identity

SIGMA = 0.1
GAIN = 0.5
"""Decibels by which the field of experts is to beat total variation on the test images."""
ACCURACY = 1e-4
"""Proven root mean square error of the test images' solves."""
TOTAL_VARIATION, FIELD, GRID = "total variation", "field of experts", "best of a grid"


@dataclass(frozen=True)
class Size:
    """How much is done."""

    crops: int
    side: int
    filters: int
    taps: int
    allowance: int
    """Gradient-equivalents of the field of experts that is tested."""
    of_tv: int
    """Gradient-equivalents of total variation, where a method does not converge before."""
    comparison: int
    """Gradient-equivalents of the fields of experts that methods are compared by."""
    grid: tuple[int, int]
    """Points of strength and smoothing."""
    test: int
    """Images."""


FULL = Size(
    crops=48, side=64, filters=24, taps=5, allowance=20_000, of_tv=10_000, comparison=500, grid=(41, 15), test=12
)
QUICK = Size(crops=4, side=32, filters=8, taps=3, allowance=600, of_tv=600, comparison=300, grid=(7, 5), test=2)


@dataclass(frozen=True)
class Row:
    """One way to denoise."""

    penalty: str
    how: str
    steps: int | None
    cost: int | None
    loss: float
    learned: dict[str, float]
    tested: dict[str, list[float]] | None
    """Of each test image."""
    seconds: float | None
    note: str = ""

    def line(self) -> str:
        """Return a row of the table."""
        steps = "–" if self.steps is None else f"{self.steps:,}"
        cost = "–" if self.cost is None else f"{self.cost:,}"
        seconds = "–" if self.seconds is None else f"{self.seconds:.0f}"
        tested = "– | –" if self.tested is None else f"{self.test('psnr'):.2f} | {self.test('ssim'):.4f}"
        return (
            f"| {self.penalty} | {self.how} | {steps} | {cost} | {self.loss:.4f} | {self.learned['psnr']:.2f} "
            f"| {tested} | {seconds} | {self.note} |"
        )

    def test(self, name: str) -> float:
        """Return the mean over the test images."""
        return float("nan") if self.tested is None else fmean(self.tested[name])


HEADER = (
    "| penalty | strengths by | steps | gradient-equivalents | loss, learning | PSNR, learning | PSNR, Set12 "
    "| SSIM, Set12 | s | |\n| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- |"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--quick", action="store_true", help="a small run that shows that it works")
    given = parser.parse_args()
    size = QUICK if given.quick else FULL
    learning, test = learning_images(given.data, size), test_images(given.data, size)
    rows = list(measured(learning, test, size))
    text = report(rows, size)
    if given.out is not None:
        given.out.write_text(text)
    print(text)


def learning_images(data: Path, size: Size) -> Pairs:
    """Return the middles of the first images of BSD400, with noise."""
    with np.load(data / "denoise_bsd400_first100.npz", allow_pickle=False) as archive:
        clean = as_images(archive["X"][: size.crops])
    at = (clean.shape[-1] - size.side) // 2
    clean = np.ascontiguousarray(clean[..., at : at + size.side, at : at + size.side])
    return Pairs(noisy(clean, SIGMA, 0), clean)


def test_images(data: Path, size: Size) -> list[Pairs]:
    """Return Set12 with noise, a batch for each size of images."""
    batches: dict[tuple[int, ...], list[np.ndarray]] = {}
    for path in sorted((data / "denoise_set12").glob("*.png"))[: size.test]:
        clean = as_images(np.asarray(Image.open(path))[None])
        batches.setdefault(clean.shape, []).append(clean)
    first, pairs = 0, []
    for images in batches.values():
        clean = np.concatenate(images)
        pairs.append(Pairs(noisy(clean, SIGMA, 1, indices=range(first, first + len(clean))), clean))
        first += len(clean)
    return pairs


def measured(learning: Pairs, test: Sequence[Pairs], size: Size) -> Iterator[Row]:
    """Yield the rows of the table, telling of each when it is there."""
    total_variation = TV(Quantity("tv", 0.05, low=1e-6, high=1e2), Quantity("tv.smoothing", 0.01, low=1e-4, high=1.0))
    of_tv = denoising_problem(learning, total_variation, dtype=torch.float64, device="cpu")
    # Steps are not so accurate that single precision would be felt; whatever is told of the answer is, in double.
    single, of_field = (
        denoising_problem(learning, field(size), dtype=dtype, device="cpu") for dtype in (torch.float32, torch.float64)
    )
    as_given = of_tv.evaluate(of_tv.initial_weights(0), Part.VALID)
    unseen = [(as_tensor(pairs.noisy), as_tensor(pairs.truth)) for pairs in test]
    yield told(Row("none", "", None, None, as_given["loss"], as_given, by_image(unseen), None))
    (name, first), *others = methods(1e-5, 2.0)
    yield told(learned(of_tv, of_tv, test, TOTAL_VARIATION, name, first, allowance=size.of_tv))
    # Taps are no logarithms: two, what suits strengths, is more than all that a filter of norm 1 has.
    name, method = methods(1e-4, 0.3)[0]
    yield told(learned(single, of_field, test, FIELD, name, method, allowance=size.allowance))
    yield told(on_grid(of_tv, test, size))
    for name, method in others:
        yield told(learned(of_tv, of_tv, test, TOTAL_VARIATION, name, method, allowance=size.of_tv))
    for name, method in methods(1e-4, 0.3):
        yield told(learned(of_field, of_field, None, FIELD, name, method, allowance=size.comparison))


def told(row: Row) -> Row:
    print(row.line(), flush=True)
    return row


def field(size: Size) -> AbstractImageRegularizer:
    """Return a field of experts as a job has it by default."""
    name, k, s = "field_of_experts", size.filters, size.taps
    return FieldOfExperts(
        Quantity(name, 0.01, low=1e-6, high=1e2),
        Quantity(f"{name}.weights", 1.0, (k,), low=1e-6, high=1e3),
        Quantity(f"{name}.smoothing", 0.01, (k,), low=1e-4, high=1.0),
        Quantity(f"{name}.filters", cosine_filters(k, s, seed=0), (k, s, s), Identity()),
    )


def methods(tolerance: float, first_step: float) -> list[tuple[str, AbstractMethod]]:  # type: ignore[type-arg]
    """Return the methods as jobs have them, but for a longer memory of `implicit` and the length of its first step."""
    steps = QuasiNewton(memory=50, first_step=first_step)
    return [
        ("`implicit`", Implicit(outer=steps, tolerance=tolerance, relaxation=1.7)),
        ("`hoag`", HOAG(tolerance=tolerance)),
        ("`maid`", MAID(tolerance=tolerance)),
    ]


def on_grid(problem: DenoisingProblem, test: Sequence[Pairs], size: Size) -> Row:
    """Return total variation at the best point of a grid, by the loss on the learning images."""
    began, inner, oracle = time.monotonic(), LBFGS(), problem.oracle()
    best, w, cost = (float("inf"), torch.zeros(2)), problem.initial_weights(0), 0
    for nu in np.geomspace(0.1, 0.001, size.grid[1]):
        w = problem.initial_weights(0)
        for strength in np.geomspace(0.01, 0.3, size.grid[0]):
            raw = torch.tensor([np.log(strength), np.log(nu)], dtype=torch.float64)
            found = inner.solve(oracle, raw, w, tol=3.0 * ACCURACY * w.numel() ** 0.5 / problem.noisy.shape[0])
            w, cost = found.w, cost + found.cost.gradients + 1
            best = min(best, (float(oracle.outer(w, raw).value), raw), key=lambda each: each[0])
    seconds = time.monotonic() - began
    points = size.grid[0] * size.grid[1]
    return row_at(problem, best[1], test, TOTAL_VARIATION, GRID, points, cost, seconds, "")


def learned(
    problem: DenoisingProblem,
    judged_on: DenoisingProblem,
    test: Sequence[Pairs] | None,
    penalty: str,
    name: str,
    method: AbstractMethod,  # type: ignore[type-arg]
    *,
    allowance: int,
) -> Row:
    """Return what a method learns until it converges or its allowance is spent.

    `judged_on` is the same problem, in double precision.
    """
    began = time.monotonic()
    state, status = method.init(problem, seed=0), Status.RUNNING
    for following, point in run(method, problem, state, max_steps=100_000):
        state, status = following, point.status
        if state.cost.gradient_equivalents >= allowance:
            break
    raw, seconds = method.answer(problem, state).raw, time.monotonic() - began
    cost, note = state.cost.gradient_equivalents, "" if status is Status.RUNNING else status.value
    return row_at(judged_on, raw.double(), test, penalty, name, state.step, cost, seconds, note)


def row_at(
    problem: DenoisingProblem,
    raw: Tensor,
    test: Sequence[Pairs] | None,
    penalty: str,
    how: str,
    steps: int,
    cost: int,
    seconds: float,
    note: str,
) -> Row:
    """Measure a penalty on the learning images and, if there are any, on the test images."""
    inner = LBFGS()
    again = denoise(problem, raw, problem.noisy, inner=inner, tol=ACCURACY, batch=problem.noisy.shape[0])
    valid = problem.evaluate(again.images.reshape(-1), Part.VALID)
    images = []
    for pairs in test or ():
        found = denoise(problem, raw, as_tensor(pairs.noisy), inner=inner, tol=ACCURACY, batch=1)
        assert found.converged
        images.append((found.images, as_tensor(pairs.truth)))
    tested = None if test is None else by_image(images)
    return Row(penalty, how, steps, cost, valid["loss"], quality(again.images, problem.truth), tested, seconds, note)


def by_image(batches: Sequence[tuple[Tensor, Tensor]]) -> dict[str, list[float]]:
    """Return PSNR and SSIM of each image of all batches."""
    return {
        name: torch.cat([measure(x, truth) for x, truth in batches]).tolist()
        for name, measure in (("psnr", psnr), ("ssim", ssim))
    }


def as_tensor(images: np.ndarray) -> Tensor:
    return on_device(images, dtype=torch.float64, device="cpu")


def report(rows: Sequence[Row], size: Size) -> str:
    """Return the table and what is claimed of it."""
    of_tv = [row for row in rows if row.penalty == TOTAL_VARIATION]
    (grid,) = (row for row in of_tv if row.how == GRID)
    learned_tv = [row for row in of_tv if row is not grid]
    (field,) = (row for row in rows if row.penalty == FIELD and row.tested is not None)
    gain = min(field.test("psnr") - row.test("psnr") for row in of_tv)
    same = max(row.loss for row in learned_tv) / grid.loss - 1.0
    spent = (learned_tv[0].cost or 0) / (grid.cost or 1)
    ordered = sorted(rows, key=lambda row: ["none", TOTAL_VARIATION, FIELD].index(row.penalty))
    claims = [
        (gain >= GAIN, f"the field of experts beats total variation by {gain:.2f} dB on Set12, {GAIN} at least"),
        (same <= 1e-4, f"every method's total variation is at most {max(same, 0.0):.3%} worse than the grid's"),
        (spent <= 0.1, f"`implicit` learns it for {spent:.3f} of what the grid costs"),
    ]
    lines = [
        "# Denoising",
        "",
        f"Learned on the middle {size.side} × {size.side} pixels of the first {size.crops} images of BSD400, tested on "
        f"{size.test} images of Set12, whole; Gaussian noise of σ = {SIGMA}. The field of experts has {size.filters} "
        f"filters of {size.taps} × {size.taps} pixels, learned with their weights and smoothings: "
        f"{1 + size.filters * (2 + size.taps**2)} numbers. The one that is tested is learned in float32; all else, and "
        f"all that is measured of it, is in float64. {torch.get_num_threads()} thread(s), torch {torch.__version__}, "
        f"{platform.machine()}.",
        "",
        f"A method ends when it has converged, or has spent {size.of_tv:,} gradient-equivalents on total variation, "
        f"{size.allowance:,} on the field of experts that is tested, or {size.comparison:,} on those that methods are "
        f"compared by. The grid has {size.grid[0]} strengths and {size.grid[1]} smoothings.",
        "",
        HEADER,
        *(row.line() for row in ordered),
        "",
        *(f"- {'PASS' if holds else 'FAIL'}: {claim}." for holds, claim in claims),
        "",
        "PSNR of each test image:",
        "",
        *image_by_image(ordered[0], grid, field),
        "",
        "Made by `python benchmarks/denoising.py --data DIR`; seconds are of one run on a machine with other work.",
        "",
    ]
    return "\n".join(lines)


def image_by_image(*rows: Row) -> list[str]:
    """Return a table of the PSNR of each test image."""
    titles = [f"{row.penalty}, {row.how}" if row.how else "noisy" for row in rows]
    lines = zip(*(row.tested["psnr"] for row in rows if row.tested is not None), strict=True)
    return [
        f"| image | {' | '.join(titles)} |",
        f"| --- |{' ---: |' * len(rows)}",
        *(f"| {number:02} |" + "".join(f" {value:.2f} |" for value in line) for number, line in enumerate(lines, 1)),
    ]


if __name__ == "__main__":
    main()
