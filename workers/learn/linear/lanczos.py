"""Eigenvalues from a Krylov space."""

import torch
from torch import Tensor

from workers.learn.linear.base import MatVec


def ritz_values(matvec: MatVec, start: Tensor, *, steps: int) -> Tensor:
    """Return the eigenvalues of H compressed to a Krylov space, ascending, one for each product spent.

    They lie between the extreme eigenvalues of H, which they approach from inside: the smallest is an estimate of
    λ_min(H), and never a proven lower bound. The basis is orthogonalised in full: for few steps.

    Args:
        matvec: v ↦ H v, [p] to [p]; H symmetric.
        start: the first vector, [p]; ones if it is zero.
        steps: at most so many products.

    Source: Lanczos (1950); Golub & Van Loan (2013), section 10.1.
    """
    size = torch.linalg.vector_norm(start)
    v = start / size if bool(size > 0) else torch.ones_like(start) / start.numel() ** 0.5
    basis, diagonal, beside = [v], [], []
    for step in range(1, min(steps, start.numel()) + 1):
        product = matvec(v).detach()
        diagonal.append(torch.dot(v, product))
        space = torch.stack(basis)
        for _ in range(2):  # once is not enough where H v lies nearly in the space
            product = product - space.T @ (space @ product)
        length = torch.linalg.vector_norm(product)
        if step == min(steps, start.numel()) or bool(length <= 1e-10 * torch.stack(diagonal).abs().max()):
            break
        v = product / length
        basis.append(v)
        beside.append(length)
    T = torch.diag(torch.stack(diagonal))
    if beside:
        off = torch.stack(beside)
        T = T + torch.diag(off, 1) + torch.diag(off, -1)
    values: Tensor = torch.linalg.eigvalsh(T)
    return values
