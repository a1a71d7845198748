"""Linear models from a specification."""

from collections.abc import Sequence
from typing import assert_never

import numpy as np

from service.spec.job import JobSpec
from service.spec.models import LinearModel, Loss
from service.spec.regularizers import L1, L2
from workers.build.granularity import per_of
from workers.build.names import strength_names
from workers.build.precision import build_dtype
from workers.data.load import LoadedData
from workers.learn.problems.linear import LinearProblem
from workers.learn.problems.linear_data import Examples, L1Term, L2Term, LinearData, linear_problem


def build_linear(spec: JobSpec, model: LinearModel, data: LoadedData, *, device: str) -> LinearProblem:
    """Return the problem that a job poses on its data, with all arrays on `device`.

    Raises:
        LearnError: the data does not fit the model.
    """
    parts = data.parts
    rows = LinearData(
        train=_examples(data, parts.train),
        valid=None if parts.valid is None else _examples(data, parts.valid),
        test=None if parts.test is None else _examples(data, parts.test),
        fold=parts.fold,
    )
    return linear_problem(
        rows,
        loss=loss_name(spec.loss),
        terms=build_terms(spec, model),
        intercept=model.intercept,
        dtype=build_dtype(spec),
        device=device,
        classes=None if data.class_names is None else len(data.class_names),
    )


def build_terms(spec: JobSpec, model: LinearModel) -> list[L2Term | L1Term]:
    """Return the penalties, named as the trajectory and the result name them.

    A regularizer's strengths are called by its kind; where a kind occurs again, `l2`, `l2_2`, `l2_3`, … in the
    order of the specification.
    """
    return [
        # Without an intercept there is no bias that could have a strength of its own.
        _term(name, part, biases=isinstance(part, L2) and part.biases and model.intercept)
        for name, part in zip(strength_names(spec), spec.regularizers, strict=True)
        if isinstance(part, L2 | L1)
    ]


def _examples(data: LoadedData, rows: Sequence[int] | np.ndarray) -> Examples:
    return Examples(data.x[rows], data.y[rows])


def loss_name(loss: Loss) -> str:
    """Return what `learn` calls a loss."""
    match loss:
        case Loss.CROSS_ENTROPY:
            return "cross_entropy"
        case Loss.SQUARED_ERROR:
            return "squared"
        case _:
            assert_never(loss)


def _term(name: str, regularizer: L2 | L1, *, biases: bool) -> L2Term | L1Term:
    strength, per = regularizer.strength, per_of(regularizer.strength.per)
    if isinstance(regularizer, L1):
        if strength.fixed is not None:
            return L1Term(name, strength.fixed, per, fixed=True)
        return L1Term(name, strength.init, per, low=strength.low, high=strength.high)
    if strength.fixed is not None:
        return L2Term(name, strength.fixed, per, fixed=True, biases=biases)
    return L2Term(name, strength.init, per, low=strength.low, high=strength.high, biases=biases)
