"""What every strategy does before its first product and after its last."""

import math

import torch
from torch import Tensor

from workers.learn.errors import LearnError
from workers.learn.linear.base import LinearSolution, MatVec, Outcome


def check_vectors(b: Tensor, x0: Tensor | None) -> None:
    """Refuse what is not a flat vector of floats, [p], with a warm start of the same size or none.

    Raises:
        LearnError: with the shapes that were found.
    """
    if b.ndim != 1 or not b.is_floating_point():
        raise LearnError(f"the right-hand side is a {b.dtype} of shape {tuple(b.shape)}; expected floats [p]")
    if x0 is not None and x0.shape != b.shape:
        raise LearnError(f"the warm start has shape {tuple(x0.shape)}; expected {tuple(b.shape)}")


def norm(v: Tensor) -> float:
    """‖v‖₂ without under- or overflow of the squares; infinite if an entry is not finite."""
    if v.numel() == 0:
        return 0.0
    peak = float(v.detach().abs().max())
    if peak == 0.0:
        return 0.0
    if not math.isfinite(peak):
        return math.inf
    return peak * float(torch.linalg.vector_norm(v.detach() / peak))


def without_iterating(b: Tensor, scale: float) -> LinearSolution | None:
    """The answer where ‖b‖ = `scale` leaves nothing to solve: 0 for b = 0, and a failure for b not finite."""
    if scale == 0.0:
        return LinearSolution(torch.zeros_like(b), 0.0, 0, Outcome.CONVERGED)
    if not math.isfinite(scale):
        return LinearSolution(torch.zeros_like(b), math.inf, 0, Outcome.DIVERGED)
    return None


def damped(matvec: MatVec, damping: float) -> MatVec:
    """Return v ↦ H v + `damping` v: what makes a Hessian of a network positive definite, or nearly."""
    if damping == 0.0:
        return matvec
    return lambda v: torch.add(matvec(v), v, alpha=damping)


def sync_stride(v: Tensor) -> int:
    """Iterations between two looks at the residual: each look stalls an accelerator, and costs a CPU nothing."""
    return 1 if v.device.type == "cpu" else 8


def columns(matvec: MatVec, indices: Tensor, like: Tensor, *, chunk: int) -> Tensor:
    """H[:, indices], [p, r], by `chunk` products at a time with unit vectors.

    A chunk is one call of the operator under `torch.func.vmap`; an operator that cannot be batched (an in-place
    operation, a custom function, a tensor that leaves torch) is called once a column.
    """
    parts = []
    batched = True
    for some in torch.split(indices, chunk):
        units = torch.zeros(len(some), len(like), dtype=like.dtype, device=like.device)
        units[torch.arange(len(some), device=like.device), some] = 1.0
        if batched:
            try:
                parts.append(torch.func.vmap(matvec)(units).detach())
                continue
            except (RuntimeError, ValueError, TypeError):  # an error that is not vmap's is met again below
                batched = False
        parts.append(torch.stack([matvec(unit).detach() for unit in units]))
    return torch.cat(parts).T
