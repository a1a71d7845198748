"""A bilevel problem with a known solution, for measuring methods by it."""

from dataclasses import dataclass
from functools import cached_property
from typing import final

import torch
from torch import Tensor

from workers.learn.cost import Cost
from workers.learn.errors import LearnError
from workers.learn.hyperparameters import Hyper, Hyperparameter, HyperparameterSpace
from workers.learn.oracle import (
    AbstractMetric,
    AbstractOracle,
    Constants,
    Convexity,
    InnerValue,
    MatVec,
    OuterValue,
)
from workers.learn.problem import AbstractBilevelProblem, Part
from workers.learn.transforms import Identity

NAME = "theta"


@final
@dataclass(frozen=True, eq=False)
class QuadraticProblem(AbstractBilevelProblem):
    """inner(w) = ½ wᵀ H w − wᵀ (B θ + c),   outer(w) = ½ ‖D w − e‖².

    So w*(θ) = H⁻¹ (B θ + c), and the outer objective is a quadratic in θ whose gradient and minimiser are known.
    All but ∂²_{w θ} inner = −B is as in the least-squares problem of Salehi et al. (2023), section 4.1.
    """

    H: Tensor
    """[p, p], symmetric positive definite."""
    B: Tensor
    """[p, h]."""
    c: Tensor
    """[p]."""
    D: Tensor
    """[r, p]."""
    e: Tensor
    """[r]."""
    initial: Tensor
    """θ at the start, [h]."""
    low: float | None = None
    high: float | None = None

    @staticmethod
    def random(
        seed: int, *, p: int, h: int, condition: float, low: float | None = None, high: float | None = None
    ) -> "QuadraticProblem":
        """Return a problem whose inner Hessian has the given condition number and λ_max = 1; float64."""
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        basis, _ = torch.linalg.qr(normal(p, p))
        values = torch.logspace(-float(torch.tensor(condition).log10()), 0.0, p, dtype=torch.float64)
        H = (basis * values) @ basis.T
        return QuadraticProblem(
            0.5 * (H + H.T),
            normal(p, h) / p**0.5,
            normal(p) / p**0.5,
            normal(p, p) / p**0.5,
            normal(p) / p**0.5,
            torch.zeros(h, dtype=torch.float64),
            low,
            high,
        )

    @property
    def space(self) -> HyperparameterSpace:
        """θ, in an optional box."""
        block = Hyperparameter(NAME, self.initial, tuple(self.initial.shape), Identity(), self.low, self.high)
        return HyperparameterSpace((block,))

    def initial_weights(self, seed: int) -> Tensor:  # noqa: ARG002 (the inner problem is convex)
        """Return zeros, [p]."""
        return torch.zeros_like(self.c)

    def inner_loss(self, w: Tensor, hyper: Hyper) -> Tensor:
        """See `AbstractBilevelProblem.inner_loss`."""
        return 0.5 * torch.dot(w, self.H @ w) - torch.dot(w, self.B @ hyper[NAME] + self.c)

    def outer_loss(self, w: Tensor, hyper: Hyper) -> Tensor:  # noqa: ARG002 (θ does not occur)
        """See `AbstractBilevelProblem.outer_loss`."""
        return 0.5 * (self.D @ w - self.e).square().sum()

    def oracle(self) -> AbstractOracle:
        """Return the closed forms, with constants that are exact but for rounding."""
        return self._oracle

    @cached_property
    def _oracle(self) -> "_QuadraticOracle":
        return _QuadraticOracle(self)

    def parts(self) -> frozenset[Part]:
        """Return train and valid: the two losses."""
        return frozenset({Part.TRAIN, Part.VALID})

    def evaluate(self, w: Tensor, part: Part) -> dict[str, float]:
        """Return the outer loss for VALID and the part of the inner loss without θ for TRAIN."""
        match part:
            case Part.TRAIN:
                return {"loss": float(0.5 * torch.dot(w, self.H @ w) - torch.dot(w, self.c))}
            case Part.VALID:
                return {"loss": float(self.outer_loss(w, {}))}
            case Part.TEST:
                raise LearnError("a quadratic problem has no test part")

    def named_weights(self, w: Tensor) -> dict[str, Tensor]:
        """Return `w`."""
        return {"w": w}

    def solution(self, raw: Tensor) -> Tensor:
        """Return w*(θ), [p]."""
        w: Tensor = torch.linalg.solve(self.H, self.B @ raw + self.c)
        return w

    def value(self, raw: Tensor) -> float:
        """Return the outer objective at θ, exactly."""
        return float(self.outer_loss(self.solution(raw), {}))

    def gradient(self, raw: Tensor) -> Tensor:
        """Return its gradient, [h], exactly: Bᵀ H⁻¹ Dᵀ (D w* − e)."""
        outer = self.D.T @ (self.D @ self.solution(raw) - self.e)
        gradient: Tensor = self.B.T @ torch.linalg.solve(self.H, outer)
        return gradient

    def minimiser(self) -> Tensor:
        """Return the θ that minimises the outer objective without a box, [h]."""
        response = self.D @ torch.linalg.solve(self.H, self.B)
        constant = self.D @ torch.linalg.solve(self.H, self.c) - self.e
        found: Tensor = torch.linalg.lstsq(response, constant[:, None]).solution[:, 0]
        return -found


@final
class _QuadraticOracle(AbstractOracle):
    def __init__(self, problem: QuadraticProblem) -> None:
        self._problem = problem
        values = torch.linalg.eigvalsh(problem.H)
        margin = 1e-12 * float(values[-1])
        self._constants = Constants(
            strong_convexity=float(values[0]) - margin,
            smoothness=float(values[-1]) + margin,
            hessian_lipschitz=0.0,
            cross_lipschitz=0.0,
            outer_smoothness=float(torch.linalg.matrix_norm(problem.D, 2)) ** 2 * (1.0 + 1e-12),
            outer_is_convex=True,
        )
        self._cross_norm = float(torch.linalg.matrix_norm(problem.B, 2)) * (1.0 + 1e-12)

    def inner(self, w: Tensor, raw: Tensor) -> InnerValue:
        product, pull = self._problem.H @ w, self._problem.B @ raw + self._problem.c
        return InnerValue(torch.dot(w, 0.5 * product - pull), product - pull)

    def outer(self, w: Tensor, raw: Tensor) -> OuterValue:
        residual = self._problem.D @ w - self._problem.e
        return OuterValue(0.5 * residual.square().sum(), self._problem.D.T @ residual, torch.zeros_like(raw))

    def hvp(self, w: Tensor, raw: Tensor) -> MatVec:  # noqa: ARG002 (constant)
        return lambda v: self._problem.H @ v

    def cross(self, w: Tensor, raw: Tensor, q: Tensor) -> Tensor:  # noqa: ARG002 (constant)
        return -(self._problem.B.T @ q)

    def cross_forward(self, w: Tensor, raw: Tensor, direction: Tensor) -> Tensor:  # noqa: ARG002 (constant)
        return -(self._problem.B @ direction)

    def metric(self, raw: Tensor, w: Tensor | None) -> AbstractMetric | None:  # noqa: ARG002 (none is offered)
        return None

    def constants(self, raw: Tensor) -> Constants | None:  # noqa: ARG002 (they are the same everywhere)
        return self._constants

    def convexity(self, w: Tensor, raw: Tensor) -> Convexity | None:  # noqa: ARG002 (constant)
        return Convexity(self._constants.strong_convexity, 0.0, holds_everywhere=True, cost=Cost())

    def cross_norm(self, w: Tensor, raw: Tensor) -> float | None:  # noqa: ARG002 (constant)
        return self._cross_norm
