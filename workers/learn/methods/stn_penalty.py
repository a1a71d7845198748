"""L2 penalties of weights that are different for each example."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from workers.learn.errors import LearnError
from workers.learn.models.network import Network
from workers.learn.models.responses import BestResponse, Gates, Responses
from workers.learn.noises.base import RowHyper
from workers.learn.regularizers.base import AbstractDiagonalRegularizer
from workers.learn.regularizers.l2 import L2


@final
@dataclass(frozen=True, eq=False)
class ResponsePenalty:
    """mean_i ½ Σ_j λ_{ij} w_j(d_i)², where each example has strengths and weights of its own.

    A row (1 + s) W + g R of a gated weight has the square (1 + s)² ‖W‖² + 2 (1 + s) g ⟨W, R⟩ + g² ‖R‖², so that three
    numbers for each row serve all examples. Hence strengths of penalties need not be shared by a batch, as those of
    other self-tuning networks are.
    """

    terms: tuple[tuple[L2, tuple[int, ...]], ...]
    """Penalties, each with the group of every slot; the number of groups where a slot is not penalised."""

    @staticmethod
    def of(network: Network, regularizers: Sequence[AbstractDiagonalRegularizer]) -> "ResponsePenalty":
        """Return the penalty of a problem.

        Raises:
            LearnError: another penalty than L2, or one whose strengths differ within a tensor.
        """
        terms = []
        for rule in regularizers:
            if not isinstance(rule, L2):
                raise LearnError(f"self-tuning networks take L2 penalties; found {type(rule).__name__}")
            parts = torch.split(rule.groups.cpu(), network.sizes)
            if any(bool((part != part[0]).any()) for part in parts):
                raise LearnError(
                    f"{rule.name}: a self-tuning network learns strengths per model, layer or tensor, not within a "
                    "tensor: its response has a gate for each output and strength"
                )
            terms.append((rule, tuple(int(part[0]) for part in parts)))
        return ResponsePenalty(tuple(terms))

    def __call__(
        self,
        parameters: Sequence[Tensor],
        response: BestResponse,
        responses: Responses,
        gates: Gates,
        hyper: RowHyper,
    ) -> Tensor:
        """Return the penalty, a scalar.

        Args:
            parameters: a tensor for each slot.
            response: of the network.
            responses: its parameters.
            gates: V d and C d of each example.
            hyper: natural values, [m, *shape]; no derivative is taken in them.
        """
        strengths = self._strengths(parameters, hyper)
        total = gates[0].weight.new_zeros(())
        responding: set[int] = set()
        for stage, at, gate in zip(response.chain.maps, responses.maps, gates, strict=True):
            pairs = ((at.weight, gate.weight, gate.own), (at.bias, gate.bias, None))
            for place, (change, by, own) in zip(stage.slots, pairs, strict=False):
                responding.add(place)
                strength = strengths[place]
                if strength is not None and change is not None and by is not None:
                    total = total + _gated(parameters[place], change, by, own, strength)
        for place, strength in enumerate(strengths):
            if strength is not None and place not in responding:
                total = total + 0.5 * strength.mean() * parameters[place].square().sum()
        return total

    def _strengths(self, parameters: Sequence[Tensor], hyper: RowHyper) -> list[Tensor | None]:
        """Return the strength of each slot, [m]; None where there is no penalty."""
        found: list[Tensor | None] = [None] * len(parameters)
        for rule, groups in self.terms:
            if rule.fixed:
                values = torch.as_tensor(rule.initial).to(parameters[0]).expand(rule.shape).reshape(1, -1)
            else:
                values = hyper[rule.name].detach().flatten(1) if rule.shape else hyper[rule.name].detach()[:, None]
            for place, group in enumerate(groups):
                if group < rule.size:
                    before, here = found[place], values[:, group]
                    found[place] = here if before is None else before + here
        return found


def _gated(weight: Tensor, change: Tensor, gate: Tensor, own: Tensor | None, strength: Tensor) -> Tensor:
    """Return mean_i ½ λ_i ‖W + s_i W + g_i R‖² with gates g and s [m, o] and strengths [m]."""
    share = strength[:, None] if own is None else strength[:, None] * (1.0 + own)
    weighted = share * gate
    constant = 0.5 * (share if own is None else share * (1.0 + own)).mean(0)
    square = 0.5 * (strength[:, None] * gate.square()).mean(0)
    row_squares: Callable[..., Tensor] = _RowSquares.apply
    return row_squares(weight, change, constant, weighted.mean(0), square)


class _RowSquares(torch.autograd.Function):
    """Σ_r a_r ‖W_r‖² + b_r ⟨W_r, R_r⟩ + c_r ‖R_r‖² over rows r; in few passes, since they are as large as the network.

    a may be one number for all rows.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, weight: Tensor, change: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        rows, moves = weight.reshape(weight.shape[0], -1), change.reshape(change.shape[0], -1)
        before, after = (torch.linalg.vector_norm(part, dim=1).square() for part in (rows, moves))
        cross = (rows * moves).sum(1)
        ctx.save_for_backward(weight, change, a, b, c, before, cross, after)
        total: Tensor = (a * before).sum() + torch.dot(b, cross) + torch.dot(c, after)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by: Tensor) -> tuple[Tensor | None, Tensor, Tensor | None, Tensor, Tensor]:
        weight, change, a, b, c, before, cross, after = ctx.saved_tensors
        shape = (-1, *(1,) * (weight.ndim - 1))
        b_rows = (by * b).view(shape)
        of_change = torch.addcmul(weight * b_rows, change, (2.0 * by * c).view(shape))
        of_weight = None
        if ctx.needs_input_grad[0]:
            of_weight = torch.addcmul(weight * (2.0 * by * a).view(shape), change, b_rows)
        of_a = by * before if ctx.needs_input_grad[2] else None
        return of_weight, of_change, of_a, by * cross, by * after
