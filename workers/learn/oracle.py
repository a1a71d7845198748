"""The seam between problems and methods: derivatives of two losses, however they are come by.

After the four callables of Pedregosa's HOAG code and the `HypergradientOracle` of deepinv: an outer loop sees
neither the model nor autograd.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from workers.learn.cost import Cost

MatVec = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class InnerValue:
    """The inner loss, a scalar tensor, and its gradient in `w`, [p]."""

    value: Tensor
    gradient: Tensor


@dataclass(frozen=True)
class OuterValue:
    """The outer loss, a scalar tensor, with its partial gradients in `w` [p] and in `raw` [h]."""

    value: Tensor
    gradient: Tensor
    raw_gradient: Tensor


@dataclass(frozen=True)
class Constants:
    """Proven bounds of the two losses at given hyperparameters, for all `w`; what error bounds are made of.

    `strong_convexity` μ is a lower bound, zero where only convexity is known for all `w`; the others are upper
    bounds: `smoothness` L of ∂_w inner, `hessian_lipschitz` of ∂²_w inner, `cross_lipschitz` of ∂²_{w raw} inner
    and `outer_smoothness` of ∂_w outer. `cross_lipschitz` is infinite where there is none.
    """

    strong_convexity: float
    smoothness: float
    hessian_lipschitz: float
    cross_lipschitz: float
    outer_smoothness: float
    outer_is_convex: bool


@dataclass(frozen=True)
class Convexity:
    """A proven lower bound μ of the inner Hessian at one `w`, and what is left of it around there."""

    strong_convexity: float
    """μ > 0 at `w`."""
    self_concordance: float
    """R with e^{−R r} ∂²_w inner ⪯ ∂²_w inner ⪯ e^{R r} ∂²_w inner between points r apart; infinite if unknown."""
    holds_everywhere: bool
    """Whether μ holds for all `w`, and not only at distance zero."""
    cost: Cost = field(default_factory=Cost)
    """What computing it took."""

    def distance(self, gradient_norm: float) -> float:
        """Return an upper bound of the distance to the minimiser from a `w` where ‖∂_w inner‖ is `gradient_norm`.

        ‖∂_w inner‖/μ, or −log(1 − R ‖∂_w inner‖/μ)/R where μ holds only at `w`; infinite where that has no value.

        Source: integrate the Hessian along the segment to the minimiser, as in Bach (2010), proposition 1.
        """
        ratio, rate = gradient_norm / self.strong_convexity, self.self_concordance
        if self.holds_everywhere:
            return ratio
        return -math.log1p(-rate * ratio) / rate if rate * ratio < 1.0 else math.inf

    def sufficient(self, distance: float) -> float:
        """Return the norm of ∂_w inner that proves a distance to the minimiser: the inverse of `distance`."""
        if self.holds_everywhere:
            return distance * self.strong_convexity
        return -math.expm1(-self.self_concordance * distance) * self.strong_convexity / self.self_concordance

    def within(self, distance: float) -> float:
        """Return the lower bound that holds up to a distance from `w`."""
        if self.holds_everywhere:
            return self.strong_convexity
        return self.strong_convexity * math.exp(-self.self_concordance * distance)


class AbstractMetric(ABC):
    """A change of variables w = S u in which the inner Hessian Sᵀ H S is closer to the identity.

    S Sᵀ = M⁻¹ for an approximation M of H. All three are linear maps, [p] to [p].
    """

    @property
    @abstractmethod
    def cost(self) -> Cost:
        """What computing it took beyond calls of the oracle."""

    @abstractmethod
    def forward(self, u: Tensor) -> Tensor:
        """Return S u."""

    @abstractmethod
    def transpose(self, v: Tensor) -> Tensor:
        """Return Sᵀ v."""

    @abstractmethod
    def inverse(self, w: Tensor) -> Tensor:
        """Return S⁻¹ w."""


class AbstractOracle(ABC):
    """Values and derivatives of inner(w, raw) and outer(w, raw); everything detached from any graph.

    An oracle may remember what it computed at the last `w` it was handed; answers depend on arguments only.
    """

    @abstractmethod
    def inner(self, w: Tensor, raw: Tensor) -> InnerValue:
        """Return the inner loss and ∂_w inner."""

    @abstractmethod
    def outer(self, w: Tensor, raw: Tensor) -> OuterValue:
        """Return the outer loss, ∂_w outer and ∂_raw outer at fixed `w`."""

    @abstractmethod
    def hvp(self, w: Tensor, raw: Tensor) -> MatVec:
        """Return v ↦ ∂²_{ww} inner · v, [p] to [p]; one operator, the same at every call."""

    @abstractmethod
    def cross(self, w: Tensor, raw: Tensor, q: Tensor) -> Tensor:
        """Return (∂²_{w raw} inner)ᵀ q, [h]."""

    @abstractmethod
    def cross_forward(self, w: Tensor, raw: Tensor, direction: Tensor) -> Tensor:
        """Return ∂²_{w raw} inner · direction, [p], for a direction [h] of the hyperparameters."""

    @abstractmethod
    def metric(self, raw: Tensor, w: Tensor | None) -> AbstractMetric | None:
        """Return a metric at `raw` with curvature taken at `w` (None: a bound that holds at every `w`).

        None where the oracle has none to offer.
        """

    @abstractmethod
    def constants(self, raw: Tensor) -> Constants | None:
        """Return proven constants at `raw`, or None where any of them is unknown."""

    @abstractmethod
    def convexity(self, w: Tensor, raw: Tensor) -> Convexity | None:
        """Return a proven bound of the inner Hessian near `w`, at least as good as that of `constants`.

        None where nothing is known, or nothing beyond `constants`.
        """

    @abstractmethod
    def cross_norm(self, w: Tensor, raw: Tensor) -> float | None:
        """Return an upper bound of the spectral norm of ∂²_{w raw} inner, [p, h], at `w`; None where unknown."""
