"""Where the coefficients and intercepts of linear models lie in the flat vector `w`."""

from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor


class Per(StrEnum):
    """What has a strength of its own."""

    MODEL = "model"
    LAYER = "layer"
    TENSOR = "tensor"
    FEATURE = "feature"
    CLASS = "class"
    PARAMETER = "parameter"


@dataclass(frozen=True, eq=False)
class Layout:
    """k models side by side, each with d features, c outputs and m intercept coordinates.

    w is the coefficients [d, k, c], so that one matrix product serves all models, and after them the intercepts
    [k, m]. The intercepts of the outputs are `coordinates @ basis.T`, with basis [c, m]:

    - m = 0: no intercept.
    - m = c and the identity: one for each output.
    - m = c − 1: softmax with intercepts that nobody penalises. The same number added to all of them changes no
      probability, so with c coordinates the inner Hessian would have a null direction, and the adjoint of the
      hypergradient none or many solutions. Here they are confined to sum zero by orthonormal contrasts: the
      Hessian is nonsingular, all classes are treated alike, and no prediction is lost. Coefficients need nothing
      of the kind, since each of them is penalised.
    """

    features: int
    models: int
    outputs: int
    basis: Tensor | None

    @staticmethod
    def make(*, features: int, models: int, outputs: int, intercept: bool, confined: bool, like: Tensor) -> "Layout":
        """Return a layout; `confined` intercepts sum to zero; `like` has the dtype and device of `w`."""
        if not intercept:
            return Layout(features, models, outputs, None)
        identity = torch.eye(outputs, dtype=like.dtype, device=like.device)
        return Layout(features, models, outputs, contrasts(identity) if confined else identity)

    @property
    def intercepts(self) -> int:
        """m, the number of intercept coordinates of a model."""
        return 0 if self.basis is None else self.basis.shape[1]

    @property
    def coefficients(self) -> int:
        """Number of coefficients of all models together."""
        return self.features * self.models * self.outputs

    @property
    def size(self) -> int:
        """p, the length of w."""
        return self.coefficients + self.models * self.intercepts

    def split(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """Return views of w: coefficients [d, k c] and intercept coordinates [k, m]."""
        coefficients = w[: self.coefficients].reshape(self.features, self.models * self.outputs)
        return coefficients, w[self.coefficients :].reshape(self.models, self.intercepts)

    def add_intercepts(self, z: Tensor, coordinates: Tensor) -> Tensor:
        """Return z [n, k, c] with the intercepts added."""
        return z if self.basis is None else z + coordinates @ self.basis.T

    def join(self, coefficients: Tensor, slopes: Tensor) -> Tensor:
        """Return the flat vector of coefficient gradients [d, k c] and output sums [k, c] of slopes."""
        if self.basis is None:
            return coefficients.reshape(-1)
        return torch.cat([coefficients.reshape(-1), (slopes @ self.basis).reshape(-1)])

    def groups(self, per: Per, *, biases: bool) -> tuple[Tensor, tuple[int, ...]]:
        """Return the group of each parameter, [p], and the shape of the strengths.

        Folds share their strengths. Intercepts, if penalised, belong to their class or to the one strength of the
        model; per feature they are one more, the last; per parameter they are c more.
        """
        d, c = self.features, self.outputs
        match per:
            case Per.MODEL | Per.LAYER:
                of_weight, of_bias, size = torch.zeros(d, c), torch.zeros(c), 0
            case Per.TENSOR:
                of_weight, of_bias, size = torch.zeros(d, c), torch.full((c,), float(biases)), 1 + biases
            case Per.FEATURE:
                of_weight = torch.arange(d)[:, None].expand(d, c)
                of_bias, size = torch.full((c,), d), d + biases
            case Per.CLASS:
                of_weight, of_bias, size = torch.arange(c).expand(d, c), torch.arange(c), c
            case Per.PARAMETER:
                of_weight, of_bias = torch.arange(d * c).view(d, c), torch.arange(d * c, d * c + c)
                size = d * c + c * biases
        shape = () if size == 0 else (int(size),)
        weight = of_weight.long()[:, None, :].expand(d, self.models, c).reshape(-1)
        if self.basis is None:
            return weight, shape
        nobody = max(int(size), 1)
        bias = of_bias.long().expand(self.models, c) if biases else torch.full((self.models, self.intercepts), nobody)
        return torch.cat([weight, bias.reshape(-1)]), shape


def contrasts(identity: Tensor) -> Tensor:
    """Return an orthonormal basis, [c, c − 1], of the vectors of c numbers with sum zero (Helmert's)."""
    c = identity.shape[0]
    columns = []
    for j in range(1, c):
        column = torch.zeros_like(identity[0])
        column[:j] = 1.0
        column[j] = -float(j)
        columns.append(column / (j * (j + 1)) ** 0.5)
    return torch.stack(columns, dim=1)
