"""Truncated SVD of a kernel under a scheme, and the energy that each rank keeps.

Singular values come from the Gram matrix of the smaller side in float64: many times faster than a full
SVD of an n x (c kh kw) matrix, and accurate to about 1e-8 of the largest one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trp_export.lowrank.schemes import Array, Scheme, fold, fold_pair, unfold
from trp_export.lowrank.unlocked import add_gram, eigenvalues, largest_eigenvectors

Float64 = NDArray[np.float64]
_CHUNK_BYTES = 64 * 2**20
# Above this side of a Gram matrix its decomposition takes its place in memory, and factors have the kernel's precision.
_LARGE = 2048


@dataclass(frozen=True, slots=True)
class Factors:
    """The kernels of a factor pair: `reduce` (middle, c, *k) and `expand` (n, r, *k)."""

    reduce: Array
    expand: Array


def spectrum(kernel: Array, scheme: Scheme, group: int) -> Float64:
    """Singular values, descending, of every unfolded matrix: (matrices, full rank)."""
    return np.asarray(np.sqrt(_gram_eigenvalues(unfold(kernel, scheme, group))))


def kept_energy(singular_values: Float64) -> Float64:
    """Share of the sum of squares that each rank keeps, over all matrices: (full rank,), the last is 1.

    The sum starts at the small end, so that ranks that differ by little stay distinct.
    """
    squares = np.sum(singular_values**2, axis=0)
    total = squares.sum()
    if total == 0:
        return np.ones_like(squares)
    lost = np.append(np.cumsum(squares[::-1])[::-1][1:], 0.0)
    return np.asarray(1.0 - lost / total)


def factorise(kernel: Array, scheme: Scheme, group: int, rank: int) -> Factors:
    """The best pair of a rank in the Frobenius norm (Eckart-Young), balanced.

    Each side carries the square root of the singular values, which keeps both in the range of fp16 and int8.
    """
    left, right = _truncated_svd(unfold(kernel, scheme, group), rank)
    reduce, expand = fold_pair(left, right, scheme, kernel.shape, group)
    return Factors(np.ascontiguousarray(reduce), np.ascontiguousarray(expand))


def product(factors: Factors, scheme: Scheme, kernel_shape: Sequence[int], group: int) -> Float64:
    """The dense kernel (n, c/group, *k) that equals a pair."""
    return np.asarray(stored_product(factors, scheme, kernel_shape, group), dtype=np.float64)


def stored_product(factors: Factors, scheme: Scheme, kernel_shape: Sequence[int], group: int) -> Array:
    """The dense kernel (n, c/group, *k) that equals a pair, in the precision of the factors."""
    slices_in, slices_out = scheme.slices(kernel_shape, group)
    matrices = group * slices_in * slices_out
    rank = factors.reduce.shape[0] // matrices
    left = np.swapaxes(factors.reduce.reshape(matrices, rank, -1), 1, 2)
    out_channels = kernel_shape[0] // (group * slices_out)
    columns = factors.expand.reshape(group * slices_out, out_channels, slices_in * rank, -1)
    right = np.swapaxes(columns, 1, 2).reshape(matrices, rank, -1)
    return fold(left @ right, scheme, kernel_shape, group)


def _truncated_svd(matrices: Array, rank: int) -> tuple[Array, Array]:
    """(matrices, rows, columns) -> (matrices, rows, r), (matrices, r, columns)."""
    count, rows, columns = matrices.shape
    dtype = matrices.dtype if min(rows, columns) > _LARGE else np.dtype(np.float64)
    # In memory as the kernels of the pair are, so that `fold_pair` need not copy them.
    left = np.empty((count, rank, rows), dtype).swapaxes(1, 2)
    right = np.empty((count, columns, rank), dtype).swapaxes(1, 2)
    for index, matrix in enumerate(matrices):
        wide = rows <= columns
        small, near, far = (matrix, left[index], right[index]) if wide else (matrix.T, right[index].T, left[index].T)
        values, basis = _largest_eigenvectors(_gram(small), rank)
        root = np.maximum(values, 0.0) ** 0.25
        scale = np.divide(1.0, root, out=np.zeros_like(root), where=root > 0)
        for part in _slices(small):
            far[:, part] = (basis.T @ small[:, part]) * scale[:, None]
        np.multiply(basis, root, out=near, casting="same_kind")
    return left, right


def _largest_eigenvectors(gram: Float64, rank: int) -> tuple[Float64, Float64]:
    """The `rank` largest eigenvalues, descending, and their vectors as columns. A large matrix is overwritten."""
    if len(gram) > _LARGE:
        values, vectors = largest_eigenvectors(gram, rank)
    else:
        values, vectors = np.linalg.eigh(gram)
    return values[::-1][:rank], vectors[:, ::-1][:, :rank]


def _gram_eigenvalues(matrices: Array) -> Float64:
    """Squared singular values, descending; values below the noise of the method are zero."""
    rows, columns = matrices.shape[1:]
    small = matrices if rows <= columns else np.swapaxes(matrices, 1, 2)
    if min(rows, columns) > _LARGE:
        values = np.stack([eigenvalues(_gram(matrix)) for matrix in small])
    else:
        values = np.linalg.eigvalsh(np.stack([_gram(matrix) for matrix in small]))
    values = values[:, ::-1]
    floor = values[:, :1] * np.finfo(np.float64).eps * values.shape[1]
    return np.where(values > floor, values, 0.0)


def _gram(matrix: Array) -> Float64:
    """matrix @ matrix.T in float64, by slices of columns, so that no float64 copy of the whole matrix is made.

    Of a large one only the lower triangle is filled.
    """
    rows = len(matrix)
    total = np.zeros((rows, rows), order="F")
    for columns in _slices(matrix):
        part = matrix[:, columns].astype(np.float64, order="F")
        if rows > _LARGE:
            add_gram(total, part)
        else:
            total += part @ part.T
    return total


def _slices(matrix: Array) -> Iterator[slice]:
    """The columns of a matrix in pieces of some bytes."""
    rows, columns = matrix.shape
    width = max(1, _CHUNK_BYTES // (8 * rows))
    for start in range(0, columns, width):
        yield slice(start, start + width)
