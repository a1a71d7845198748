"""The data's part of a network's losses, on any rows."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd import grad
from torch.nn import functional

from workers.learn.losses.base import AbstractLoss
from workers.learn.losses.softmax import Softmax
from workers.learn.models.chain import Chain, by_batch, plain
from workers.learn.models.network import Network
from workers.learn.noises.base import RowHyper
from workers.learn.noises.draws import Draws
from workers.learn.noises.noises import Noises
from workers.learn.problems.batches import Batch

_CHUNK = 4096
"""Rows of one pass: what bounds the memory for activations."""


@dataclass(frozen=True, eq=False)
class DataGradient:
    """Mean loss of a batch without penalties, a scalar; its gradient [p]; the statistics after it [b]."""

    value: Tensor
    gradient: Tensor
    buffers: Tensor


@dataclass(frozen=True, eq=False)
class NetworkLoss:
    """mean ℓ(f_w(x), y) over rows."""

    network: Network
    rule: AbstractLoss
    buffers: Tensor
    """Statistics that everything but a training step normalises by, [b]."""

    def mean(self, parameters: Sequence[Tensor], rows: Batch) -> Tensor:
        """Return the mean loss, a scalar, at a tensor for each parameter."""
        return self.of(self.network.evaluated(parameters, self.buffers, rows.x), rows.y)

    def of(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Return the mean loss of outputs [n, c], a scalar."""
        if isinstance(self.rule, Softmax):
            return functional.cross_entropy(outputs, y)  # the same in fewer kernels, which a small network notices
        return self.rule.value(outputs[:, None, :], y).mean()

    def training_gradient(self, w: Tensor, buffers: Tensor, batch: Batch) -> DataGradient:
        """Return what a training step sees: normalised by the batch itself."""
        leaves = self.leaves(w)
        outputs, fresh = self.network.trained(leaves, buffers, batch.x)
        value = self.of(outputs, batch.y)
        return DataGradient(value.detach(), self.network.join(grad(value, leaves)), fresh)

    def noisy_gradient(
        self, w: Tensor, buffers: Tensor, batch: Batch, chain: Chain, noises: Noises, hyper: RowHyper, draws: Draws
    ) -> DataGradient:
        """Return `training_gradient` with noises on features, hidden layers and targets.

        Args:
            w: parameters, [p].
            buffers: statistics before the step, [b].
            batch: rows before any noise.
            chain: the network, step by step.
            noises: what is done to it.
            hyper: their strengths, for each row or for all.
            draws: their random numbers.
        """
        leaves, fresh = self.leaves(w), buffers.clone()
        x = noises.on_inputs(batch.x, hyper, draws)
        outputs = chain.forward(x, plain(leaves), by_batch(leaves, fresh), noises.on_hidden(hyper, draws))
        value = self.noisy(outputs, batch.y, noises, hyper)
        return DataGradient(value.detach(), self.network.join(grad(value, leaves)), fresh)

    def noisy(self, outputs: Tensor, y: Tensor, noises: Noises, hyper: RowHyper) -> Tensor:
        """Return the mean loss of outputs [n, c] under noise on the targets, a scalar."""
        if noises.smoothing is None:
            return self.of(outputs, y)
        return noises.smoothing.mean(self.rule, outputs, y, hyper)

    def training_gradients(self, w: Tensor, buffers: Tensor, batches: Batch) -> DataGradient:
        """Return `training_gradient` of k models at once, each tensor with a first axis of k.

        One batched matrix product takes the place of k: less to launch, and nothing else.
        """
        leaves = [part.detach().requires_grad_() for part in torch.func.vmap(lambda v: tuple(self.network.split(v)))(w)]

        def one(parameters: tuple[Tensor, ...], buffers: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            outputs, fresh = self.network.trained(parameters, buffers, x)
            return self.of(outputs, y), fresh

        values, fresh = torch.func.vmap(one)(tuple(leaves), buffers, batches.x, batches.y)
        gradients = grad(values.sum(), leaves)
        joined = torch.cat([part.reshape(part.shape[0], -1) for part in gradients], dim=1)
        return DataGradient(values.detach(), joined, fresh.detach())

    def outputs(self, w: Tensor, x: Tensor) -> Tensor:
        """Return f_w(x), [n, c], without a graph."""
        parameters = self.network.split(w)
        with torch.no_grad():
            return torch.cat(
                [self.network.evaluated(parameters, self.buffers, part) for part in torch.split(x, _CHUNK)]
            )

    def metrics(self, outputs: Tensor, y: Tensor) -> dict[str, float]:
        """Return metrics of outputs [n, c]."""
        n = outputs.shape[0]
        weights = torch.full((n, 1), 1.0 / n, dtype=outputs.dtype, device=outputs.device)
        return self.rule.metrics(outputs[:, None, :], y, weights)

    def leaves(self, w: Tensor) -> list[Tensor]:
        """Return the parameters in `w` as tensors to differentiate in; they share its memory."""
        return [part.detach().requires_grad_() for part in self.network.split(w)]


def pieces(rows: Batch) -> Iterator[tuple[Batch, float]]:
    """Cut rows into chunks that fit into memory, each with its part of all rows."""
    if rows.rows <= _CHUNK:
        yield rows, 1.0
        return
    for x, y in zip(torch.split(rows.x, _CHUNK), torch.split(rows.y, _CHUNK), strict=True):
        yield Batch(x, y), x.shape[0] / rows.rows
