"""The objectives of a self-tuning network, with their gradients."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Final, final

import torch
from torch import Tensor
from torch.autograd import grad

from workers.learn.errors import LearnError
from workers.learn.methods.stn_penalty import ResponsePenalty
from workers.learn.methods.stn_state import Variant
from workers.learn.models.chain import by_batch, by_statistics
from workers.learn.models.responses import BestResponse
from workers.learn.noises.base import row_values
from workers.learn.noises.draws import Draws, NoiseStream
from workers.learn.problems.batches import Batch
from workers.learn.problems.network import NetworkProblem
from workers.learn.transforms import Softplus

SIGMA: Final = Softplus()
"""The transform of perturbation scales."""

_ENTROPY: Final = 0.5 * math.log(2.0 * math.pi * math.e)


@dataclass(frozen=True, eq=False)
class JointGradient:
    """A perturbed training loss, a scalar, and its gradients in w [p] and θ [q]; the statistics after it [b]."""

    value: Tensor
    w: Tensor
    response: Tensor
    buffers: Tensor


@dataclass(frozen=True, eq=False)
class StrengthGradient:
    """A validation loss, a scalar, and the gradients of it, less the entropy's part, in h and s, [h] each."""

    value: Tensor
    raw: Tensor
    scale: Tensor


@final
@dataclass(frozen=True, eq=False)
class SelfTuning:
    """A network whose weights respond to its problem's hyperparameters.

    Each row of a batch is perturbed on its own, so that one batch shows the response at as many points as it has rows;
    what a noise draws, a penalty weighs and a gate opens for a row all belong to the same perturbed values.
    """

    problem: NetworkProblem
    variant: Variant
    shared: frozenset[str]
    """Hyperparameters with one perturbation for a whole batch."""

    def __post_init__(self) -> None:
        unknown = self.shared - set(self.problem.space.names)
        if unknown:
            raise LearnError(f"there is no hyperparameter {sorted(unknown)}; found {list(self.problem.space.names)}")

    @cached_property
    def response(self) -> BestResponse:
        """The network's response."""
        return BestResponse(self.problem.chain, self.problem.space.size, has_own=self.variant is Variant.CENTERED)

    @cached_property
    def penalty(self) -> ResponsePenalty:
        """The penalties of weights that differ between rows."""
        return ResponsePenalty.of(self.problem.network, self.problem.regularizers)

    def perturbed(self, raw: Tensor, scale: Tensor, rows: int, draws: Draws) -> Tensor:
        """Return raw hyperparameters for each row, [n, h]: h + softplus(s) ε; differentiable in both."""
        noise = draws.normal((rows, raw.shape[0]), raw)
        if self.shared:
            noise = torch.where(self._shared.to(raw.device), noise[:1], noise)
        return torch.addcmul(raw, SIGMA(scale), noise)

    def joint_gradient(
        self, w: Tensor, theta: Tensor, buffers: Tensor, raw: Tensor, scale: Tensor, *, seed: int, step: int
    ) -> JointGradient:
        """Return the training loss of W(h + σε) at h + σε: what both parts of the classic variant go down.

        Args:
            w: parameters, [p].
            theta: those of the response, [q].
            buffers: statistics before the step, [b]; they see it once.
            raw: h, [h].
            scale: s, [h].
            seed: of the run.
            step: which training step.
        """
        problem, device = self.problem, w.device
        batch = problem.batch(seed, step)
        rows = self._rows(raw, scale, batch, seed=seed, step=step)
        hyper = row_values(problem.space, rows)
        draws = Draws(NoiseStream.TRAINING, seed=seed, step=step, device=device)
        leaves, fresh = problem.losses.leaves(w), buffers.clone()
        leaf = theta.detach().requires_grad_()
        responses = self.response.split(leaf)
        gates = self.response.gates(responses, self._input(rows, raw))
        outputs = problem.chain.forward(
            problem.noises.on_inputs(batch.x, hyper, draws),
            self.response.gated(leaves, responses, gates),
            by_batch(leaves, fresh),
            problem.noises.on_hidden(hyper, draws),
        )
        value = problem.losses.noisy(outputs, batch.y, problem.noises, hyper)
        penalty = self.penalty(leaves, self.response, responses, gates, hyper)
        *of_w, of_theta = grad(value + penalty, [*leaves, leaf])
        return JointGradient(value.detach(), problem.network.join(of_w), of_theta, fresh)

    def response_gradient(
        self, w: Tensor, theta: Tensor, buffers: Tensor, raw: Tensor, scale: Tensor, *, seed: int, step: int
    ) -> Tensor:
        """Return the gradient in θ, [q], of the training loss of W + R σε, to first order in R, at h + σε.

        W stays as it is, and so do the normalization statistics: this pass is not the training step's.

        Args:
            w: parameters, [p].
            theta: those of the response, [q].
            buffers: normalization statistics, [b].
            raw: h, [h].
            scale: s, [h].
            seed: of the run.
            step: which training step.
        """
        problem = self.problem
        batch = problem.batch(seed, step)
        rows = self._rows(raw, scale, batch, seed=seed, step=step)
        hyper = row_values(problem.space, rows)
        draws = Draws(NoiseStream.RESPONSE, seed=seed, step=step, device=w.device)
        parameters = problem.network.split(w)
        leaf = theta.detach().requires_grad_()
        responses = self.response.split(leaf)
        gates = self.response.gates(responses, self._input(rows, raw))
        outputs = self.response.linearised(
            problem.noises.on_inputs(batch.x, hyper, draws),
            parameters,
            responses,
            gates,
            buffers=buffers,
            between=problem.noises.on_hidden(hyper, draws),
        )
        value = problem.losses.noisy(outputs, batch.y, problem.noises, hyper)
        penalty = self.penalty(parameters, self.response, responses, gates, hyper)
        return grad(value + penalty, leaf)[0]

    def strength_gradient(
        self,
        w: Tensor,
        theta: Tensor,
        buffers: Tensor,
        raw: Tensor,
        scale: Tensor,
        rows: Batch,
        *,
        draws: Draws | None,
        entropy: float,
    ) -> StrengthGradient:
        """Return the validation loss with its gradients in h and s, through the response and nothing else.

        No penalty and no noise: hyperparameters that only act in training have no other way to it.

        Args:
            w: parameters, [p].
            theta: those of the response, [q].
            buffers: normalization statistics, [b].
            raw: h, [h].
            scale: s, [h].
            rows: validation rows.
            draws: of the perturbations, for a scale that is learned; None to stay at h itself.
            entropy: τ, what the perturbations' entropy is worth.
        """
        at, spread = raw.detach().requires_grad_(), scale.detach().requires_grad_()
        points = at[None] if draws is None else self.perturbed(at, spread, rows.rows, draws)
        parameters, responses = self.problem.network.split(w), self.response.split(theta)
        gates = self.response.gates(responses, self._input(points, raw))
        outputs = self.problem.chain.forward(
            rows.x, self.response.gated(parameters, responses, gates), by_statistics(parameters, buffers), None
        )
        value = self.problem.losses.of(outputs, rows.y)
        if draws is None:
            return StrengthGradient(value.detach(), grad(value, at)[0], torch.zeros_like(scale))
        of_raw, of_scale = grad(value - entropy * entropy_of(spread), [at, spread])
        return StrengthGradient(value.detach(), of_raw, of_scale)

    def weights(self, w: Tensor, theta: Tensor, raw: Tensor, at: Tensor) -> Tensor:
        """Return the network's parameters, [p], at hyperparameters `at` [h], with the response centred on `raw` [h]."""
        return self.response.weights_at(w, theta, self._input(at[None], raw)[0])

    def _rows(self, raw: Tensor, scale: Tensor, batch: Batch, *, seed: int, step: int) -> Tensor:
        draws = Draws(NoiseStream.PERTURBATION, seed=seed, step=step, device=raw.device)
        return self.perturbed(raw, scale, batch.rows, draws)

    def _input(self, rows: Tensor, raw: Tensor) -> Tensor:
        match self.variant:
            case Variant.CLASSIC:
                return rows
            case Variant.CENTERED:
                return rows - raw.detach()

    @cached_property
    def _shared(self) -> Tensor:
        blocks = self.problem.space.blocks
        return torch.cat([torch.full((block.size,), block.name in self.shared) for block in blocks])


def entropy_of(scale: Tensor) -> Tensor:
    """Return Σ_j log(σ_j √(2πe)), the entropy of Gaussian perturbations, a scalar."""
    return SIGMA(scale).log().sum() + scale.shape[0] * _ENTROPY
