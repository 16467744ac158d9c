"""Batched truncated SVD through Gram matrices: projections onto low rank and sub-gradients of the nuclear norm.

One eigendecomposition of the smaller Gram matrix in float64 gives the singular values and one side's vectors;
the other side follows by products. Several times cheaper than a full SVD of each layer. Where weights moved little
since, `follow` renews the leading part alone. Shapes: b matrices of rows x columns, s = min(rows, columns),
l = max(rows, columns).
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

    k is s, or the rank that was followed. `coordinates` (b, k, l), where known, are the matrices in that basis: the
    singular vectors of the larger side as rows, times their values.
    """

    values: Tensor
    basis: Tensor
    coordinates: Tensor | None = None

    def leading(self, matrices: Tensor, top: int) -> Spectrum:
        """The first `top` of it, with coordinates; in the precision of the matrices but for the values."""
        basis = self.basis[..., :top].to(matrices.dtype)
        known = self.coordinates
        return Spectrum(self.values[:, :top], basis, basis.mT @ _wide(matrices) if known is None else known[:, :top])


def spectrum(matrices: Tensor) -> Spectrum:
    """Singular values and the smaller side's vectors of each matrix (b, rows, columns), in float64."""
    small = _wide(matrices).double()
    squares, vectors = torch.linalg.eigh(small @ small.mT)
    squares = squares.flip(-1)
    floor = squares[:, :1] * _NOISE * squares.shape[1]
    return Spectrum(torch.where(squares > floor, squares, 0.0).sqrt(), vectors.flip(-1))


def space(known: Spectrum, ranks: Tensor) -> Tensor:
    """What `follow` starts from: singular vectors of the larger side as rows (b, k, l), zero beyond each rank (b,).

    `known` has coordinates.
    """
    assert known.coordinates is not None
    return known.coordinates * _inverse(known.values, ranks).to(known.coordinates.dtype)[..., None]


def follow(matrices: Tensor, left: Tensor, ranks: Tensor) -> Spectrum | None:
    """The leading part of each spectrum, to its rank (b,), from the space (b, k, l) that a projection left: one
    block power step, one small eigenproblem. Zero beyond the rank.

    After a projection and one step of training what lies beyond the rank is as small as the step, so the angle to
    the true space shrinks by (step / smallest kept singular value). None where the space has lost its rank.
    """
    top = int(ranks.max())
    small, kept = _wide(matrices), _kept(ranks, top)
    image = small @ left[:, :top].mT  # Nearly the other side's vectors, times their values.
    norms = torch.linalg.vector_norm(image, dim=1)
    if not bool((norms > 0).logical_or(~kept).all()):
        return None
    image = image * torch.where(kept, 1 / norms, 0.0)[:, None, :]
    # Columns beyond a rank are zero; ones on the diagonal keep them out of the others' way.
    lower, failed = torch.linalg.cholesky_ex(image.mT @ image + torch.diag_embed((~kept).to(image.dtype)))
    if bool(failed.any()):
        return None
    orthonormal = torch.linalg.solve_triangular(lower, image.mT, upper=False).mT
    coordinates = orthonormal.mT @ small
    squares, rotation = torch.linalg.eigh((coordinates @ coordinates.mT).double())
    turn = rotation.flip(-1).to(small.dtype)
    return Spectrum(squares.flip(-1).clamp_min(0).sqrt(), orthonormal @ turn, turn.mT @ coordinates)


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
    leading = known.leading(matrices, top)
    assert leading.coordinates is not None
    low = (leading.basis * _kept(ranks, top).to(matrices.dtype)[:, None, :]) @ leading.coordinates
    pull = (leading.basis * _inverse(leading.values, ranks).to(matrices.dtype)[:, None, :]) @ leading.coordinates
    return (low, pull) if matrices.shape[1] <= matrices.shape[2] else (low.mT, pull.mT)


def _kept(ranks: Tensor, top: int) -> Tensor:
    return torch.arange(top, device=ranks.device) < ranks[:, None]


def _inverse(values: Tensor, ranks: Tensor) -> Tensor:
    """1 / value within each rank, zero beyond it and where there is no energy."""
    kept = _kept(ranks, values.shape[1]) & (values > 0)
    return torch.where(kept, 1 / values.clamp_min(torch.finfo(torch.float64).tiny), 0.0)


def _wide(matrices: Tensor) -> Tensor:
    return matrices if matrices.shape[1] <= matrices.shape[2] else matrices.mT
