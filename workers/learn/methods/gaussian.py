"""Linear regression problems as the evidence sees them: a Gaussian model and the priors on its weights."""

from dataclasses import dataclass
from functools import lru_cache

import scipy.sparse
import torch
from torch import Tensor

from workers.learn.errors import LearnError
from workers.learn.gaussian_priors import GaussianPriors
from workers.learn.gaussian_regression import Priors, Regression
from workers.learn.losses.squared import Squared
from workers.learn.problems.design import Design, design
from workers.learn.problems.layout import Layout
from workers.learn.problems.linear import LinearProblem


@dataclass(frozen=True, eq=False)
class Gaussian:
    """A linear regression problem, and the way back from its posterior to the problem's own weights."""

    regression: Regression
    priors: Priors
    of_strengths: GaussianPriors
    layout: Layout
    center: Tensor | None
    """x̄, [d], of features that were centred; None where the intercept has a prior, or there is none."""
    level: Tensor
    """ȳ, [c], that was taken off the targets."""

    def weights(self, m: Tensor) -> Tensor:
        """Return the flat weights, [p], of means m, [d, c], or [d + 1, c] with a penalised intercept."""
        d = self.layout.features
        if self.layout.basis is None:
            return m.reshape(-1)
        intercept = m[d] if self.center is None else self.level - self.center @ m
        return torch.cat([m[:d].reshape(-1), intercept])


@lru_cache(maxsize=2)
def gaussian(problem: LinearProblem) -> Gaussian:
    """Return a linear problem as a Gaussian model of its training rows.

    An intercept without a prior is no random quantity: like the noise it is chosen where the evidence is greatest, at
    ȳ − x̄ᵀ m, which amounts to centring features and targets.

    Raises:
        LearnError: another loss than the squared one, folds, or priors that the outputs do not share.
    """
    layout, rows = problem.layout, problem.train
    if not isinstance(problem.loss, Squared):
        raise LearnError(
            f"the evidence has a closed form for the squared loss; found {type(problem.loss).__name__}: take the "
            f"isotropic or the diagonal posterior"
        )
    if layout.models != 1:
        raise LearnError("the evidence needs no folds: give all rows to one model")
    read = GaussianPriors.read(problem.regularizers)
    d, c, total, of = layout.features, layout.outputs, read.size, read.of
    grid = of[: d * c].view(d, c)
    if bool((grid != grid[:, :1]).any()) or bool((grid == total).any()):
        raise LearnError("all outputs share the noise and the priors here: take strengths per model or per feature")
    on_intercept = of[d * c :]
    has_prior = layout.basis is not None and bool((on_intercept < total).all())
    if has_prior and bool((on_intercept != on_intercept[0]).any()):
        raise LearnError("all outputs share the prior of their intercepts here: take strengths per model or feature")
    y = rows.y.double().reshape(rows.y.shape[0], c)
    level = y.mean(0) if layout.basis is not None and not has_prior else torch.zeros_like(y[0])
    matrix, shift, center = _in_double(rows.design), None, None
    if has_prior:
        matrix = _with_ones(matrix)
    elif layout.basis is not None:
        center = matrix.transposed_times(torch.ones_like(y[:, :1]))[:, 0] / matrix.rows
        if matrix.is_sparse:
            shift = center
        else:
            centered = matrix.matrix - center
            matrix = Design(centered, centered.T)
    features = torch.cat([grid[:, 0], on_intercept[:1]]) if has_prior else grid[:, 0]
    return Gaussian(
        regression=Regression(matrix, y - level, shift),
        priors=Priors(features, total),
        of_strengths=read,
        layout=layout,
        center=center,
        level=level,
    )


def _in_double(found: Design) -> Design:
    return Design(found.matrix.double(), found.transposed.double())


def _with_ones(found: Design) -> Design:
    if not found.is_sparse:
        wider = torch.cat([found.matrix, torch.ones_like(found.matrix[:, :1])], dim=1)
        return Design(wider, wider.T)
    csr = found.matrix.cpu()
    array = scipy.sparse.csr_array(
        (csr.values().numpy(), csr.col_indices().numpy(), csr.crow_indices().numpy()),
        shape=(csr.shape[0], csr.shape[1]),
    )
    ones = scipy.sparse.csr_array([[1.0]] * csr.shape[0])
    return design(scipy.sparse.hstack([array, ones], format="csr"), dtype=torch.float64, device=found.matrix.device)
