"""The sum of absolute values, with one strength for any groups of parameters: it makes weights exactly zero."""

from dataclasses import dataclass

import torch
from torch import Tensor

from workers.learn.errors import LearnError
from workers.learn.hyperparameters import Hyper, Hyperparameter
from workers.learn.regularizers.base import AbstractRegularizer
from workers.learn.transforms import Exp


@dataclass(frozen=True, eq=False)
class L1(AbstractRegularizer):
    """R = Σ_j λ_{g(j)} |w_j|.

    The negative logarithm of a Laplace prior: with a mean loss over n examples, w_j has density ∝ e^{−n λ |w_j|}.

    Source: Tibshirani (1996).
    """

    name: str
    groups: Tensor
    """g: [p] to 0 … size − 1, and `size` for parameters that are not penalised."""
    initial: float | Tensor
    """λ at the start, one for all or one for each group: or for ever, if fixed."""
    shape: tuple[int, ...] = ()
    """Of the strengths: () for one, (size,) for several."""
    fixed: bool = False
    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        if self.groups.ndim != 1 or int(self.groups.min()) < 0 or int(self.groups.max()) > self.size:
            raise LearnError(f"{self.name}: groups must be a vector of numbers between 0 and {self.size}")

    @property
    def size(self) -> int:
        """Number of groups."""
        return torch.Size(self.shape).numel()

    def hyperparameters(self) -> tuple[Hyperparameter, ...]:
        """See `AbstractRegularizer.hyperparameters`."""
        if self.fixed:
            return ()
        return (Hyperparameter(self.name, self.initial, self.shape, Exp(), self.low, self.high),)

    def __call__(self, w: Tensor, hyper: Hyper) -> Tensor:
        """See `AbstractRegularizer.__call__`."""
        return (self.thresholds(hyper, w) * w.abs()).sum()

    def thresholds(self, hyper: Hyper, w: Tensor) -> Tensor:
        """Return λ_{g(j)}, [p], zero where nothing is penalised, of the dtype and device of `w` [p]."""
        if self.fixed:
            constant = torch.as_tensor(self.initial).to(dtype=w.dtype, device=w.device)
            return self._expand(constant.expand(self.shape))
        return self._expand(hyper[self.name])

    def spread(self, direction: Hyper, w: Tensor) -> Tensor:
        """Return the change of the thresholds, [p], when the learned strengths change by `direction`."""
        return torch.zeros_like(w) if self.fixed else self._expand(direction[self.name])

    def collect(self, v: Tensor) -> tuple[Tensor, ...]:
        """Return the transpose of `spread` at `v` [p], one tensor for each of `hyperparameters()`."""
        if self.fixed:
            return ()
        # One slot more for the parameters that are not penalised.
        sums = torch.zeros(self.size + 1, dtype=v.dtype, device=v.device).index_add_(0, self.groups, v)
        return (sums[:-1].reshape(self.shape),)

    def _expand(self, strength: Tensor) -> Tensor:
        flat = strength.reshape(-1)
        return torch.cat([flat, torch.zeros_like(flat[:1])])[self.groups]
