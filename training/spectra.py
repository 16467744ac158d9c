"""Batched truncated SVD through Gram matrices: projections onto low rank and sub-gradients of the nuclear norm.

One eigendecomposition of the smaller Gram matrix in float64 gives the singular values and one side's vectors;
the other side follows by products. Several times cheaper than a full SVD of each layer. Where weights moved little
since, `follow` renews the leading part alone. Shapes: b matrices of rows x columns, s = min(rows, columns).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Squared singular values below this share of the largest are noise of the method, in float64.
_NOISE = torch.finfo(torch.float64).eps


@dataclass(frozen=True, slots=True)
class Spectrum:
    """`values` (b, k), descending, and `basis` (b, s, k): singular vectors of the smaller side, as columns.

    k is s, or the rank that was followed.
    """

    values: Tensor
    basis: Tensor


def spectrum(matrices: Tensor) -> Spectrum:
    """Singular values and the smaller side's vectors of each matrix (b, rows, columns), in float64."""
    small = _wide(matrices).double()
    squares, vectors = torch.linalg.eigh(small @ small.mT)
    squares = squares.flip(-1)
    floor = squares[:, :1] * _NOISE * squares.shape[1]
    return Spectrum(torch.where(squares > floor, squares, 0.0).sqrt(), vectors.flip(-1))


def follow(matrices: Tensor, known: Spectrum, rank: int) -> Spectrum | None:
    """The leading `rank` of the spectrum from that of a moment ago: one block power step, one small eigenproblem.

    After a projection and one step of training what lies beyond the rank is as small as the step, so the angle to
    the true space shrinks by the square of (step / smallest kept singular value). None where that is not so: the
    old basis has not kept its rank.
    """
    small, basis, values = _wide(matrices), known.basis[..., :rank], known.values[..., :rank]
    if not bool((values > 0).all()):
        return None
    scaled = (basis / values[:, None, :].square()).to(small.dtype)
    image = small @ (small.mT @ scaled)  # W W^T B / values^2: B itself, had nothing moved, so its columns are tame.
    lower, failed = torch.linalg.cholesky_ex(image.mT @ image)
    if bool(failed.any()):
        return None
    orthonormal = torch.linalg.solve_triangular(lower, image.mT, upper=False).mT
    coordinates = orthonormal.mT @ small
    squares, rotation = torch.linalg.eigh((coordinates @ coordinates.mT).double())
    turned = orthonormal.double() @ rotation.flip(-1)
    return Spectrum(squares.flip(-1).clamp_min(0).sqrt(), turned)


def truncate(matrices: Tensor, known: Spectrum, ranks: Tensor) -> Tensor:
    """Best approximation of each matrix at its rank (b,), Eckart-Young: D of the TRP paper, equation 3."""
    return truncate_and_pull(matrices, known, ranks)[0]


def nuclear_subgradient(matrices: Tensor, known: Spectrum, ranks: Tensor) -> Tensor:
    """U_r V_r^T of each matrix at its rank (b,): a sub-gradient of the nuclear norm at its truncation.

    The free part, orthogonal to both spaces, is zero (Watson 1992). Directions without energy are left out.
    """
    return truncate_and_pull(matrices, known, ranks)[1]


def truncate_and_pull(matrices: Tensor, known: Spectrum, ranks: Tensor) -> tuple[Tensor, Tensor]:
    """Both of the above from one product: the coordinates of each matrix in its leading singular vectors."""
    top = int(ranks.max())
    values, basis = known.values[:, :top], known.basis[..., :top].to(matrices.dtype)
    kept = torch.arange(top, device=ranks.device) < ranks[:, None]
    inverse = torch.where(kept & (values > 0), 1 / values.clamp_min(torch.finfo(torch.float64).tiny), 0.0)
    small = _wide(matrices)
    coordinates = basis.mT @ small
    low = (basis * kept.to(basis.dtype)[:, None, :]) @ coordinates
    pull = (basis * inverse.to(basis.dtype)[:, None, :]) @ coordinates
    return (low, pull) if small is matrices else (low.mT, pull.mT)


def _wide(matrices: Tensor) -> Tensor:
    return matrices if matrices.shape[1] <= matrices.shape[2] else matrices.mT
