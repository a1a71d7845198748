"""Best-response networks: weights as a function of hyperparameters, a gate for each output of each linear map.

For d in R^h, the input of the response, a map with weight W [o, …] and bias b [o] becomes

    W(d) = W + diag(V d) R,    b(d) = b + (C d) ∘ r,

with response weights R [o, …], r [o] and gates V, C [o, h]. Scaling rows is scaling outputs, so that every example of a
batch can have a d of its own for two products instead of one, and no weight is ever made for a single example:

    y_i = W x_i + b + (V d_i) ∘ (R x_i) + (C d_i) ∘ r.

Normalizations do not respond. A response can have own gates besides, S [o, h], for the rows of W itself:

    W(d) = W + diag(S d) W + diag(V d) R,

for no further product, since W x_i is there. What a stronger penalty does first is to shrink weights, and R would have
to become a copy of W to say so. On a network that had begun to overfit, the cosine between the hypergradient of nine
strengths by the response and by training on for eight passes rose from 0.49 to 0.80.

Source: MacKay et al. (2019), "Self-tuning networks"; without the learned scalar that their code multiplies W x + b by.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import final

import torch
from torch import Tensor, nn
from torch.autograd import grad
from torch.func import jvp
from torch.nn import functional

from workers.learn.models.chain import Between, Chain, LinearMap, Stage, by_statistics, scaled, weights_of

_CLASSIC_GATE_STD = 0.01


@dataclass(frozen=True, eq=False)
class MapResponse:
    """How one linear map responds: R and r, of the shapes of its weight and its bias."""

    weight: Tensor
    bias: Tensor | None


@dataclass(frozen=True, eq=False)
class Responses:
    """The parameters of a response in their shapes."""

    maps: tuple[MapResponse, ...]
    gates: Tensor
    """V and C of all maps, one after the other, [g, h]: one product makes all gates."""


@dataclass(frozen=True, eq=False)
class Gate:
    """V d and C d of one map, [m, o]; m is the number of examples, or 1 for all alike."""

    weight: Tensor
    own: Tensor | None
    """S d, [m, o]."""
    bias: Tensor | None


Gates = tuple[Gate, ...]


@final
@dataclass(frozen=True, eq=False)
class BestResponse:
    """The response of a network to h numbers, as pure functions of one flat vector θ [q] beside the network's w [p]."""

    chain: Chain
    inputs: int
    """h."""
    has_own: bool
    """Whether there are own gates."""

    @cached_property
    def shapes(self) -> tuple[torch.Size, ...]:
        """Shapes of the parameters in θ: R and r of each map, and then all gates."""
        slots = self.chain.network.slots
        shapes = [torch.Size(slots[place].shape) for stage in self.chain.maps for place in stage.slots]
        return (*shapes, torch.Size((sum(self._gate_sizes), self.inputs)))

    @cached_property
    def sizes(self) -> list[int]:
        """Numbers of each parameter in θ."""
        return [shape.numel() for shape in self.shapes]

    @property
    def size(self) -> int:
        """q, the length of θ."""
        return sum(self.sizes)

    def initial(self, seed: int, *, is_zero: bool, like: Tensor) -> Tensor:
        """Return a start for θ, [q]: R and r uniform within ±1/√fan-in, gates zero or small Gaussian numbers.

        With `is_zero` the response is exactly zero, and learning begins with the gates.
        """
        generator = torch.Generator().manual_seed(seed)
        parts = []
        for stage in self.chain.maps:
            shapes = [self.chain.network.slots[place].shape for place in stage.slots]
            reach = torch.Size(shapes[0][1:]).numel() ** -0.5
            parts += [
                (2.0 * torch.rand(torch.Size(shape).numel(), generator=generator, dtype=torch.float64) - 1.0) * reach
                for shape in shapes
            ]
        gates = torch.randn(self.sizes[-1], generator=generator, dtype=torch.float64)
        parts.append(gates * (0.0 if is_zero else _CLASSIC_GATE_STD))
        return torch.cat(parts).to(dtype=like.dtype, device=like.device)

    def split(self, theta: Tensor) -> Responses:
        """Return views of θ [q] by what they are for."""
        *parts, gates = (
            part.view(shape) for part, shape in zip(torch.split(theta, self.sizes), self.shapes, strict=True)
        )
        maps, at = [], 0
        for stage in self.chain.maps:
            bias = parts[at + 1] if len(stage.slots) > 1 else None
            maps.append(MapResponse(parts[at], bias))
            at += len(stage.slots)
        return Responses(tuple(maps), gates)

    def gates(self, responses: Responses, d: Tensor) -> Gates:
        """Return the gates of all maps at d [m, h]."""
        parts = iter(torch.split(functional.linear(d, responses.gates), self._gate_sizes, dim=1))
        return tuple(
            Gate(next(parts), next(parts) if self.has_own else None, next(parts) if len(stage.slots) > 1 else None)
            for stage in self.chain.maps
        )

    def gated(self, parameters: Sequence[Tensor], responses: Responses, gates: Gates) -> LinearMap:
        """Return the linear maps of W(d): for one d, those weights themselves; else two products each."""
        if gates[0].weight.shape[0] == 1:
            at = [
                _moved(stage, parameters, response, gate)
                for stage, response, gate in zip(self.chain.maps, responses.maps, gates, strict=True)
            ]
            return lambda stage, x: stage.apply(x, *at[stage.layer])

        def linear(stage: Stage, x: Tensor) -> Tensor:
            output, change = _responding(stage, x, parameters, responses, gates)
            return output + change

        return linear

    def linearised(
        self,
        x: Tensor,
        parameters: Sequence[Tensor],
        responses: Responses,
        gates: Gates,
        *,
        buffers: Tensor,
        between: Between | None,
    ) -> Tensor:
        """Return f(x; w) + ∂_w f · (change of w by the gates), [n, c]: outputs to first order in the response.

        A forward derivative, step by step, into which each map puts what its gates change. To hand the gated network
        as a whole to `torch.func.jvp` at d = 0 gives the same for twice the products, since nothing tells it that
        gates of zero make all of them vanish but one.

        Args:
            x: rows, [n, d].
            parameters: a tensor for each slot, constant: derivatives are those of the response alone.
            responses: the response's parameters.
            gates: at which d.
            buffers: normalization statistics, [b]; those of the batch would couple examples with different weights.
            between: noise on hidden layers; one draw for outputs and derivative.

        Source: Bae & Grosse (2020), "Delta-STN".
        """
        normalize = by_statistics(parameters, buffers)
        value, tangent = x, None
        for stage in self.chain.stages:
            if stage.is_map:
                if between is not None and tangent is not None:
                    factor = between(value, stage.layer - 1)
                    value, tangent = value * factor, tangent * factor
                output, change = _responding(stage, value, parameters, responses, gates)
                if tangent is not None:
                    change = change + stage.apply(tangent, weights_of(stage, parameters)[0], None)
                value, tangent = output, change
            elif tangent is None:
                value = stage.module(value)
            elif stage.is_normalization:
                value, tangent = _normalised(stage, normalize, parameters, buffers, value, tangent)
            else:
                value, tangent = _pushed(stage.module, value, tangent)
        return value if tangent is None else value + tangent

    def weights_at(self, w: Tensor, theta: Tensor, d: Tensor) -> Tensor:
        """Return the network's parameters, [p], for one d [h]."""
        parameters, responses = self.chain.network.split(w), self.split(theta)
        gates = self.gates(responses, d[None])
        moved = list(parameters)
        for stage, response, gate in zip(self.chain.maps, responses.maps, gates, strict=True):
            for place, part in zip(stage.slots, _moved(stage, parameters, response, gate), strict=False):
                assert part is not None  # noqa: S101 (as many parts as slots)
                moved[place] = part
        return self.chain.network.join(moved)

    @cached_property
    def _gate_sizes(self) -> list[int]:
        outputs = [(self.chain.network.slots[stage.slots[0]].shape[0], len(stage.slots)) for stage in self.chain.maps]
        return [size for size, kinds in outputs for _ in range(kinds + self.has_own)]


def _responding(
    stage: Stage, x: Tensor, parameters: Sequence[Tensor], responses: Responses, gates: Gates
) -> tuple[Tensor, Tensor]:
    """Return W x + b, and (V d) ∘ (R x) + (S d) ∘ (W x) + (C d) ∘ r for the gates of each example."""
    weight, bias = weights_of(stage, parameters)
    response, gate = responses.maps[stage.layer], gates[stage.layer]
    output, moved = stage.apply(x, weight, bias), stage.apply(x, response.weight, None)
    # What is alike for all places of an image is put together first: outputs are large, and each pass over them counts.
    shift: Tensor | None = None
    if gate.bias is not None and response.bias is not None:
        shift = gate.bias * response.bias
    if gate.own is not None and bias is not None:
        less = gate.own * bias
        shift = -less if shift is None else shift - less
    by = stage.over_outputs(gate.weight)
    change = by * moved if shift is None else torch.addcmul(stage.over_outputs(shift), by, moved)
    if gate.own is not None:
        change = torch.addcmul(change, stage.over_outputs(gate.own), output)
    return output, change


def _moved(
    stage: Stage, parameters: Sequence[Tensor], response: MapResponse, gate: Gate
) -> tuple[Tensor, Tensor | None]:
    weight, bias = weights_of(stage, parameters)
    rows = gate.weight[0].view(-1, *(1,) * (weight.ndim - 1))
    moved = torch.addcmul(weight, rows, response.weight)
    if gate.own is not None:
        moved = torch.addcmul(moved, gate.own[0].view(rows.shape), weight)
    if bias is None or gate.bias is None or response.bias is None:
        return moved, bias
    return moved, torch.addcmul(bias, gate.bias[0], response.bias)


def _pushed(step: Callable[[Tensor], Tensor], value: Tensor, tangent: Tensor) -> tuple[Tensor, Tensor]:
    """Return the step's output and its derivative along the tangent."""
    match step:
        # The commonest steps by hand: `jvp` takes longer to begin than they take.
        case nn.ReLU():
            output = functional.relu(value)
            return output, tangent * output.sign()  # many times faster than `torch.where`
        case nn.Tanh() | nn.GELU() | nn.SiLU():
            with torch.enable_grad():
                leaf = value.detach().requires_grad_()
                output = step(leaf)
                # A diagonal Jacobian is its own transpose.
                return output.detach(), grad(output, leaf, tangent, create_graph=True)[0]
        case nn.Flatten():
            return step(value), step(tangent)
        case nn.MaxPool2d():
            pooled, places = functional.max_pool2d(
                value, step.kernel_size, step.stride, step.padding, step.dilation, step.ceil_mode, return_indices=True
            )
            return pooled, tangent.flatten(2).gather(2, places.flatten(2)).view_as(pooled)
        case _:
            found = jvp(step, (value,), (tangent,))
            return found[0], found[1]


def _normalised(
    stage: Stage, normalize: LinearMap, parameters: Sequence[Tensor], buffers: Tensor, value: Tensor, tangent: Tensor
) -> tuple[Tensor, Tensor]:
    """Return what a normalization makes of a value, and its derivative along the tangent."""
    output = normalize(stage, value)
    match stage.module:
        case nn.LayerNorm() as norm:
            axes = tuple(range(-len(norm.normalized_shape), 0))
            center = value - value.mean(axes, keepdim=True)
            inverse = (center.square().mean(axes, keepdim=True) + norm.eps).rsqrt()
            unit = center * inverse
            along = tangent - tangent.mean(axes, keepdim=True) - unit * (unit * tangent).mean(axes, keepdim=True)
            moved = along * inverse
            return output, moved if not stage.slots else moved * parameters[stage.slots[0]]
        case _:
            return output, scaled(stage, tangent, parameters, buffers)
