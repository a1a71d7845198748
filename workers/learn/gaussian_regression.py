"""Linear regression with Gaussian noise and Gaussian priors: everything a posterior of it is asked for."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Final, final

import torch
from torch import Tensor

from workers.learn.errors import LearnError
from workers.learn.problems.design import Design

_LARGEST: Final = 10_000
"""Rows or columns, whichever are fewer, of the matrix that is factorised: 800 MB."""

_BLOCK: Final = 1024


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Φ = Q diag(√e) Wᵀ with Q [n, r] and W [d, r] orthonormal, and what y has to do with it."""

    squares: Tensor
    """e, [r]: squared singular values that are not zero to working precision."""
    scores: Tensor
    """t = Qᵀ y, [r, c]."""
    unreachable: Tensor
    """‖y − Q t‖², a scalar: what no weights explain."""
    to_weights: Callable[[Tensor], Tensor]
    """a ↦ W a, [r, c] to [d, c]."""


@final
@dataclass(frozen=True, eq=False)
class Regression:
    """y = Φ w + noise, for Φ [n, d] and c outputs with the same noise; all float64.

    Where rows are few Φ Φᵀ [n, n] is factorised, and otherwise Φᵀ Φ [d, d]. A sparse Φ is never filled in, not even
    when it is centred.
    """

    design: Design
    y: Tensor
    """[n, c]."""
    shift: Tensor | None
    """[d]: the mean of its columns, if Φ is the design less that; None if it is the design itself."""

    def __post_init__(self) -> None:
        if min(self.rows, self.features) > _LARGEST:
            raise LearnError(
                f"exact evidence factorises a matrix of {min(self.rows, self.features)} rows; at most {_LARGEST} fit: "
                f"take fewer rows or features, or the isotropic posterior with minibatches"
            )

    @property
    def rows(self) -> int:
        """Number of rows, n."""
        return self.design.rows

    @property
    def features(self) -> int:
        """Number of features, d."""
        return self.design.columns

    @property
    def outputs(self) -> int:
        """Number of outputs, c."""
        return self.y.shape[1]

    @property
    def is_wide(self) -> bool:
        """Whether there are fewer rows than features."""
        return self.rows < self.features

    def times(self, u: Tensor) -> Tensor:
        """Return Φ u, [n, m], for u [d, m]."""
        product = self.design.times(u)
        return product if self.shift is None else product - self.shift @ u

    def transposed_times(self, r: Tensor) -> Tensor:
        """Return Φᵀ r, [d, m], for r [n, m]."""
        product = self.design.transposed_times(r)
        return product if self.shift is None else product - torch.outer(self.shift, r.sum(0))

    @cached_property
    def gram(self) -> Tensor:
        """Φᵀ Φ, [d, d]."""
        gram = self.design.gram(torch.ones_like(self.y[:, :1]))[0]
        return gram if self.shift is None else gram - self.rows * torch.outer(self.shift, self.shift)

    @cached_property
    def column_squares(self) -> Tensor:
        """Diagonal of Φᵀ Φ, [d]."""
        squares = self.design.squares_times(torch.ones_like(self.y[:, :1]))[:, 0]
        return squares if self.shift is None else (squares - self.rows * self.shift.square()).clamp_min(0.0)

    @cached_property
    def trace(self) -> Tensor:
        """‖Φ‖², the trace of Φᵀ Φ; a scalar."""
        return self.column_squares.sum()

    @cached_property
    def moments(self) -> Tensor:
        """Φᵀ y, [d, c]."""
        return self.transposed_times(self.y)

    def kernel(self, v: Tensor) -> Tensor:
        """Return Φ diag(v) Φᵀ, [n, n], for v [d]."""
        turned = Design(self.design.transposed, self.design.matrix)
        kernel = turned.gram(v[:, None])[0]
        if self.shift is None:
            return kernel
        weighted = self.shift * v
        edge = self.design.times(weighted[:, None])
        return kernel - edge - edge.T + torch.dot(weighted, self.shift)

    def columns(self, chosen: Tensor) -> Tensor:
        """Return some columns of Φ, dense [n, m], for indices [m]."""
        if not self.design.is_sparse:
            return self.design.matrix[:, chosen]
        unit = torch.zeros(self.features, chosen.numel(), dtype=self.y.dtype, device=self.y.device)
        unit[chosen, torch.arange(chosen.numel(), device=chosen.device)] = 1.0
        return self.times(unit)

    @cached_property
    def spectrum(self) -> Spectrum:
        """One eigendecomposition, after which a common prior variance costs O(r) to try."""
        small = self.kernel(torch.ones_like(self.moments[:, 0])) if self.is_wide else self.gram
        e, vectors = torch.linalg.eigh(small)
        kept = e > e[-1].clamp_min(0.0) * max(self.rows, self.features) * torch.finfo(e.dtype).eps
        e, vectors = e[kept], vectors[:, kept]
        roots = e.sqrt()[:, None]
        if self.is_wide:
            scores = vectors.T @ self.y
            rest = self.y - vectors @ scores
            return Spectrum(e, scores, rest.square().sum(), lambda a: self.transposed_times(vectors @ (a / roots)))
        scores = (vectors.T @ self.moments) / roots
        # Not ‖y‖² − ‖t‖², which has no digits left where the fit is close.
        rest = self.y - self.times(vectors @ (scores / roots))
        return Spectrum(e, scores, rest.square().sum(), lambda a: vectors @ a)


@dataclass(frozen=True, eq=False)
class Priors:
    """w_j ~ N(0, v_{g(j)}), the same for all outputs."""

    of: Tensor
    """g, [d]: every feature has a prior."""
    size: int

    @staticmethod
    def common(features: int) -> "Priors":
        """Return one variance for all."""
        return Priors(torch.zeros(features, dtype=torch.long), 1)

    @cached_property
    def counts(self) -> Tensor:
        """Features of each group, [g]."""
        return self.total(torch.ones(self.of.shape[0], dtype=torch.float64, device=self.of.device))

    def total(self, values: Tensor) -> Tensor:
        """Return the sums over groups, [g], of values [d]."""
        return torch.zeros(self.size, dtype=values.dtype, device=values.device).index_add_(0, self.of, values)


@dataclass(frozen=True, eq=False)
class Fit:
    """The posterior of the weights, N(m, P⁻¹) for each output, P = κ Φᵀ Φ / s² + diag(1/v), and its statistics."""

    residual: Tensor
    """‖y − Φ m‖², a scalar."""
    squares: Tensor
    """‖m‖² of each group over all outputs, [g]."""
    determined: Tensor
    """γ of each group, [g]: the effective number of its features that the data determine, d_g − tr_g(P⁻¹)/v_g."""
    logdet: Tensor
    """log det P + Σ_j log v_j, a scalar ≥ 0."""
    mean: Callable[[], Tensor]
    """Returns m, [d, c]."""


def fit(regression: Regression, priors: Priors, v: Tensor, noise: Tensor, *, kappa: float = 1.0) -> Fit:
    """Return the posterior at prior variances v [g] and noise variance s², with the data counted κ times.

    One variance for all costs O(min(n, d)), after one eigendecomposition. Several take a Cholesky decomposition of
    I + √V G √V κ/s² or of I + Φ V Φᵀ κ/s², whichever is smaller: its eigenvalues are at least one, so that neither a
    variance of zero nor a noise that is nearly zero does harm. Nothing is inverted.

    Source: Bishop (2006), Pattern Recognition and Machine Learning, 3.3 and 3.5.
    """
    beta = kappa / noise
    if priors.size == 1:
        return _common(regression, v, beta)
    return _wide(regression, priors, v, beta) if regression.is_wide else _tall(regression, priors, v, beta)


def _common(regression: Regression, v: Tensor, beta: Tensor) -> Fit:
    spectrum = regression.spectrum
    gain = beta * v * spectrum.squares  # [r]
    left = 1.0 / (1.0 + gain)
    in_basis = (spectrum.squares.sqrt() * (beta * v) * left)[:, None] * spectrum.scores
    return Fit(
        residual=(left[:, None] * spectrum.scores).square().sum() + spectrum.unreachable,
        squares=in_basis.square().sum().reshape(1),
        determined=(gain * left).sum().reshape(1),
        logdet=torch.log1p(gain).sum(),
        mean=lambda: spectrum.to_weights(in_basis),
    )


def _tall(regression: Regression, priors: Priors, v: Tensor, beta: Tensor) -> Fit:
    of_feature = v[priors.of]
    kept = torch.nonzero(of_feature > 0.0).squeeze(1)
    scale = of_feature[kept].sqrt()
    matrix = beta * scale[:, None] * regression.gram[kept][:, kept] * scale
    matrix.diagonal().add_(1.0)
    factor = torch.linalg.cholesky(matrix)
    m = torch.zeros_like(regression.moments)
    m[kept] = scale[:, None] * torch.cholesky_solve(beta * scale[:, None] * regression.moments[kept], factor)
    half = torch.linalg.solve_triangular(factor, torch.eye(kept.numel()).to(factor), upper=False)
    determined = torch.zeros_like(of_feature)
    determined[kept] = 1.0 - half.square().sum(0)
    return _assembled(regression, priors, m, determined, factor)


def _wide(regression: Regression, priors: Priors, v: Tensor, beta: Tensor) -> Fit:
    of_feature = v[priors.of]
    matrix = beta * regression.kernel(of_feature)
    matrix.diagonal().add_(1.0)
    factor = torch.linalg.cholesky(matrix)
    m = (beta * of_feature)[:, None] * regression.transposed_times(torch.cholesky_solve(regression.y, factor))
    determined = torch.zeros_like(of_feature)
    for chosen in torch.split(torch.nonzero(of_feature > 0.0).squeeze(1), _BLOCK):
        half = torch.linalg.solve_triangular(factor, regression.columns(chosen), upper=False)
        determined[chosen] = beta * of_feature[chosen] * half.square().sum(0)
    return _assembled(regression, priors, m, determined, factor)


def _assembled(regression: Regression, priors: Priors, m: Tensor, determined: Tensor, factor: Tensor) -> Fit:
    return Fit(
        residual=(regression.y - regression.times(m)).square().sum(),
        squares=priors.total(m.square().sum(1)),
        determined=priors.total(determined),
        logdet=2.0 * factor.diagonal().log().sum(),
        mean=lambda: m,
    )
