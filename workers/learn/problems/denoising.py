"""Images without noise as minimisers of a penalty that is learned."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import final

import torch
from torch import Tensor

from workers.learn.cost import Cost
from workers.learn.errors import LearnError
from workers.learn.hyperparameters import Hyper, HyperparameterSpace
from workers.learn.image_quality import quality
from workers.learn.inner.base import AbstractInnerSolver
from workers.learn.oracle import AbstractOracle
from workers.learn.problem import AbstractBilevelProblem, Part
from workers.learn.problems.denoising_oracle import DenoisingOracle
from workers.learn.regularizers.image import AbstractImageRegularizer, learned


@final
@dataclass(frozen=True, eq=False)
class DenoisingProblem(AbstractBilevelProblem):
    """n pairs of a noisy image y and a true one t, and a penalty R(x; hyper) whose every number may be learned.

    inner(w) = (1/n) Σ_i [½ ‖x_i − y_i‖² + R(x_i; hyper)],   outer(w) = (1/n) Σ_i ½ ‖x_i − t_i‖²,

    where w, [p], is all denoised images one after another. Norms are sums over pixels, so that strengths do not
    depend on the size of the images nor on their number.

    Nothing but hyperparameters carries over from one image to another. So there is no training part beside a
    validation part: all pairs serve the outer loss, and images held out for testing are denoised for themselves,
    see `denoise`. As parts, TRAIN asks how well x fits what the inner loss knows, y, and VALID how well it fits t.

    Source: Salehi et al. (2023), section 4.2; Kunisch & Pock (2013).
    """

    noisy: Tensor
    """y, [n, c, h, w], about in 0 … 1; its dtype and device are those of the whole run."""
    truth: Tensor
    """t, of the same shape."""
    regularizer: AbstractImageRegularizer

    def __post_init__(self) -> None:
        if self.noisy.ndim != 4 or self.noisy.shape != self.truth.shape or self.noisy.numel() == 0:
            raise LearnError(
                f"expected noisy and true images [n, c, h, w]; found {tuple(self.noisy.shape)} and "
                f"{tuple(self.truth.shape)}"
            )

    @cached_property
    def space(self) -> HyperparameterSpace:
        """The quantities of the penalty that are not fixed."""
        return HyperparameterSpace(tuple(quantity.hyperparameter() for quantity in learned(self.regularizer)))

    def initial_weights(self, seed: int) -> Tensor:  # noqa: ARG002 (the inner problem is convex)
        """Return the noisy images, [p]: the solution does not depend on the start."""
        return self.noisy.reshape(-1)

    def inner_loss(self, w: Tensor, hyper: Hyper) -> Tensor:
        """See `AbstractBilevelProblem.inner_loss`."""
        x = self.images(w)
        return (0.5 * (x - self.noisy).square().sum() + self.regularizer(x, hyper)) / self.noisy.shape[0]

    def outer_loss(self, w: Tensor, hyper: Hyper) -> Tensor:  # noqa: ARG002 (no penalty in it)
        """See `AbstractBilevelProblem.outer_loss`."""
        return 0.5 * (self.images(w) - self.truth).square().sum() / self.noisy.shape[0]

    def oracle(self) -> AbstractOracle:
        """Return the closed forms."""
        return DenoisingOracle(self.noisy, self.truth, self.regularizer, self.space)

    def parts(self) -> frozenset[Part]:
        """Return train and valid: see the class."""
        return frozenset({Part.TRAIN, Part.VALID})

    def evaluate(self, w: Tensor, part: Part) -> dict[str, float]:
        """Return `loss`, for TRAIN (1/n) Σ ½ ‖x − y‖² and for VALID the outer loss, and the `psnr` and `ssim` of x."""
        if part not in self.parts():
            raise LearnError(f"no images of the part {part} in this problem; make another of them and solve it")
        x = self.images(w)
        aim = self.noisy if part is Part.TRAIN else self.truth
        loss = 0.5 * (x - aim).square().sum(dtype=torch.float64) / x.shape[0]
        return {"loss": float(loss), **quality(x, self.truth)}

    def named_weights(self, w: Tensor) -> dict[str, Tensor]:
        """Return `images`, [n, c, h, w]."""
        return {"images": self.images(w)}

    def images(self, w: Tensor) -> Tensor:
        """Return w as images, [n, c, h, w]."""
        return w.reshape(self.noisy.shape)


@dataclass(frozen=True, eq=False)
class Denoised:
    """What the learned penalty makes of images."""

    images: Tensor
    """[n, c, h, w]."""
    error: float
    """Proven bound on the root mean square, over pixels, of the distance to the exact minimisers.

    Proven up to the rounding of the dtype.
    """
    converged: bool
    cost: Cost


def denoise(
    problem: DenoisingProblem, raw: Tensor, images: Tensor, *, inner: AbstractInnerSolver, tol: float, batch: int
) -> Denoised:
    """Return argmin_x ½ ‖x − y‖² + R(x) for each y of `images`, of any size, with the penalty of a problem.

    Args:
        problem: whose penalty is taken.
        raw: its hyperparameters, [h].
        images: noisy, [n, c, h, w], of the problem's dtype and device.
        inner: solver of the inner problem.
        tol: bound to reach on the root mean square error, in units of the images. The inner loss of n images is
            1/n-strongly convex, so n ‖gradient‖ bounds the distance to the minimiser.
        batch: how many images are denoised at a time: a matter of memory.
    """
    found, errors, cost, converged = [], 0.0, Cost(), True
    for chunk in torch.split(images, batch):
        part = replace(problem, noisy=chunk, truth=chunk)
        count, pixels = chunk.shape[0], chunk.numel()
        solution = inner.solve(part.oracle(), raw, part.initial_weights(0), tol=tol * pixels**0.5 / count)
        found.append(part.images(solution.w))
        errors += (count * solution.gradient_norm) ** 2
        cost += solution.cost
        converged = converged and solution.converged
    return Denoised(torch.cat(found), (errors / images.numel()) ** 0.5, converged, cost)
