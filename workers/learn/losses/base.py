"""Losses of a model that is linear in its weights, with the derivatives in its outputs in closed form."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class LossAt:
    """A loss at given outputs z [n, k, c]: k models side by side, c outputs each."""

    value: Tensor
    """ℓ of each example under each model, [n, k]."""
    slope: Tensor
    """∂ℓ/∂z, [n, k, c]."""
    curvature: Callable[[Tensor], Tensor]
    """v ↦ ∂²ℓ/∂z² · v, [n, k, c] to [n, k, c]."""
    curvature_diagonal: Callable[[], Tensor]
    """Diagonal of ∂²ℓ/∂z², [n, k, c]."""


class AbstractLoss(ABC):
    """ℓ(z, y), convex in the outputs z; one number for each example, averaged by whoever calls."""

    @property
    @abstractmethod
    def curvature_bound(self) -> float:
        """Upper bound of the eigenvalues of ∂²ℓ/∂z²."""

    @property
    @abstractmethod
    def curvature_lipschitz(self) -> float:
        """Lipschitz constant of z ↦ ∂²ℓ/∂z² in the Euclidean and the spectral norm."""

    @property
    @abstractmethod
    def self_concordance(self) -> float:
        """Return c with ∂²ℓ/∂z² at z + u ⪰ e^{−c ‖u‖} ∂²ℓ/∂z² at z; zero if that is constant (Bach 2010)."""

    @property
    @abstractmethod
    def has_shift(self) -> bool:
        """Whether ℓ stays the same when one number is added to all outputs, as for softmax."""

    @abstractmethod
    def value(self, z: Tensor, y: Tensor) -> Tensor:
        """Return ℓ, [n, k], differentiable in z [n, k, c]; y is [n] or [n, c]."""

    @abstractmethod
    def at(self, z: Tensor, y: Tensor) -> LossAt:
        """Return ℓ with its derivatives in z, all in closed form."""

    @abstractmethod
    def metrics(self, z: Tensor, y: Tensor, weights: Tensor) -> dict[str, float]:
        """Return metrics of the outputs, averaged over models.

        Args:
            z: outputs, [n, k, c].
            y: targets, [n] or [n, c].
            weights: of each example in each model's average, [n, k]; each column sums to one.
        """


def average(values: Tensor, weights: Tensor) -> float:
    """Return the mean over models of weighted averages; `values` and `weights` are [n, k]."""
    return float((values * weights).sum()) / weights.shape[1]
