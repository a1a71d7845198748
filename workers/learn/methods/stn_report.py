"""What a self-tuning network tells of itself beside its losses."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from workers.learn.hyperparameters import HyperparameterSpace
from workers.learn.transforms import Whole

_QUANTILES: Final = 64


@dataclass(frozen=True)
class ResponseCurve:
    """The predicted validation loss along one hyperparameter."""

    name: str
    values: tuple[float, ...]
    """Natural values, increasing; those of a whole number repeat."""
    losses: tuple[float, ...]


def along(
    space: HyperparameterSpace,
    raw: Tensor,
    coordinate: int,
    reach: Tensor,
    low: Tensor,
    high: Tensor,
    *,
    points: int,
    loss: Callable[[Tensor], float],
) -> ResponseCurve:
    """Return `loss` where one coordinate of raw [h] goes from −reach to +reach around it, inside the box."""
    values, losses = [], []
    for shift in torch.linspace(-1.0, 1.0, points, dtype=raw.dtype, device=raw.device):
        moved = raw.clone()
        moved[coordinate] = (raw[coordinate] + shift * reach).clamp(low[coordinate], high[coordinate])
        natural = torch.cat([value.reshape(-1) for value in space.constrain(moved).values()])
        values.append(float(natural[coordinate]))
        losses.append(loss(moved))
    return ResponseCurve(space.scalar_names()[coordinate], tuple(values), tuple(losses))


def expected_wholes(space: HyperparameterSpace, raw: Tensor, sigma: Tensor) -> dict[str, float]:
    """Return what whole numbers are on average under perturbation, which moves where their floor stands still."""
    places = (torch.arange(_QUANTILES, dtype=raw.dtype, device=raw.device) + 0.5) / _QUANTILES
    noise = torch.special.ndtri(places)
    found: dict[str, float] = {}
    at = 0
    for block in space.blocks:
        if isinstance(block.transform, Whole):
            values = block.transform(raw[at : at + block.size, None] + sigma[at : at + block.size, None] * noise)
            found[f"{block.name}_expected"] = float(values.mean())
        at += block.size
    return found


def at_bounds(raw: Tensor, low: Tensor, high: Tensor) -> float:
    """Return how many coordinates lie on the box."""
    return float(((raw <= low) | (raw >= high)).sum())
