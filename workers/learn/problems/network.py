"""Networks with learned penalties, trained by mini-batches."""

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import final

import torch
from torch import Tensor

from workers.learn.errors import LearnError
from workers.learn.hyperparameters import Hyper, HyperparameterSpace
from workers.learn.losses.base import AbstractLoss
from workers.learn.models.chain import Chain
from workers.learn.models.network import Network
from workers.learn.noises.base import row_values
from workers.learn.noises.draws import Draws, NoiseStream
from workers.learn.noises.noises import Noises
from workers.learn.problem import AbstractBilevelProblem, Part
from workers.learn.problems.batches import Batch, Stream, random_indices, training_indices
from workers.learn.problems.network_loss import DataGradient, NetworkLoss
from workers.learn.problems.network_oracle import NetworkOracle
from workers.learn.regularizers.base import AbstractDiagonalRegularizer

_MOST_STATISTICS_ROWS = 16384
"""Rows that normalization statistics are taken of: their error falls with the root of this number."""


_SOME_STATISTICS_ROWS = 1024
"""The same for a single hypergradient."""


@final
@dataclass(frozen=True, eq=False)
class NetworkProblem(AbstractBilevelProblem):
    """inner(w) = mean_train ℓ(f_w(x), y) + R(w),   outer(w) = mean_valid ℓ(f_w(x), y).

    Both normalise by the statistics in `buffers` and change nothing, so that all derivatives are those of one pair of
    functions; what a training step sees, normalised by the batch itself, is `losses.training_gradient`. To look at
    fewer rows, or through other statistics, is another problem: `narrowed`.

    Batch or layer normalization makes the loss blind to the length of the weights before it. L2 on those has no
    minimiser: it sets their effective learning rate (van Laarhoven 2017), which implicit differentiation does not
    see. Their strengths follow the frozen statistics here, a heuristic that retraining from scratch has to confirm.

    Noises are in neither loss, only in training steps: the network that is judged is the one without. So derivatives
    do not know of them, and a noise whose strength is learned wants a method that can do without (`check_noises`).
    """

    network: Network
    loss: AbstractLoss
    regularizers: tuple[AbstractDiagonalRegularizer, ...]
    train: Batch
    valid: Batch | None
    test: Batch | None
    batch_size: int
    """Rows of a training step; all of them where there are fewer."""
    buffers: Tensor
    """Normalization statistics, [b]; empty where the network has none."""
    noises: Noises = field(default_factory=Noises)

    def __post_init__(self) -> None:
        if self.noises:
            layers = len(self.chain.maps)
            self.noises.check(features=self.train.x.shape[1], layers=layers, rule=self.loss)
        least = 2 if self.network.buffer_size > 0 else 1
        if min(self.batch_size, self.train.rows) < least:
            raise LearnError(
                f"{self.train.rows} rows in batches of {self.batch_size} cannot be trained on: this network needs "
                f"batches of {least} rows or more"
            )

    @cached_property
    def losses(self) -> NetworkLoss:
        """The data's part of both losses."""
        return NetworkLoss(self.network, self.loss, self.buffers)

    @cached_property
    def space(self) -> HyperparameterSpace:
        """The strengths that are not fixed, regularizer after regularizer, and then those of noises."""
        penalties = (block for part in self.regularizers for block in part.hyperparameters())
        return HyperparameterSpace((*penalties, *self.noises.hyperparameters()))

    @cached_property
    def chain(self) -> Chain:
        """The network step by step.

        Raises:
            LearnError: it is no chain of steps.
        """
        return Chain.of(self.network)

    @property
    def steps_per_epoch(self) -> int:
        """Training steps in which every row is seen once, but for what is left at the end."""
        return max(self.train.rows // self.batch_size, 1)

    @property
    def validation(self) -> Batch:
        """The rows of the outer loss."""
        if self.valid is None:
            raise LearnError("this problem has no validation rows, hence no outer loss")
        return self.valid

    def initial_weights(self, seed: int) -> Tensor:
        """Return random starting parameters, [p]."""
        return self.network.initial(seed, like=self.train.x)

    def initial_buffers(self) -> Tensor:
        """Return statistics before anything was seen, [b]."""
        return self.network.initial_buffers(like=self.train.x)

    def inner_loss(self, w: Tensor, hyper: Hyper) -> Tensor:
        """See `AbstractBilevelProblem.inner_loss`."""
        loss = self.losses.mean(self.network.split(w), self.train)
        return sum((regularizer(w, hyper) for regularizer in self.regularizers), start=loss)

    def outer_loss(self, w: Tensor, hyper: Hyper) -> Tensor:  # noqa: ARG002 (no penalty in it)
        """See `AbstractBilevelProblem.outer_loss`."""
        return self.losses.mean(self.network.split(w), self.validation)

    def oracle(self) -> NetworkOracle:
        """Return first and second derivatives of the network's loss by autograd, and of the penalty in closed form."""
        return NetworkOracle(self.losses, self.regularizers, self.space, self.train, self.valid)

    def parts(self) -> frozenset[Part]:
        """Return train, and valid and test where there are such rows."""
        return frozenset(part for part, rows in self._rows().items() if rows is not None)

    def evaluate(self, w: Tensor, part: Part) -> dict[str, float]:
        """Return metrics on a part, normalised by the statistics of the training rows at `w`."""
        return self.losses.metrics(*self.outputs_on(w, part))

    def outputs_on(self, w: Tensor, part: Part) -> tuple[Tensor, Tensor]:
        """Return the outputs on a part, [n, c], and its targets, [n] or [n, c]; normalised as for `evaluate`."""
        rows = self.rows_of(part)
        losses = replace(self.losses, buffers=self.statistics(w))
        return losses.outputs(w, rows.x), rows.y

    def rows_of(self, part: Part) -> Batch:
        """Return the rows of a part.

        Raises:
            LearnError: there are none.
        """
        rows = self._rows()[part]
        if rows is None:
            raise LearnError(f"there are no rows of the part {part}; there are {sorted(self.parts())}")
        return rows

    def named_weights(self, w: Tensor) -> dict[str, Tensor]:
        """Return parameters, and normalization statistics of the training rows, by the names in the module."""
        return self.network.named(w, self.statistics(w))

    def statistics(self, w: Tensor) -> Tensor:
        """Return the normalization statistics of the training rows at `w`, [b]; of evenly spaced rows if many."""
        stride = -(-self.train.rows // _MOST_STATISTICS_ROWS)
        return self.network.statistics(w, self.train.x[::stride])

    def batch(self, seed: int, step: int) -> Batch:
        """Return the rows of a training step."""
        device = self.train.x.device
        indices = training_indices(self.train.rows, self.batch_size, seed=seed, step=step, device=device)
        return self.train if indices is None else self.train.take(indices)

    def training_gradient(self, w: Tensor, buffers: Tensor, raw: Tensor, *, seed: int, step: int) -> DataGradient:
        """Return what a training step sees of its batch: through the noises, normalised by the batch, unpenalised.

        Args:
            w: parameters, [p].
            buffers: normalization statistics before the step, [b].
            raw: unconstrained strengths, [h].
            seed: of the run.
            step: which training step.
        """
        batch = self.batch(seed, step)
        if not self.noises:
            return self.losses.training_gradient(w, buffers, batch)
        draws = Draws(NoiseStream.TRAINING, seed=seed, step=step, device=batch.x.device)
        hyper = row_values(self.space, raw.detach()[None])
        return self.losses.noisy_gradient(w, buffers, batch, self.chain, self.noises, hyper, draws)

    def check_noises(self, method: str) -> None:
        """Raise LearnError if the strength of a noise is to be learned, which the method cannot do."""
        names = [block.name for block in self.noises.hyperparameters()]
        if names:
            raise LearnError(
                f"{method} differentiates the training loss, which has no derivative in {names}: fix them, or take a "
                "self-tuning network or a search"
            )

    def batches(self, seeds: tuple[int, ...], step: int) -> Batch:
        """Return the rows of a training step of k models, [k, n, …], each after its own seed."""
        parts = [self.batch(seed, step) for seed in seeds]
        return Batch(torch.stack([part.x for part in parts]), torch.stack([part.y for part in parts]))

    def narrowed(self, w: Tensor, *, inner_rows: int, outer_rows: int, seed: int, step: int) -> "NetworkProblem":
        """Return the problem of one hypergradient: fixed rows on both sides, and the statistics at `w`.

        Args:
            w: parameters, [p], that normalization statistics are measured at; not changed by anything after.
            inner_rows: training rows of the Hessian; all of them where there are fewer.
            outer_rows: validation rows of the outer loss; all of them where there are fewer.
            seed: of the run.
            step: outer step that the rows are drawn for.
        """
        train, valid, device = self.train, self.validation, self.train.x.device
        some = random_indices(train.rows, inner_rows, stream=Stream.INNER, seed=seed, step=step, device=device)
        others = random_indices(valid.rows, outer_rows, stream=Stream.OUTER, seed=seed, step=step, device=device)
        return replace(
            self,
            train=train if some is None else train.take(some),
            valid=valid if others is None else valid.take(others),
            buffers=self._statistics(w, seed=seed, step=step),
        )

    def _statistics(self, w: Tensor, *, seed: int, step: int) -> Tensor:
        """Return normalization statistics at `w`, [b], of rows drawn for one step: fewer than an answer deserves."""
        if self.network.buffer_size == 0:
            return self.buffers
        rows, device = self.train, self.train.x.device
        some = random_indices(
            rows.rows, _SOME_STATISTICS_ROWS, stream=Stream.STATISTICS, seed=seed, step=step, device=device
        )
        return self.network.statistics(w, rows.x if some is None else rows.x[some])

    def to(self, dtype: torch.dtype) -> "NetworkProblem":
        """Return the problem with all numbers in another precision."""
        valid, test = (None if part is None else _cast(part, dtype) for part in (self.valid, self.test))
        return replace(self, train=_cast(self.train, dtype), valid=valid, test=test, buffers=self.buffers.to(dtype))

    def _rows(self) -> dict[Part, Batch | None]:
        return {Part.TRAIN: self.train, Part.VALID: self.valid, Part.TEST: self.test}


def _cast(rows: Batch, dtype: torch.dtype) -> Batch:
    return Batch(rows.x.to(dtype), rows.y.to(dtype) if rows.y.is_floating_point() else rows.y)
