"""A design matrix, dense or sparse, and its products from both sides."""

import warnings
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import scipy.sparse
import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from workers.learn.errors import LearnError


@dataclass(frozen=True, eq=False)
class Design:
    """X, [n, d], with Xᵀ kept beside it when it is sparse: a CSR matrix is slow to multiply from the other side."""

    matrix: Tensor
    transposed: Tensor
    """[d, n]; a view if dense, a CSR matrix of its own if sparse."""

    @property
    def rows(self) -> int:
        """n, the number of examples."""
        return self.matrix.shape[0]

    @property
    def columns(self) -> int:
        """d, the number of features."""
        return self.matrix.shape[1]

    @property
    def is_sparse(self) -> bool:
        """Whether only entries that are not zero are stored."""
        return self.matrix.layout is torch.sparse_csr

    @property
    def entries(self) -> int:
        """Number of stored entries: half of a product's floating-point operations per column."""
        return self.matrix.values().numel() if self.is_sparse else self.matrix.numel()

    def times(self, v: Tensor) -> Tensor:
        """Return X v, [n, m], for v [d, m]; differentiable in v, twice and more."""
        product: Tensor = _Product.apply(v, self.matrix, self.transposed)  # type: ignore[no-untyped-call]
        return product

    def transposed_times(self, r: Tensor) -> Tensor:
        """Return Xᵀ r, [d, m], for r [n, m]."""
        product: Tensor = self.transposed @ r
        return product

    def squares_times(self, r: Tensor) -> Tensor:
        """Return (X ∘ X)ᵀ r, [d, m], for r [n, m]."""
        if not self.is_sparse:
            return self.transposed.square() @ r
        with warnings.catch_warnings():
            _silence_sparse_notices()
            squares = torch.sparse_csr_tensor(
                self.transposed.crow_indices(),
                self.transposed.col_indices(),
                self.transposed.values().square(),
                size=self.transposed.shape,
                check_invariants=False,
            )
        return squares @ r

    def gram(self, r: Tensor) -> Tensor:
        """Return Xᵀ diag(r_j) X, [m, d, d], for weights r [n, m]. Dense: for few columns."""
        if not self.is_sparse:
            return torch.stack([self.transposed @ (self.matrix * column[:, None]) for column in r.unbind(1)])
        return torch.stack([self._sparse_gram(column) for column in r.unbind(1)])

    @cached_property
    def entries_squared(self) -> int:
        """Sum over rows of the square of their stored entries: the multiplications of a Gram matrix."""
        if not self.is_sparse:
            return self.rows * self.columns**2
        starts = self.matrix.crow_indices()
        return int((starts[1:] - starts[:-1]).square().sum())

    def _sparse_gram(self, r: Tensor) -> Tensor:
        with warnings.catch_warnings():
            _silence_sparse_notices()
            scaled = torch.sparse_csr_tensor(
                self.transposed.crow_indices(),
                self.transposed.col_indices(),
                self.transposed.values() * r[self.transposed.col_indices()],
                size=self.transposed.shape,
                check_invariants=False,
            )
            gram = scaled @ self.matrix
        dense: Tensor = gram.to_dense()
        return dense

    def row_norms(self) -> Tensor:
        """Return the Euclidean norm of every row, [n]."""
        if not self.is_sparse:
            norms: Tensor = torch.linalg.vector_norm(self.matrix, dim=1)
            return norms
        starts = self.matrix.crow_indices().long()
        rows = torch.repeat_interleave(torch.arange(self.rows, device=starts.device), starts[1:] - starts[:-1])
        squares = self.matrix.values().square()
        sums = torch.zeros(self.rows, dtype=squares.dtype, device=squares.device)
        return sums.index_add_(0, rows, squares).sqrt()


class _Product(torch.autograd.Function):
    """v ↦ A v with Aᵀ at hand, so that the gradient is a product too and no transpose is ever made."""

    @staticmethod
    def forward(ctx: FunctionCtx, v: Tensor, matrix: Tensor, transposed: Tensor) -> Tensor:
        ctx.matrices = (matrix, transposed)  # type: ignore[attr-defined]  # constants, not saved for backward
        return matrix @ v

    @staticmethod
    def backward(ctx: FunctionCtx, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        matrix, transposed = ctx.matrices  # type: ignore[attr-defined]
        product: Tensor = _Product.apply(gradients[0], transposed, matrix)  # type: ignore[no-untyped-call]
        return product, None, None


class Array(Protocol):
    """A matrix as it comes from files: a numpy array, or any sparse format of scipy."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows and columns."""


def design(array: Array, *, dtype: torch.dtype, device: torch.device) -> Design:
    """Return the design of a numpy or scipy array [n, d], moved to the device once; sparse stays sparse.

    Raises:
        LearnError: not a matrix.
    """
    if len(array.shape) != 2:
        raise LearnError(f"a design matrix has 2 dimensions; found {len(array.shape)}")
    if isinstance(array, np.ndarray):
        matrix = torch.as_tensor(np.ascontiguousarray(array)).to(dtype=dtype, device=device)
        return Design(matrix, matrix.T)
    if not isinstance(array, scipy.sparse.sparray | scipy.sparse.spmatrix):
        raise LearnError(f"a design matrix is a numpy or a scipy array; found {type(array).__name__}")
    csr = scipy.sparse.csr_array(array)  # type: ignore[call-overload]  # the stubs leave out spmatrix
    csr.sum_duplicates()
    return Design(_csr(csr, dtype, device), _csr(csr.T.tocsr(), dtype, device))


def _csr(array: scipy.sparse.csr_array, dtype: torch.dtype, device: torch.device) -> Tensor:
    with warnings.catch_warnings():
        _silence_sparse_notices()
        return torch.sparse_csr_tensor(
            torch.as_tensor(array.indptr.astype(np.int64)),
            torch.as_tensor(array.indices.astype(np.int64)),
            torch.as_tensor(array.data),
            size=array.shape,
            check_invariants=False,  # scipy's CSR has just been made canonical
        ).to(dtype=dtype, device=device)


def _silence_sparse_notices() -> None:
    """Within `catch_warnings`: torch announces once that CSR is young; we test what we use of it."""
    warnings.filterwarnings("ignore", message="Sparse (CSR|invariant)", category=UserWarning)
