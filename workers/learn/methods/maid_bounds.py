"""What is proven of a value and of a hypergradient at weights that are not quite the minimiser."""

import math
from dataclasses import dataclass

from workers.learn.oracle import Constants, Convexity


@dataclass(frozen=True)
class Sandwich:
    """Bounds of the outer objective at some hyperparameters, from the outer loss at inexact weights."""

    lower: float
    upper: float


def sandwich(value: float, gradient_norm: float, distance: float, *, smoothness: float, convex: bool) -> Sandwich:
    """Return U₋ ≤ outer(w*) ≤ U₊ where ‖w − w*‖ ≤ r.

    U₊ = g + ‖∂g‖ r + ½ L_g r²,   U₋ = g − ‖∂g‖ r − ½ L_g r², and without the last term where g is convex in w.

    Args:
        value: g, the outer loss at w.
        gradient_norm: ‖∂_w outer‖ there.
        distance: r.
        smoothness: L_g, an upper bound of the curvature of the outer loss in w.
        convex: whether that is convex.

    Source: Salehi et al. (2023), lemma 3.5 and remark 3.6.
    """
    first, second = gradient_norm * distance, 0.5 * smoothness * distance**2
    return Sandwich(value - first - (0.0 if convex else second), value + first + second)


@dataclass(frozen=True)
class ErrorBound:
    """A bound ω of the error of a hypergradient, by where the error comes from."""

    inner: float
    """Of the distance of the weights from the minimiser: nearly proportional to it."""
    linear: float
    """Of the residual of the adjoint equation: proportional to it."""

    @property
    def total(self) -> float:
        """ω."""
        return self.inner + self.linear


def error_bound(
    constants: Constants,
    convexity: Convexity,
    *,
    distance: float,
    residual: float,
    cross_norm: float,
    outer_gradient_norm: float,
    adjoint_norm: float,
) -> ErrorBound:
    """Return ω with ‖z − ∇f‖ ≤ ω for z = ∂_raw outer − Jᵀ q, taken at a w with ‖w − w*‖ ≤ r and ‖H q − ∂g‖ ≤ ρ.

    With μ at w and μ* at w*, the error is that of q, ‖J‖ ρ/μ, and of w in three parts (theorem 2.1):

    - of H⁻¹:  ‖J‖ · ‖(H⁻¹ − H*⁻¹) ∂g‖ ≤ ‖J‖ Δ, Δ the smaller of L_H r a/μ* and (e^{R r} − 1) √(a ‖∂g‖/μ);
    - of J:    L_J r · ‖H*⁻¹ ∂g‖ ≤ L_J r (a + Δ);
    - of ∂g:   (‖J‖ + L_J r) · L_g r/μ*,

    where a ≥ ‖H⁻¹ ∂g‖ is the smaller of ‖∂g‖/μ and ‖q‖ + ρ/μ. The theorem has ‖∂g‖/μ for a, L_H r ‖∂g‖/μ² for Δ
    and μ for μ*: where μ is a pessimistic bound, q itself and self-concordance are sharper by orders of magnitude.
    The second form of Δ: H*⁻¹ − H⁻¹ lies between multiples of H⁻¹, −(1 − e^{−R r}) and e^{R r} − 1, hence
    ‖(H*⁻¹ − H⁻¹) ∂g‖ ≤ (e^{R r} − 1) ‖H^{−1/2}‖ ‖H^{−1/2} ∂g‖.

    The outer loss must not depend on raw by itself: its ∂_raw is taken to be zero.

    Source: Salehi et al. (2023), theorem 2.1; Bach (2010) for self-concordance.
    """
    mu, there = convexity.strong_convexity, convexity.within(distance)
    if not (math.isfinite(distance) and there > 0.0):
        return ErrorBound(math.inf, math.inf)
    steepness, r = outer_gradient_norm, distance
    a = min(steepness / mu, adjoint_norm + residual / mu)
    delta = constants.hessian_lipschitz * r * a / there
    exponent = convexity.self_concordance * r
    if exponent < 1.0:
        delta = min(delta, math.expm1(exponent) * math.sqrt(a * steepness / mu))
    of_cross = constants.cross_lipschitz * r
    inner = (
        cross_norm * delta + of_cross * (a + delta) + (cross_norm + of_cross) * constants.outer_smoothness * r / there
    )
    return ErrorBound(inner, cross_norm * residual / mu)
