"""Derivatives of any problem by reverse mode, twice."""

from typing import final

import torch
from torch import Tensor
from torch.autograd import grad

from workers.learn.oracle import AbstractMetric, AbstractOracle, Constants, Convexity, InnerValue, MatVec, OuterValue
from workers.learn.problem import AbstractBilevelProblem


@final
class AutogradOracle(AbstractOracle):
    """Serves a problem whose losses are twice differentiable by torch.

    Products with one Hessian share one graph: the same dropout masks, and memory for one backward pass.
    """

    def __init__(self, problem: AbstractBilevelProblem) -> None:
        self._problem = problem

    def inner(self, w: Tensor, raw: Tensor) -> InnerValue:
        """See `AbstractOracle.inner`."""
        with torch.enable_grad():
            at = w.detach().requires_grad_()
            value = self._problem.inner(at, raw.detach())
            (gradient,) = grad(value, at)
        return InnerValue(value.detach(), gradient)

    def outer(self, w: Tensor, raw: Tensor) -> OuterValue:
        """See `AbstractOracle.outer`."""
        with torch.enable_grad():
            at, at_raw = w.detach().requires_grad_(), raw.detach().requires_grad_()
            value = self._problem.outer(at, at_raw)
            # Neither argument need appear: data-cleaning losses have no direct term, noise-only ones no w.
            gradient, raw_gradient = grad(value, (at, at_raw), allow_unused=True, materialize_grads=True)
        return OuterValue(value.detach(), gradient, raw_gradient)

    def hvp(self, w: Tensor, raw: Tensor) -> MatVec:
        """See `AbstractOracle.hvp`."""
        with torch.enable_grad():
            at = w.detach().requires_grad_()
            (gradient,) = grad(self._problem.inner(at, raw.detach()), at, create_graph=True)

        def product(v: Tensor) -> Tensor:
            return grad(gradient, at, v, retain_graph=True, allow_unused=True, materialize_grads=True)[0]

        return product

    def cross(self, w: Tensor, raw: Tensor, q: Tensor) -> Tensor:
        """See `AbstractOracle.cross`."""
        with torch.enable_grad():
            at, at_raw = w.detach().requires_grad_(), raw.detach().requires_grad_()
            (gradient,) = grad(self._problem.inner(at, at_raw), at, create_graph=True)
            return grad(gradient, at_raw, q, allow_unused=True, materialize_grads=True)[0]

    def cross_forward(self, w: Tensor, raw: Tensor, direction: Tensor) -> Tensor:
        """See `AbstractOracle.cross_forward`."""
        with torch.enable_grad():
            at, at_raw = w.detach().requires_grad_(), raw.detach().requires_grad_()
            (gradient,) = grad(self._problem.inner(at, at_raw), at, create_graph=True)
            # Jᵀ v is linear in v, and the derivative of ⟨Jᵀ v, direction⟩ in v is J · direction.
            v = torch.zeros_like(at).requires_grad_()
            (transposed,) = grad(gradient, at_raw, v, create_graph=True, allow_unused=True, materialize_grads=True)
            return grad(transposed, v, direction, allow_unused=True, materialize_grads=True)[0]

    def metric(self, raw: Tensor, w: Tensor | None) -> AbstractMetric | None:  # noqa: ARG002 (none is known)
        """See `AbstractOracle.metric`."""
        return None

    def constants(self, raw: Tensor) -> Constants | None:  # noqa: ARG002 (none is known)
        """See `AbstractOracle.constants`."""
        return None

    def convexity(self, w: Tensor, raw: Tensor) -> Convexity | None:  # noqa: ARG002 (none is known)
        """See `AbstractOracle.convexity`."""
        return None

    def cross_norm(self, w: Tensor, raw: Tensor) -> float | None:  # noqa: ARG002 (none is known)
        """See `AbstractOracle.cross_norm`."""
        return None
