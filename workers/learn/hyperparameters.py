"""Named hyperparameters in their own domain, seen by methods as one unconstrained vector."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from workers.learn.errors import LearnError
from workers.learn.transforms import AbstractTransform, Exp

Hyper = Mapping[str, Tensor]
"""Natural values by name, each of its hyperparameter's shape."""


@dataclass(frozen=True, eq=False)
class Hyperparameter:
    """One block of hyperparameters, the domain it lives in and the box it is kept in.

    `initial`, `low` and `high` are natural values (a strength λ, not log λ). `initial` is one number for all, or a
    tensor of `shape`.
    """

    name: str
    initial: float | Tensor
    shape: tuple[int, ...] = ()
    transform: AbstractTransform = field(default_factory=Exp)
    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        initial = torch.as_tensor(self.initial, dtype=torch.float64)
        if initial.ndim > 0 and tuple(initial.shape) != self.shape:
            raise LearnError(f"{self.name}: initial values have shape {tuple(initial.shape)}; expected {self.shape}")
        low, high = self.raw_bounds
        raw = self.transform.inverse(initial)
        if not bool(torch.isfinite(raw).all()) or bool((raw < low).any()) or bool((raw > high).any()):
            raise LearnError(
                f"{self.name}: the initial value must lie inside its domain and between {self.low} and {self.high}"
            )

    @property
    def size(self) -> int:
        """Number of scalars."""
        return math.prod(self.shape)

    @property
    def raw_bounds(self) -> tuple[float, float]:
        """Box of each raw scalar; infinite where there is no bound."""
        return self._raw(self.low, -math.inf), self._raw(self.high, math.inf)

    def _raw(self, bound: float | None, absent: float) -> float:
        if bound is None:
            return absent
        raw = float(self.transform.inverse(torch.tensor(bound, dtype=torch.float64)))
        if math.isnan(raw):
            raise LearnError(f"{self.name}: the bound {bound} lies outside its domain")
        return raw


@dataclass(frozen=True, eq=False)
class HyperparameterSpace:
    """The concatenation of blocks: `raw` is [h], with h the sum of their sizes."""

    blocks: tuple[Hyperparameter, ...]

    def __post_init__(self) -> None:
        if len(set(self.names)) != len(self.names):
            raise LearnError(f"hyperparameter names must differ; found {list(self.names)}")

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the blocks, in the order of `raw`."""
        return tuple(block.name for block in self.blocks)

    @property
    def size(self) -> int:
        """h, the number of raw scalars."""
        return sum(block.size for block in self.blocks)

    def scalar_names(self) -> tuple[str, ...]:
        """Return a name for each raw scalar: `l2`, or `l2[3]` within a block that is not one scalar."""
        return tuple(
            name
            for block in self.blocks
            for name in ((block.name,) if block.shape == () else (f"{block.name}[{i}]" for i in range(block.size)))
        )

    def initial(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Return the raw starting values, [h]."""
        parts = [
            block.transform.inverse(torch.as_tensor(block.initial, dtype=torch.float64).cpu())
            .expand(block.shape)
            .reshape(-1)
            for block in self.blocks
        ]
        raw = torch.cat(parts) if parts else torch.zeros(0, dtype=torch.float64)
        return self.clamp(raw.to(dtype=dtype, device=device))

    def bounds(self, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return the raw box: low [h] and high [h]."""
        if not self.blocks:
            return torch.zeros(0, dtype=dtype, device=device), torch.zeros(0, dtype=dtype, device=device)
        low, high = (
            torch.cat(
                [torch.full((block.size,), block.raw_bounds[end], dtype=dtype, device=device) for block in self.blocks]
            )
            for end in (0, 1)
        )
        return low, high

    def clamp(self, raw: Tensor) -> Tensor:
        """Return the point of the box that is nearest to `raw`, [h]."""
        low, high = self.bounds(raw.dtype, raw.device)
        return torch.minimum(torch.maximum(raw, low), high)

    def constrain(self, raw: Tensor) -> dict[str, Tensor]:
        """Return the natural values by name, differentiable in `raw` [h]."""
        return {
            block.name: block.transform(part).reshape(block.shape)
            for block, part in zip(self.blocks, self._split(raw), strict=True)
        }

    def unconstrain(self, values: Hyper) -> Tensor:
        """Return the raw vector, [h], of natural values by name."""
        if set(values) != set(self.names):
            raise LearnError(f"expected values for {list(self.names)}; found {sorted(values)}")
        parts = [block.transform.inverse(values[block.name]).reshape(-1) for block in self.blocks]
        return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.float64)

    def pullback(self, raw: Tensor, gradients: Sequence[Tensor]) -> Tensor:
        """Turn derivatives with respect to natural values, one per block, into one in `raw`, [h]."""
        parts = [
            block.transform.derivative(part) * gradient.reshape(-1)
            for block, part, gradient in zip(self.blocks, self._split(raw), gradients, strict=True)
        ]
        return torch.cat(parts) if parts else torch.zeros_like(raw)

    def pushforward(self, raw: Tensor, direction: Tensor) -> dict[str, Tensor]:
        """Return the natural rates of change, by name, when `raw` [h] moves along `direction` [h]."""
        moved = zip(self.blocks, self._split(raw), self._split(direction), strict=True)
        return {
            block.name: (block.transform.derivative(part) * rate).reshape(block.shape) for block, part, rate in moved
        }

    def _split(self, raw: Tensor) -> Sequence[Tensor]:
        if raw.shape != (self.size,):
            raise LearnError(f"raw hyperparameters have shape {tuple(raw.shape)}; expected ({self.size},)")
        return torch.split(raw, [block.size for block in self.blocks]) if self.blocks else ()
