"""A smooth stand-in for the absolute value, with the derivatives that learning through it takes."""

import math
from functools import cached_property
from typing import final

from torch import Tensor

THIRD_DERIVATIVE = 48.0 / (25.0 * math.sqrt(5.0))
"""max |φ‴| · ν²: φ‴ = −3 ν² t / (t² + ν²)^{5/2} is largest at t = ν / 2."""


@final
class Modulus:
    """φ(t) = √(t² + ν²) − ν at arrays of t, elementwise.

    Zero at zero, so that the penalty of a flat image is zero whatever ν, and computed without cancellation.
    |φ′| ≤ 1, φ″ ≤ 1/ν, |φ‴| ≤ 0.859/ν² and |∂φ″/∂ν| ≤ 1/ν².
    """

    def __init__(self, t: Tensor, nu: Tensor) -> None:
        self._t = t
        self._nu = nu
        self._root = (t.square() + nu.square()).sqrt()

    @cached_property
    def value(self) -> Tensor:
        """φ, of the shape of t."""
        return self._t.square() / (self._root + self._nu)

    @cached_property
    def slope(self) -> Tensor:
        """φ′ = t / √(t² + ν²)."""
        return self._t / self._root

    @cached_property
    def curvature(self) -> Tensor:
        """φ″ = ν² / (t² + ν²)^{3/2}."""
        return (self._nu / self._root).square() / self._root

    @cached_property
    def slope_by_nu(self) -> Tensor:
        """∂φ′/∂ν = −t ν / (t² + ν²)^{3/2}."""
        return -self.slope * self._nu / self._root.square()
