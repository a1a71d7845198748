"""Whether an answer may be trusted: checks that share nothing with how it was found but the inner solver."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from workers.learn.hyperparameters import HyperparameterSpace
from workers.learn.inner.base import AbstractInnerSolver
from workers.learn.oracle import AbstractOracle
from workers.learn.outer.box import blocked, projected_gradient

DEFAULT_STEPS = (1e-2, 1e-3, 1e-4, 1e-5)


@dataclass(frozen=True)
class Difference:
    """A directional derivative of raw ↦ outer(w*(raw), raw) by central differences."""

    step: float
    derivative: float
    inner_converged: bool


@dataclass(frozen=True)
class DirectionalCheck:
    """A hypergradient beside central differences of re-solved inner problems."""

    predicted: float
    """⟨hypergradient, direction⟩."""
    differences: tuple[Difference, ...]
    best: Difference
    """The one that agrees best: long steps err by curvature, short ones by rounding."""
    relative_error: float
    """|difference − predicted| / max(|difference|, |predicted|) of the best."""
    absolute_error: float


@dataclass(frozen=True)
class Neighbour:
    """The outer objective, re-solved with one hyperparameter moved."""

    name: str
    factor: float
    """Of the natural value; less than asked for where the box ends."""
    value: float
    inner_converged: bool


@dataclass(frozen=True)
class Neighbourhood:
    """The outer objective around a point, along single hyperparameters."""

    value: float
    """Re-solved at the point itself."""
    neighbours: tuple[Neighbour, ...]
    projected_norm: float
    """Largest slope per unit of raw that the box leaves, from the hypergradient that was given."""
    at_low: tuple[str, ...]
    """Scalars that lie on their lower bound."""
    at_high: tuple[str, ...]
    blocked: int
    """Scalars that a bound keeps from going on down."""

    @property
    def deepest(self) -> float:
        """How far the lowest neighbour lies below the point, relative to its value; negative if none does."""
        lowest = min((n.value for n in self.neighbours), default=math.inf)
        return (self.value - lowest) / max(abs(self.value), 1e-300)


def random_direction(raw: Tensor, *, seed: int) -> Tensor:
    """Return a direction of unit length in the space of raw hyperparameters, [h], the same on every device."""
    generator = torch.Generator().manual_seed(seed)
    direction = torch.randn(raw.shape, generator=generator, dtype=torch.float64)
    unit: Tensor = direction / torch.linalg.vector_norm(direction)
    return unit.to(dtype=raw.dtype, device=raw.device)


def directional_check(
    oracle: AbstractOracle,
    inner: AbstractInnerSolver,
    raw: Tensor,
    w: Tensor,
    gradient: Tensor,
    direction: Tensor,
    *,
    tol: float,
    steps: Sequence[float] = DEFAULT_STEPS,
) -> DirectionalCheck:
    """Compare ⟨gradient, direction⟩ with central differences of re-solved inner problems.

    Args:
        oracle: derivatives of the two losses; only values of the outer one are used.
        inner: solver of the inner problem.
        raw: where, [h].
        w: start of all inner solves, [p].
        gradient: the hypergradient at `raw`, [h].
        direction: of unit length, [h].
        tol: absolute tolerance of the inner solves: far below that of the run.
        steps: lengths to try.
    """
    predicted = float(torch.dot(gradient, direction))
    differences = []
    for step in steps:
        ahead = _resolve(oracle, inner, raw + step * direction, w, tol)
        behind = _resolve(oracle, inner, raw - step * direction, w, tol)
        slope = (ahead[0] - behind[0]) / (2.0 * step)
        differences.append(Difference(step, slope, ahead[1] and behind[1]))
    best = min(
        differences,
        key=lambda d: abs(d.derivative - predicted) if math.isfinite(d.derivative) else math.inf,
    )
    error = abs(best.derivative - predicted)
    size = max(abs(best.derivative), abs(predicted))
    return DirectionalCheck(predicted, tuple(differences), best, error / size if size > 0 else 0.0, error)


def neighbours(
    oracle: AbstractOracle,
    inner: AbstractInnerSolver,
    space: HyperparameterSpace,
    raw: Tensor,
    w: Tensor,
    gradient: Tensor,
    *,
    tol: float,
    factors: Sequence[float] = (0.5, 2.0),
    most: int = 5,
) -> Neighbourhood:
    """Re-solve at the point and with each of up to `most` scalars multiplied by each factor, inside the box.

    With more scalars than `most`, those with the largest slope that the box leaves are taken: where a mistake
    would show first.

    Args:
        oracle: derivatives of the two losses; only values of the outer one are used.
        inner: solver of the inner problem.
        space: names, transforms and bounds.
        raw: the point, [h].
        w: start of all inner solves, [p].
        gradient: the hypergradient at `raw`, [h].
        tol: absolute tolerance of the inner solves.
        factors: of natural values.
        most: number of scalars to vary.
    """
    low, high = space.bounds(raw.dtype, raw.device)
    slopes = projected_gradient(raw, gradient, low, high).abs()
    held = blocked(raw, gradient, low, high)
    names = space.scalar_names()
    chosen = torch.argsort(slopes, descending=True, stable=True)[:most].tolist()
    value, _ = _resolve(oracle, inner, raw, w, tol)
    found = []
    natural = torch.cat([part.reshape(-1) for part in space.constrain(raw).values()])
    for index in sorted(chosen):
        for factor in factors:
            changed = natural.clone()
            changed[index] *= factor
            moved = space.clamp(_raw_of(space, changed))
            if bool(moved[index] == raw[index]):
                continue
            ratio = float(torch.cat([p.reshape(-1) for p in space.constrain(moved).values()])[index] / natural[index])
            ratio = factor if math.isclose(ratio, factor, rel_tol=1e-9) else ratio  # the box was not in the way
            there, converged = _resolve(oracle, inner, moved, w, tol)
            found.append(Neighbour(names[index], ratio, there, converged))
    return Neighbourhood(
        value=value,
        neighbours=tuple(found),
        projected_norm=float(slopes.max()) if slopes.numel() else 0.0,
        at_low=tuple(names[i] for i in torch.nonzero(raw <= low).flatten().tolist()),
        at_high=tuple(names[i] for i in torch.nonzero(raw >= high).flatten().tolist()),
        blocked=int(held.sum()),
    )


def _resolve(
    oracle: AbstractOracle, inner: AbstractInnerSolver, raw: Tensor, w: Tensor, tol: float
) -> tuple[float, bool]:
    solution = inner.solve(oracle, raw, w, tol=tol)
    return float(oracle.outer(solution.w, raw).value), solution.converged


def _raw_of(space: HyperparameterSpace, natural: Tensor) -> Tensor:
    parts = torch.split(natural, [block.size for block in space.blocks])
    named = {block.name: part.reshape(block.shape) for block, part in zip(space.blocks, parts, strict=True)}
    return space.unconstrain(named)
