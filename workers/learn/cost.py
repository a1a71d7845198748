"""What a computation spent, in units that no machine and no library changes."""

from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True)
class Cost:
    """Calls of a problem's oracle, over all data of the part concerned.

    Work that is no call (a Gram matrix for a preconditioner) is entered as the number of Hessian-vector products
    of the same floating-point cost.
    """

    inner_iterations: int = 0
    """Steps of inner solvers."""
    gradients: int = 0
    """Losses with gradients in `w`, inner and outer."""
    hessian_vector_products: int = 0
    """Products with ∂²inner/∂w²."""
    cross_products: int = 0
    """Products with ∂²inner/∂w∂raw or its transpose."""

    @property
    def gradient_equivalents(self) -> int:
        """Gradients + 2 · Hessian-vector products + 2 · cross products."""
        return self.gradients + 2 * self.hessian_vector_products + 2 * self.cross_products

    def __add__(self, other: Self) -> "Cost":
        return Cost(
            self.inner_iterations + other.inner_iterations,
            self.gradients + other.gradients,
            self.hessian_vector_products + other.hessian_vector_products,
            self.cross_products + other.cross_products,
        )
