"""Linear models with learned penalties: regression, logistic and softmax, held out or in folds."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import final

import torch
from torch import Tensor

from workers.learn.errors import LearnError
from workers.learn.hyperparameters import Hyper, HyperparameterSpace
from workers.learn.losses.base import AbstractLoss
from workers.learn.oracle import AbstractOracle
from workers.learn.problem import AbstractBilevelProblem, Part
from workers.learn.problems.design import Design
from workers.learn.problems.layout import Layout
from workers.learn.problems.linear_oracle import LinearOracle
from workers.learn.regularizers.base import AbstractDiagonalRegularizer
from workers.learn.regularizers.l1 import L1
from workers.learn.sparse_oracle import SparseOracle


@dataclass(frozen=True, eq=False)
class Rows:
    """Examples, and how much each counts in each model's average."""

    design: Design
    y: Tensor
    """[n] class numbers or targets, or [n, c] targets."""
    weights: Tensor
    """[n, k]; every column sums to one."""


@final
@dataclass(frozen=True, eq=False)
class LinearProblem(AbstractBilevelProblem):
    """k linear models, one for each fold (or one), that share their strengths.

    inner(w) = Σ_k mean_{train_k} ℓ(X W_k + b_k, y) + R(w),   outer(w) = mean_k mean_{valid_k} ℓ.

    The models do not touch each other, so the one inner problem is the k problems, solved together: a product
    with X serves all folds at once, and the outer loss is the mean that k separate runs would give.

    R is quadratic, plus absolute values where there are `sparse` penalties. Those have kinks: such a problem is
    trained by `ReducedNewton`, and its derivatives are those on the weights that are not zero.
    """

    layout: Layout
    loss: AbstractLoss
    regularizers: tuple[AbstractDiagonalRegularizer, ...]
    train: Rows
    valid: Rows | None
    test: Rows | None
    sparse: tuple[L1, ...] = ()

    def __post_init__(self) -> None:
        if not self.regularizers and not self.sparse:
            raise LearnError("a linear problem needs a penalty: without one its solution need not exist")

    @property
    def space(self) -> HyperparameterSpace:
        """The strengths that are not fixed, regularizer after regularizer, the sparse ones last."""
        return HyperparameterSpace((*self._smooth_space.blocks, *self._sparse_space.blocks))

    @property
    def _smooth_space(self) -> HyperparameterSpace:
        return HyperparameterSpace(tuple(block for part in self.regularizers for block in part.hyperparameters()))

    @property
    def _sparse_space(self) -> HyperparameterSpace:
        return HyperparameterSpace(tuple(block for part in self.sparse for block in part.hyperparameters()))

    def initial_weights(self, seed: int) -> Tensor:  # noqa: ARG002 (the inner problem is convex)
        """Return zeros, [p]: the solution does not depend on the start."""
        like = self.train.weights
        return torch.zeros(self.layout.size, dtype=like.dtype, device=like.device)

    def inner_loss(self, w: Tensor, hyper: Hyper) -> Tensor:
        """See `AbstractBilevelProblem.inner_loss`."""
        penalty = torch.stack([regularizer(w, hyper) for regularizer in (*self.regularizers, *self.sparse)]).sum()
        return self._mean_loss(w, self.train) + penalty

    def outer_loss(self, w: Tensor, hyper: Hyper) -> Tensor:  # noqa: ARG002 (no penalty in it)
        """See `AbstractBilevelProblem.outer_loss`."""
        return self._mean_loss(w, self.validation) / self.layout.models

    def oracle(self) -> AbstractOracle:
        """Return the closed forms; always the same object, which remembers Gram matrices."""
        return self._oracle

    @cached_property
    def _oracle(self) -> AbstractOracle:
        space = self._smooth_space
        smooth = LinearOracle(self.layout, self.loss, self.regularizers, space, self.train, self.validation)
        return smooth if not self.sparse else SparseOracle(smooth, self.sparse, space, self._sparse_space)

    @property
    def validation(self) -> Rows:
        """The rows of the outer loss."""
        if self.valid is None:
            raise LearnError("this problem has no validation rows, hence no outer loss")
        return self.valid

    def parts(self) -> frozenset[Part]:
        """Return train, and valid and test where there are such rows and models for them."""
        rows = {Part.TRAIN: self.train, Part.VALID: self.valid, Part.TEST: self.test}
        return frozenset(part for part, found in rows.items() if found is not None and self._fits(found))

    def evaluate(self, w: Tensor, part: Part) -> dict[str, float]:
        """Return metrics on a part, the mean over folds where there are folds.

        With folds there is no single model for the test rows: see `refit`.
        """
        rows = self.rows_of(part)
        return self.loss.metrics(self.outputs(w, rows.design), rows.y, rows.weights)

    def outputs_on(self, w: Tensor, part: Part) -> tuple[Tensor, Tensor]:
        """Return the outputs on a part, [m, c], and the targets that they are for, [m] or [m, c].

        With folds they are those of all models, one after the other, each on the rows that count for it: of the
        validation rows every row once, seen by the model that was not trained on it.
        """
        rows = self.rows_of(part)
        model, row = torch.nonzero(rows.weights.T > 0, as_tuple=True)
        return self.outputs(w, rows.design)[row, model], rows.y[row]

    def rows_of(self, part: Part) -> Rows:
        """Return the rows of a part.

        Raises:
            LearnError: there are none, or with folds no single model for them.
        """
        if part not in self.parts():
            raise LearnError(f"no model for the part {part}; there are {sorted(self.parts())}")
        rows = {Part.TRAIN: self.train, Part.VALID: self.valid, Part.TEST: self.test}[part]
        assert rows is not None  # noqa: S101 (by `parts`)
        return rows

    def outputs(self, w: Tensor, design: Design) -> Tensor:
        """Return z = X W + b, [n, k, c]."""
        coefficients, coordinates = self.layout.split(w)
        z = design.times(coefficients).view(design.rows, self.layout.models, self.layout.outputs)
        return self.layout.add_intercepts(z, coordinates)

    def named_weights(self, w: Tensor) -> dict[str, Tensor]:
        """Return `weight` [c, d] and `bias` [c], as torch and scikit-learn have them; with folds, [k, c, d]."""
        coefficients, coordinates = self.layout.split(w)
        shape = (self.layout.features, self.layout.models, self.layout.outputs)
        named: Mapping[str, Tensor] = {"weight": coefficients.view(shape).permute(1, 2, 0)}
        if self.layout.basis is not None:
            named = {**named, "bias": coordinates @ self.layout.basis.T}
        single = self.layout.models == 1
        return {name: (t[0] if single else t).contiguous() for name, t in named.items()}

    def _mean_loss(self, w: Tensor, rows: Rows) -> Tensor:
        return (self.loss.value(self.outputs(w, rows.design), rows.y) * rows.weights).sum()

    def _fits(self, rows: Rows) -> bool:
        return rows.weights.shape[1] == self.layout.models
