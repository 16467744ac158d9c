"""Batched truncated SVD through Gram matrices: projections onto low rank and sub-gradients of the nuclear norm.

One eigendecomposition of the smaller Gram matrix in float64 gives the singular values and one side's vectors;
all else is a product of a small square matrix with the matrix itself. Shapes: b matrices of rows x columns,
s = min(rows, columns). Several times cheaper than a full SVD of each layer.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Squared singular values below this share of the largest are noise of the method, in float64.
_NOISE = torch.finfo(torch.float64).eps


@dataclass(frozen=True, slots=True)
class Spectrum:
    """`values` (b, s), descending, and `basis` (b, s, s): singular vectors of the smaller side, as columns."""

    values: Tensor
    basis: Tensor


def spectrum(matrices: Tensor) -> Spectrum:
    """Singular values and the smaller side's vectors of each matrix (b, rows, columns), in float64."""
    small = _wide(matrices).double()
    squares, vectors = torch.linalg.eigh(small @ small.mT)
    squares = squares.flip(-1)
    floor = squares[:, :1] * _NOISE * squares.shape[1]
    return Spectrum(torch.where(squares > floor, squares, 0.0).sqrt(), vectors.flip(-1))


def truncate(matrices: Tensor, known: Spectrum, ranks: Tensor) -> Tensor:
    """Best approximation of each matrix at its rank (b,), Eckart-Young: D of the TRP paper, equation 3."""
    return _apply(matrices, known, _kept(known, ranks).to(known.values.dtype))


def nuclear_subgradient(matrices: Tensor, known: Spectrum, ranks: Tensor) -> Tensor:
    """U_r V_r^T of each matrix at its rank (b,): a sub-gradient of the nuclear norm at its truncation.

    The free part, orthogonal to both spaces, is zero (Watson 1992). Directions without energy are left out.
    """
    usable = _kept(known, ranks) & (known.values > 0)
    weights = torch.where(usable, 1.0 / known.values.clamp_min(torch.finfo(torch.float64).tiny), 0.0)
    return _apply(matrices, known, weights)


def _kept(known: Spectrum, ranks: Tensor) -> Tensor:
    return torch.arange(known.values.shape[1], device=ranks.device) < ranks[:, None]


def _apply(matrices: Tensor, known: Spectrum, weights: Tensor) -> Tensor:
    """basis diag(weights) basis^T, applied on the smaller side of each matrix."""
    operator = ((known.basis * weights[:, None, :]) @ known.basis.mT).to(matrices.dtype)
    return operator @ matrices if matrices.shape[1] <= matrices.shape[2] else matrices @ operator


def _wide(matrices: Tensor) -> Tensor:
    return matrices if matrices.shape[1] <= matrices.shape[2] else matrices.mT
