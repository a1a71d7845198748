"""The data's part of the objective for any model: mean losses of k models on the rows of a step, and on all."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Final, assert_never, final

import numpy as np
import torch
from torch import Tensor

from workers.learn.errors import LearnError
from workers.learn.losses.squared import Squared
from workers.learn.noises.draws import NoiseStream
from workers.learn.problems.batches import Batch, training_indices
from workers.learn.problems.layout import Layout
from workers.learn.problems.linear import LinearProblem
from workers.learn.problems.network import NetworkProblem

VariationalProblem = LinearProblem | NetworkProblem

_MOST_ROWS: Final = 2048
"""Rows on which a sample of the weights is looked at when candidates are compared; each sample has others."""


@dataclass(frozen=True, eq=False)
class RowLosses:
    """Of k models."""

    value: Tensor
    """Mean losses, [k]."""
    buffers: Tensor
    """Normalization statistics after the step, [k, b]."""


class AbstractRows(ABC):
    """Training rows, and a model whose weights [k, p] are given."""

    @property
    @abstractmethod
    def count(self) -> int:
        """Number of training rows, n."""

    @property
    @abstractmethod
    def targets(self) -> Tensor | None:
        """The targets [n, c] where the loss is ½ ‖z − y‖², and there is noise to be learned; None elsewhere."""

    @abstractmethod
    def initial_weights(self, seed: int) -> Tensor:
        """Return means to start from, [p]: not zero, where the best prior variance holds them fast."""

    @abstractmethod
    def initial_buffers(self) -> Tensor:
        """Return normalization statistics before anything was seen, [b]."""

    @abstractmethod
    def gradients_(self, into: Tensor, w: Tensor, buffers: Tensor, *, seed: int, step: int) -> RowLosses:
        """Return the mean losses of the rows of a training step; write their gradients into a tensor [k, p].

        Memory that is there already, for new memory would cost as much as the arithmetic on it.
        """

    @abstractmethod
    def mean(self, w: Tensor, buffers: Tensor, *, seed: int, sample: int) -> Tensor:
        """Return the mean loss of one model, weights [p] and statistics [b], a scalar.

        Over all rows, or where they are many over some of them that depend on `seed` and `sample` alone.
        """


def rows_of(problem: VariationalProblem, *, batch_size: int) -> AbstractRows:
    """Return the training rows of a problem; a network brings its own batch size."""
    match problem:
        case LinearProblem():
            return LinearRows(problem, batch_size)
        case NetworkProblem():
            return NetworkRows(problem)
        case _:
            assert_never(problem)


@final
class NetworkRows(AbstractRows):
    """One after the other on a CPU; side by side on a GPU, where a small network leaves most of it idle."""

    def __init__(self, problem: NetworkProblem) -> None:
        """Refuse noises whose strengths are to be learned."""
        problem.check_noises("the evidence lower bound")
        self._problem = problem
        self._raw = problem.space.initial(problem.train.x.dtype, problem.train.x.device)
        self._together = problem.train.x.device.type != "cpu" and not problem.noises

    @property
    def count(self) -> int:
        """See `AbstractRows.count`."""
        return self._problem.train.rows

    @property
    def targets(self) -> Tensor | None:
        """See `AbstractRows.targets`."""
        problem = self._problem
        return problem.train.y.view(problem.train.rows, -1) if isinstance(problem.loss, Squared) else None

    def initial_weights(self, seed: int) -> Tensor:
        """See `AbstractRows.initial_weights`: those of the network."""
        return self._problem.initial_weights(seed)

    def initial_buffers(self) -> Tensor:
        """See `AbstractRows.initial_buffers`."""
        return self._problem.initial_buffers()

    def gradients_(self, into: Tensor, w: Tensor, buffers: Tensor, *, seed: int, step: int) -> RowLosses:
        """See `AbstractRows.gradients_`."""
        problem = self._problem
        if self._together:
            batch, k = problem.batch(seed, step), w.shape[0]
            same = Batch(batch.x.expand(k, *batch.x.shape), batch.y.expand(k, *batch.y.shape))
            found = problem.losses.training_gradients(w, buffers, same)
            into.copy_(found.gradient)
            return RowLosses(found.value, found.buffers)
        values, statistics = [], []
        for row, one, before in zip(into, w, buffers, strict=True):
            found = problem.training_gradient(one, before, self._raw, seed=seed, step=step)
            row.copy_(found.gradient)
            values.append(found.value)
            statistics.append(found.buffers)
        return RowLosses(torch.stack(values), torch.stack(statistics))

    def mean(self, w: Tensor, buffers: Tensor, *, seed: int, sample: int) -> Tensor:
        """See `AbstractRows.mean`."""
        problem = self._problem
        losses, indices = replace(problem.losses, buffers=buffers), _some(self.count, seed, sample, w.device)
        rows = problem.train if indices is None else problem.train.take(indices)
        return losses.of(losses.outputs(w, rows.x), rows.y)


@final
class LinearRows(AbstractRows):
    """All models in one product with the rows of a step: dense ones in batches, sparse ones all at once."""

    def __init__(self, problem: LinearProblem, batch_size: int) -> None:
        """Refuse folds."""
        if problem.layout.models != 1:
            raise LearnError("the evidence lower bound needs no folds: give all rows to one model")
        self._problem = problem
        self._batch_size = problem.train.design.rows if problem.train.design.is_sparse else batch_size

    @property
    def count(self) -> int:
        """See `AbstractRows.count`."""
        return self._problem.train.design.rows

    @property
    def targets(self) -> Tensor | None:
        """See `AbstractRows.targets`."""
        problem = self._problem
        return problem.train.y.view(self.count, -1) if isinstance(problem.loss, Squared) else None

    def initial_weights(self, seed: int) -> Tensor:
        """See `AbstractRows.initial_weights`: those of a network's last layer."""
        layout, w = self._problem.layout, self._problem.initial_weights(seed)
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randn(layout.coefficients, generator=generator, dtype=torch.float64) * layout.features**-0.5
        return torch.cat([drawn.to(w), w[layout.coefficients :]])

    def initial_buffers(self) -> Tensor:
        """See `AbstractRows.initial_buffers`: none."""
        return self._problem.train.weights.new_zeros(0)

    def gradients_(self, into: Tensor, w: Tensor, buffers: Tensor, *, seed: int, step: int) -> RowLosses:
        """See `AbstractRows.gradients_`."""
        problem, k = self._problem, w.shape[0]
        design, y = problem.train.design, problem.train.y
        indices = training_indices(design.rows, self._batch_size, seed=seed, step=step, device=w.device)
        together = replace(problem.layout, models=k)
        coefficients, coordinates = together.split(_side_by_side(w, problem.layout))
        if indices is None:
            z = design.times(coefficients)
        else:
            x, y = design.matrix[indices], y[indices]
            z = x @ coefficients
        n = z.shape[0]
        at = problem.loss.at(together.add_intercepts(z.view(n, k, together.outputs), coordinates), y)
        slope = at.slope.reshape(n, -1) / n
        pulled = design.transposed_times(slope) if indices is None else x.T @ slope
        gradient = together.join(pulled, slope.view(n, k, -1).sum(0))
        _one_by_one_(into, gradient, together)
        return RowLosses(at.value.mean(0), buffers)

    def mean(self, w: Tensor, buffers: Tensor, *, seed: int, sample: int) -> Tensor:  # noqa: ARG002 (no statistics)
        """See `AbstractRows.mean`."""
        problem = self._problem
        indices = None if problem.train.design.is_sparse else _some(self.count, seed, sample, w.device)
        if indices is None:
            return problem.loss.value(problem.outputs(w, problem.train.design), problem.train.y).mean()
        coefficients, coordinates = problem.layout.split(w)
        z = (problem.train.design.matrix[indices] @ coefficients).view(indices.numel(), 1, -1)
        return problem.loss.value(problem.layout.add_intercepts(z, coordinates), problem.train.y[indices]).mean()


def _side_by_side(w: Tensor, layout: Layout) -> Tensor:
    """Return the flat vector of k linear models, of their vectors [k, p]: coefficients are [d, k, c] in it."""
    k = w.shape[0]
    coefficients = w[:, : layout.coefficients].view(k, layout.features, layout.outputs).permute(1, 0, 2)
    return torch.cat([coefficients.reshape(-1), w[:, layout.coefficients :].reshape(-1)])


def _one_by_one_(into: Tensor, flat: Tensor, together: Layout) -> None:
    """Write the flat vector of k linear models into vectors [k, p]."""
    k, d, c = together.models, together.features, together.outputs
    coefficients, coordinates = together.split(flat)
    into[:, : d * c].view(k, d, c).copy_(coefficients.view(d, k, c).permute(1, 0, 2))
    into[:, d * c :].copy_(coordinates)


def _some(rows: int, seed: int, sample: int, device: torch.device) -> Tensor | None:
    if rows <= _MOST_ROWS:
        return None
    draws = np.random.default_rng([seed, int(NoiseStream.SELECTION), sample])
    return torch.as_tensor(draws.choice(rows, _MOST_ROWS, replace=False, shuffle=False), device=device)
