"""A design matrix, dense or sparse, and its products from both sides."""

import warnings
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Protocol

import numpy as np
import scipy.sparse
import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from workers.learn.errors import LearnError

_GRAM_BLOCKS = 4
"""A symmetric product by so many blocks of columns costs 62 % of the whole one; more save little and are slower."""


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
        known = self.transposed
        squares = _csr_of(known.crow_indices(), known.col_indices(), known.values().square(), tuple(known.shape))
        return squares @ r

    def gram(self, r: Tensor) -> Tensor:
        """Return Xᵀ diag(r_j) X, [m, d, d], for weights r [n, m]. Dense: for few columns.

        By blocks of columns, and only those on and above the diagonal: the others are their transposes.
        """
        gram = r.new_empty((r.shape[1], self.columns, self.columns))
        for j, weights in enumerate(r.unbind(1)):
            for i, left in enumerate(self._blocks):
                scaled = left.scaled(weights)
                for right in self._blocks[i:]:
                    product = scaled @ right.matrix
                    block = product.to_dense() if self.is_sparse else product
                    gram[j, left.start : left.end, right.start : right.end] = block
                    gram[j, right.start : right.end, left.start : left.end] = block.T
        return gram

    @cached_property
    def gram_multiplications(self) -> int:
        """Multiplications of entries that `gram` makes for one column of weights."""
        entries = torch.stack([block.entries_by_row for block in self._blocks])  # [blocks, n]
        return int((entries.flip(0).cumsum(0).flip(0) * entries).sum())

    @cached_property
    def _blocks(self) -> tuple["_Columns", ...]:
        count = _GRAM_BLOCKS if self.columns >= 8 * _GRAM_BLOCKS else 1
        edges = [self.columns * i // count for i in range(count + 1)]
        return tuple(_Columns.of(self, start, end) for start, end in pairwise(edges))

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


@dataclass(frozen=True, eq=False)
class _Columns:
    """Some neighbouring columns of a design."""

    start: int
    end: int
    matrix: Tensor
    """[n, end − start]."""
    transposed: Tensor

    @staticmethod
    def of(design: Design, start: int, end: int) -> "_Columns":
        """Return columns `start` to `end`: views if dense; a sparse matrix is cut by rows of its transpose."""
        if not design.is_sparse:
            return _Columns(start, end, design.matrix[:, start:end], design.transposed[start:end])
        starts = design.transposed.crow_indices()[start : end + 1]
        entries = slice(int(starts[0]), int(starts[-1]))
        rows, values = design.transposed.col_indices()[entries], design.transposed.values()[entries]
        columns = torch.repeat_interleave(torch.arange(end - start, device=rows.device), starts.diff())
        order = torch.argsort(rows, stable=True)
        by_row = torch.cat([starts.new_zeros(1), torch.bincount(rows, minlength=design.rows).cumsum(0)])
        return _Columns(
            start,
            end,
            _csr_of(by_row, columns[order], values[order], (design.rows, end - start)),
            _csr_of(starts - starts[0], rows, values, (end - start, design.rows)),
        )

    @property
    def entries_by_row(self) -> Tensor:
        """Number of stored entries of every row, [n]."""
        if self.matrix.layout is torch.sparse_csr:
            return self.matrix.crow_indices().diff()
        return torch.full((self.matrix.shape[0],), self.end - self.start, device=self.matrix.device)

    def scaled(self, r: Tensor) -> Tensor:
        """Return Xᵀ diag(r) for weights r [n]."""
        if self.matrix.layout is not torch.sparse_csr:
            return self.transposed * r
        rows = self.transposed.col_indices()
        values = self.transposed.values() * r[rows]
        return _csr_of(self.transposed.crow_indices(), rows, values, tuple(self.transposed.shape))


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


def _csr_of(starts: Tensor, indices: Tensor, values: Tensor, size: tuple[int, ...]) -> Tensor:
    with warnings.catch_warnings():
        _silence_sparse_notices()
        return torch.sparse_csr_tensor(starts, indices, values, size=size, check_invariants=False)


def _silence_sparse_notices() -> None:
    """Within `catch_warnings`: torch announces once that CSR is young; we test what we use of it."""
    warnings.filterwarnings("ignore", message="Sparse (CSR|invariant)", category=UserWarning)
