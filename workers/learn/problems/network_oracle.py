"""Derivatives of a network's losses: by autograd through the network, in closed form through the penalty."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor
from torch.autograd import grad

from workers.learn.errors import LearnError
from workers.learn.hyperparameters import HyperparameterSpace
from workers.learn.oracle import AbstractMetric, AbstractOracle, Constants, Convexity, InnerValue, MatVec, OuterValue
from workers.learn.problems.batches import Batch
from workers.learn.problems.network_loss import NetworkLoss, pieces
from workers.learn.regularizers.base import AbstractDiagonalRegularizer


@final
class NetworkOracle(AbstractOracle):
    """Serves fixed rows and fixed normalization statistics.

    Products with one Hessian share one graph, and with it whatever noise the forward pass drew. The gradient that the
    graph is of, and all of the outer loss, are remembered for the last `w`. Rows beyond a chunk are gone through anew
    for every product, so that memory stays that of a chunk.
    """

    def __init__(
        self,
        loss: NetworkLoss,
        regularizers: Sequence[AbstractDiagonalRegularizer],
        space: HyperparameterSpace,
        train: Batch,
        valid: Batch | None,
    ) -> None:
        self._loss = loss
        self._regularizers = regularizers
        self._space = space
        self._train = train
        self._valid = valid
        self._graph: _Graph | None = None
        self._outer: _Outer | None = None

    def inner(self, w: Tensor, raw: Tensor) -> InnerValue:
        """See `AbstractOracle.inner`."""
        if self._graph is not None and self._graph.w is w:
            value, gradient = self._graph.value.detach(), self._join(self._graph.gradient).detach()
        else:
            value, gradient = self._mean_gradient(w, self._train)
        penalised = self.diagonal(raw, w) * w
        return InnerValue(value + 0.5 * torch.dot(w, penalised), gradient + penalised)

    def outer(self, w: Tensor, raw: Tensor) -> OuterValue:
        """See `AbstractOracle.outer`."""
        if self._outer is None or self._outer.w is not w:
            outputs: list[Tensor] = []
            value, gradient = self._mean_gradient(w, self._validation, outputs)
            self._outer = _Outer(w, value, gradient, torch.cat(outputs))
        return OuterValue(self._outer.value, self._outer.gradient, torch.zeros_like(raw))

    def outer_metrics(self, w: Tensor) -> dict[str, float]:
        """Return metrics of the outer rows; free of cost where `outer` was asked for at the same `w`."""
        known = self._outer
        outputs = known.outputs if known is not None and known.w is w else self._loss.outputs(w, self._validation.x)
        return self._loss.metrics(outputs, self._validation.y)

    def hvp(self, w: Tensor, raw: Tensor) -> MatVec:
        """See `AbstractOracle.hvp`."""
        diagonal = self.diagonal(raw, w)
        parts = list(pieces(self._train))
        if len(parts) == 1:
            graph = self._graph = _Graph(self._loss, w, self._train)
            return lambda v: graph.product(v) + diagonal * v

        def product(v: Tensor) -> Tensor:
            total = diagonal * v
            for rows, part in parts:
                total = total + part * _Graph(self._loss, w, rows).product(v)
            return total

        return product

    def cross(self, w: Tensor, raw: Tensor, q: Tensor) -> Tensor:
        """See `AbstractOracle.cross`."""
        product = w * q
        return self._space.pullback(raw, [part for rule in self._regularizers for part in rule.collect(product)])

    def cross_forward(self, w: Tensor, raw: Tensor, direction: Tensor) -> Tensor:
        """See `AbstractOracle.cross_forward`."""
        rates = self._space.pushforward(raw, direction)
        return w * torch.stack([rule.spread(rates, w) for rule in self._regularizers]).sum(0)

    def cross_norm(self, w: Tensor, raw: Tensor) -> float | None:
        """See `AbstractOracle.cross_norm`."""
        # JᵀJ has no negative entry, so none of its eigenvalues exceeds its largest row sum (Perron–Frobenius).
        sums = self.cross(w, raw, self.cross_forward(w, raw, torch.ones_like(raw)))
        return float(sums.max().sqrt())

    def metric(self, raw: Tensor, w: Tensor | None) -> AbstractMetric | None:  # noqa: ARG002 (none is known)
        """See `AbstractOracle.metric`."""
        return None

    def constants(self, raw: Tensor) -> Constants | None:  # noqa: ARG002 (not convex)
        """See `AbstractOracle.constants`."""
        return None

    def convexity(self, w: Tensor, raw: Tensor) -> Convexity | None:  # noqa: ARG002 (not convex)
        """See `AbstractOracle.convexity`."""
        return None

    def diagonal(self, raw: Tensor, w: Tensor) -> Tensor:
        """Return D, [p]: the penalties together are ½ Σ_j D_j w_j²."""
        hyper = self._space.constrain(raw)
        parts = [rule.diagonal(hyper, w) for rule in self._regularizers] or [torch.zeros_like(w)]
        return parts[0] if len(parts) == 1 else torch.stack(parts).sum(0)

    @property
    def _validation(self) -> Batch:
        if self._valid is None:
            raise LearnError("this problem has no validation rows, hence no outer loss")
        return self._valid

    def _mean_gradient(self, w: Tensor, rows: Batch, outputs: list[Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """Return the mean loss of rows and its gradient, [p], a chunk at a time; append the outputs to a list."""
        leaves = self._loss.leaves(w)
        total, gradient = torch.zeros_like(w[:1]).squeeze(0), torch.zeros_like(w)
        for some, part in pieces(rows):
            with torch.enable_grad():
                z = self._loss.network.evaluated(leaves, self._loss.buffers, some.x)
                value = self._loss.of(z, some.y)
            total = total + part * value.detach()
            gradient = torch.add(gradient, self._join(grad(value, leaves)), alpha=part)
            if outputs is not None:
                outputs.append(z.detach())
        return total, gradient

    def _join(self, parts: Sequence[Tensor]) -> Tensor:
        return self._loss.network.join(parts)


@dataclass(frozen=True, eq=False)
class _Outer:
    """The outer loss at `w`, with its gradient [p] and the outputs [n, c]."""

    w: Tensor
    value: Tensor
    gradient: Tensor
    outputs: Tensor


@final
class _Graph:
    """The gradient of the mean loss of rows with the graph that it came from: one Hessian, one draw of all noise."""

    def __init__(self, loss: NetworkLoss, w: Tensor, rows: Batch) -> None:
        self.w = w
        self._network = loss.network
        with torch.enable_grad():
            self._leaves = loss.leaves(w)
            self.value = loss.mean(self._leaves, rows)
            # A list of tensors: to join them inside the graph would hold everything twice.
            self.gradient = grad(self.value, self._leaves, create_graph=True)

    def product(self, v: Tensor) -> Tensor:
        """Return ∂²_w mean loss · v, [p]."""
        # A linear layer without activation leaves gradients that do not depend on its own weights.
        parts = grad(
            self.gradient,
            self._leaves,
            self._network.split_direction(v),
            retain_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )
        return self._network.join(parts)
