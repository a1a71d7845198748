"""A problem in float64, whatever it was learned in: for checking an answer and for the final training."""

from dataclasses import replace
from typing import TypeVar

import torch

from workers.learn.method import Answer
from workers.learn.problems.denoising import DenoisingProblem
from workers.learn.problems.design import Design
from workers.learn.problems.linear import LinearProblem, Rows

P = TypeVar("P", LinearProblem, DenoisingProblem)


def in_double(problem: P, answer: Answer) -> tuple[P, Answer]:
    """Return the problem and the answer with all numbers in float64; the same objects if they are already."""
    doubled = _images(problem) if isinstance(problem, DenoisingProblem) else _linear(problem)
    if doubled is problem:
        return problem, answer
    # The bounds of the box are not exact in float32: a strength on one may lie just beyond it in float64.
    return doubled, Answer(doubled.space.clamp(answer.raw.double()), answer.weights.double())


def _images(problem: DenoisingProblem) -> DenoisingProblem:
    if problem.noisy.dtype is torch.float64:
        return problem
    return replace(problem, noisy=problem.noisy.double(), truth=problem.truth.double())


def _linear(problem: LinearProblem) -> LinearProblem:
    if problem.train.weights.dtype is torch.float64:
        return problem
    basis = problem.layout.basis
    return replace(
        problem,
        layout=replace(problem.layout, basis=None if basis is None else basis.double()),
        train=_rows(problem.train),
        valid=None if problem.valid is None else _rows(problem.valid),
        test=None if problem.test is None else _rows(problem.test),
    )


def _rows(rows: Rows) -> Rows:
    matrix = rows.design.matrix.double()
    transposed = rows.design.transposed.double() if rows.design.is_sparse else matrix.T
    y = rows.y.double() if rows.y.is_floating_point() else rows.y
    weights = rows.weights.double()
    # Rounded weights do not sum to one any more.
    return Rows(Design(matrix, transposed), y, weights / weights.sum(0))
