"""Batched truncated SVD through Gram matrices: projections onto low rank and sub-gradients of the nuclear norm.

One eigendecomposition of the smaller Gram matrix gives the singular values and one side's vectors;
the other side follows by products. Several times cheaper than a full SVD of each layer. Where weights moved little
since, `follow` renews the leading part alone. Shapes: b matrices of rows x columns, s = min(rows, columns),
l = max(rows, columns), ranks (b,), k the largest of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from training.products import product


@dataclass(frozen=True, slots=True)
class Spectrum:
    """`values` (b, s), descending, and `basis` (b, s, s): singular vectors of the smaller side, as columns."""

    values: Tensor
    basis: Tensor


@dataclass(frozen=True, slots=True)
class Truncation:
    """Matrices at their ranks: `basis` (b, s, k), orthonormal columns of the smaller side, zero beyond each rank; None
    where nothing is cut. `coordinates` (b, k, l) in it, and `root` (b, k, k), the inverse square root of coordinates
    times their transpose, zero where there is no energy. `tall` matrices were transposed."""

    basis: Tensor | None
    coordinates: Tensor
    root: Tensor
    tall: bool

    def low(self, out: Tensor | None = None) -> Tensor:
        """Best approximation of each matrix at its rank, Eckart-Young: D of the TRP paper, equation 3."""
        return self._upright(self.coordinates) if self.basis is None else self._expanded(self.basis, out)

    def pull(self, out: Tensor | None = None) -> Tensor:
        """U_r V_r^T: a sub-gradient of the nuclear norm at the truncation.

        The free part, orthogonal to both spaces, is zero (Watson 1992). Directions without energy are left out.
        """
        return self._expanded(self.root if self.basis is None else self.basis @ self.root, out)

    def space(self) -> Tensor:
        """What `follow` starts from: orthonormal rows (b, k, l) of the larger side's space, zero beyond each rank."""
        return product(self.root, self.coordinates)

    def _expanded(self, basis: Tensor, out: Tensor | None) -> Tensor:
        """The matrices that have these coordinates in a basis."""
        wide = torch.matmul(basis, self.coordinates, out=None if out is None else self._upright(out))
        return self._upright(wide)

    def _upright(self, wide: Tensor) -> Tensor:
        return wide.mT if self.tall else wide


def spectrum(matrices: Tensor, precision: torch.dtype = torch.float64) -> Spectrum:
    """Singular values and the smaller side's vectors of each matrix (b, rows, columns), in that precision.

    In float32 values below some thousandth of the largest are lost: enough to project in training, at half the price.
    """
    small = _wide(matrices).to(precision)
    squares, vectors = torch.linalg.eigh(product(small, small.mT))
    values = torch.where(squares > _noise(squares), squares, 0.0).sqrt()
    return Spectrum(values.flip(-1), vectors.flip(-1))


def truncate(matrices: Tensor, known: Spectrum, ranks: Tensor) -> Truncation:
    """Each matrix (b, rows, columns) at its rank, in the precision of the matrices."""
    small, top = _wide(matrices), int(ranks.max())
    tall = small is not matrices
    inverse = _inverse(known.values[:, :top], ranks)
    if bool((ranks == small.shape[1]).all()):
        root = (known.basis * inverse[:, None, :]) @ known.basis.mT
        return Truncation(None, small, root.to(small.dtype), tall)
    basis = (known.basis[..., :top] * _kept(ranks, top)[:, None, :]).to(small.dtype)
    return Truncation(basis, product(basis.mT, small), torch.diag_embed(inverse).to(small.dtype), tall)


def follow(matrices: Tensor, space: Tensor, ranks: Tensor) -> Truncation | None:
    """Each matrix at its rank, from the space (b, k, l) that a projection left: one block power step. None where the
    space has lost its rank.

    After a projection and one step of training what lies beyond the rank is as small as the step, so the angle to
    the true space shrinks by (step / smallest kept singular value).
    """
    small, kept = _wide(matrices), _kept(ranks, int(ranks.max()))
    image = product(small, space.mT)  # Nearly the other side's vectors, times their values.
    norms = torch.linalg.vector_norm(image, dim=1)
    if not bool((norms > 0).logical_or(~kept).all()):
        return None
    image = image * torch.where(kept, 1 / norms, 0.0)[:, None, :]
    # Columns beyond a rank are zero; ones on the diagonal keep them out of the others' way.
    lower, failed = torch.linalg.cholesky_ex(product(image.mT, image) + torch.diag_embed((~kept).to(image.dtype)))
    if bool(failed.any()):
        return None
    basis = torch.linalg.solve_triangular(lower, image.mT, upper=False).mT
    coordinates = product(basis.mT, small)
    squares, vectors = torch.linalg.eigh(product(coordinates, coordinates.mT))
    sound = squares > _noise(squares)
    if bool((sound.sum(dim=1) < ranks).any()):
        return None
    root = (vectors * torch.where(sound, squares, torch.inf).rsqrt()[:, None, :]) @ vectors.mT
    return Truncation(basis, coordinates, root, small is not matrices)


def projected(matrices: Tensor, basis: Tensor) -> Tensor:
    """Onto the space (b, s, k) of the smaller side."""
    small = _wide(matrices)
    found: Tensor = basis @ product(basis.mT, small)
    return found if small is matrices else found.mT


def _noise(squares: Tensor) -> Tensor:
    """(b, 1): eigenvalues (b, k), ascending, of Gram matrices mean nothing below."""
    share: float = 4 * torch.finfo(squares.dtype).eps * squares.shape[1] ** 0.5
    return squares[:, -1:] * share


def _kept(ranks: Tensor, top: int) -> Tensor:
    return torch.arange(top, device=ranks.device) < ranks[:, None]


def _inverse(values: Tensor, ranks: Tensor) -> Tensor:
    """1 / value within each rank, zero beyond it and where there is no energy."""
    kept = _kept(ranks, values.shape[1]) & (values > 0)
    return torch.where(kept, 1 / values.clamp_min(torch.finfo(values.dtype).tiny), 0.0)


def _wide(matrices: Tensor) -> Tensor:
    return matrices if matrices.shape[1] <= matrices.shape[2] else matrices.mT
