"""L2 penalties read as Gaussian priors."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, final

import torch
from torch import Tensor

from workers.learn.errors import LearnError
from workers.learn.gaussian_evidence import Bounds
from workers.learn.regularizers.base import AbstractRegularizer
from workers.learn.regularizers.l2 import L2

_MOST_NAMED: Final = 16
"""Groups of one penalty whose variances a point lists one by one."""


@dataclass(frozen=True, eq=False)
class Block:
    """The groups of one penalty among all groups."""

    name: str
    start: int
    shape: tuple[int, ...]
    is_fixed: bool

    @property
    def size(self) -> int:
        """Number of groups."""
        return math.prod(self.shape)

    def part(self, values: Tensor) -> Tensor:
        """Return what of values [g] is this block's."""
        return values[self.start : self.start + self.size]


@final
@dataclass(frozen=True, eq=False)
class GaussianPriors:
    """w_j ~ N(0, v_{g(j)}) instead of ½ Σ λ_{g(j)} w_j², where the data's mean loss is that of n rows.

    A mean loss ℓ that is a negative log-likelihood up to a constant, as cross-entropy is, and data counted κ times,
    make λ = 1/(κ n v). The squared loss ½ ‖z − y‖² is s² times one, s² the variance of the noise, hence λ = s²/(κ n v).
    """

    blocks: tuple[Block, ...]
    of: Tensor
    """g, [p]; the number of groups for weights that no penalty is for."""
    bounds: Bounds
    """Of λ, float64."""
    initial: Tensor
    """λ at the start, [g], float64."""

    @property
    def size(self) -> int:
        """Number of groups."""
        return self.initial.numel()

    def raw(self, strengths: Tensor) -> Tensor:
        """Return log λ of the strengths that are learned, [h], of all strengths [g]."""
        parts = [block.part(strengths).log() for block in self.blocks if not block.is_fixed]
        return torch.cat(parts) if parts else strengths.new_zeros(0)

    def named(self, strengths: Tensor) -> dict[str, Tensor]:
        """Return the strengths that are learned, by name, float64 on the CPU."""
        return {b.name: b.part(strengths).reshape(b.shape).cpu() for b in self.blocks if not b.is_fixed}

    def variances(self, v: Tensor) -> dict[str, float]:
        """Return `prior_variance.NAME`, or `prior_variance.NAME.0`, … where there are few, of variances [g]."""
        named: dict[str, float] = {}
        for block in self.blocks:
            values = block.part(v).tolist()
            if block.shape == ():
                named[f"prior_variance.{block.name}"] = values[0]
            elif block.size <= _MOST_NAMED:
                named |= {f"prior_variance.{block.name}.{index}": value for index, value in enumerate(values)}
        return named

    @staticmethod
    def read(regularizers: Sequence[AbstractRegularizer]) -> "GaussianPriors":
        """Return the priors that L2 penalties stand for.

        Raises:
            LearnError: another penalty, or two on the same weights, or none on any.
        """
        penalties: list[L2] = []
        for part in regularizers:
            if not isinstance(part, L2):
                raise LearnError(
                    f"the evidence takes L2 penalties, which are Gaussian priors; found {type(part).__name__}"
                )
            penalties.append(part)
        total = sum(part.size for part in penalties)
        blocks: list[Block] = []
        low, high, initial = [], [], []
        of = torch.full_like(penalties[0].groups, total) if penalties else torch.zeros(0, dtype=torch.long)
        start = 0
        for part in penalties:
            taken = part.groups < part.size
            if bool((taken & (of < total)).any()):
                raise LearnError(f"{part.name}: these weights have a prior already; a weight can have one")
            of = torch.where(taken, part.groups + start, of)
            strengths = torch.as_tensor(part.initial, dtype=torch.float64).expand(part.shape).reshape(-1)
            initial.append(strengths)
            least, most = (0.0 if part.low is None else part.low), (math.inf if part.high is None else part.high)
            low.append(strengths if part.fixed else torch.full_like(strengths, least))
            high.append(strengths if part.fixed else torch.full_like(strengths, most))
            blocks.append(Block(part.name, start, part.shape, part.fixed))
            start += part.size
        if not bool((of < total).any()):
            raise LearnError("there are no weights with a prior")
        low_, high_, initial_ = (torch.cat(values).to(of.device) for values in (low, high, initial))
        return GaussianPriors(tuple(blocks), of, Bounds(low_, high_), initial_)
