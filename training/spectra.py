"""Batched truncated SVD through Gram matrices: projections onto low rank and sub-gradients of the nuclear norm.

One eigendecomposition of the smaller Gram matrix gives the singular values and one side's vectors; products give the
other side. This takes a fraction of the time of a full SVD of each layer. For weights that have moved little since the
last projection, `follow` renews the leading part alone. Shapes: b matrices of rows x columns, s = min(rows, columns),
l = max(rows, columns), ranks (b,), k the largest of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

# Products of fewer multiply-adds than this take less time than setting up a convolution.
_WORTH_A_CONVOLUTION = 1 << 24

_ONEDNN: Any = torch.backends.mkldnn
_MAY_ROUND: tuple[Any, ...] = (torch.backends.cuda.matmul, _ONEDNN.matmul, _ONEDNN.conv)


@dataclass(frozen=True, slots=True)
class Spectrum:
    """`values` (b, s), descending, and `basis` (b, s, s): singular vectors of the smaller side, as columns."""

    values: Tensor
    basis: Tensor


@dataclass(frozen=True, slots=True)
class Truncation:
    """Matrices at their ranks.

    `basis` (b, s, k) holds orthonormal columns of the smaller side, zero beyond each rank; it is None where all
    matrices keep full rank. `coordinates` (b, k, l) are those of the matrices in this basis. `root` (b, k, k) is the
    inverse square root of the coordinates times their transpose, zero where there is no energy. `tall` matrices were
    transposed.
    """

    basis: Tensor | None
    coordinates: Tensor
    root: Tensor
    tall: bool

    def low(self, out: Tensor | None = None) -> Tensor:
        """Best approximation of each matrix at its rank, Eckart-Young: D of the TRP paper, equation 3."""
        return self._upright(self.coordinates) if self.basis is None else self._expanded(self.basis, out)

    def pull(self, out: Tensor | None = None) -> Tensor:
        """U_r V_r^T: a sub-gradient of the nuclear norm at the truncation.

        The part that may be chosen freely, orthogonal to both spaces, is zero (Watson 1992). Directions without energy
        are left out.
        """
        return self._expanded(self.root if self.basis is None else self.basis @ self.root, out)

    def space(self) -> Tensor:
        """The start for `follow`: orthonormal rows (b, k, l) of the larger side's space, zero beyond each rank."""
        return product(self.root, self.coordinates)

    def _expanded(self, basis: Tensor, out: Tensor | None) -> Tensor:
        """The matrices with these coordinates in a basis."""
        wide = torch.matmul(basis, self.coordinates, out=None if out is None else self._upright(out))
        return self._upright(wide)

    def _upright(self, wide: Tensor) -> Tensor:
        return wide.mT if self.tall else wide


def spectrum(matrices: Tensor, precision: torch.dtype = torch.float64) -> Spectrum:
    """Singular values and the smaller side's vectors of each matrix (b, rows, columns), in that precision.

    In float32, values below about a thousandth of the largest are lost. That is accurate enough for a projection while
    training, and takes half the time.
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
    """Each matrix at its rank, by one block power step from the space (b, k, l) of the last projection.

    After a projection and one step of training, the part beyond the rank is as small as the step, so the angle to the
    true space shrinks by (step / smallest kept singular value). Returns None where the space has lost its rank.
    """
    small, kept = _wide(matrices), _kept(ranks, int(ranks.max()))
    image = product(small, space.mT)  # Close to the smaller side's vectors times the singular values.
    norms = torch.linalg.vector_norm(image, dim=1)
    if not bool((norms > 0).logical_or(~kept).all()):
        return None
    image = image * torch.where(kept, 1 / norms, 0.0)[:, None, :]
    # Columns beyond a rank are zero; ones on the diagonal keep the matrix invertible.
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
    """The projection of matrices (b, rows, columns) onto the space `basis` (b, s, k) of the smaller side."""
    small = _wide(matrices)
    projection: Tensor = basis @ product(basis.mT, small)
    return projection if small is matrices else projection.mT


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Inside, no gradients, no autocast, and float32 products in full, even in a training with TF32 or bfloat16."""
    before = [backend.fp32_precision for backend in _MAY_ROUND]
    try:
        for backend in _MAY_ROUND:
            backend.fp32_precision = "ieee"
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            yield
    finally:
        for backend, precision in zip(_MAY_ROUND, before, strict=True):
            backend.fp32_precision = precision


def product(left: Tensor, right: Tensor) -> Tensor:
    """left (b, m, k) @ right (b, k, n).

    Large float32 products on several CPU threads are computed as 1x1 convolutions: torch gives these to oneDNN and
    matrix products to MKL, which takes twice the time on processors not made by Intel. Where the result is the largest
    of the three matrices, allocating it for a convolution costs as much as is gained, so matmul is used.
    """
    _, m, k = left.shape
    n = right.shape[2]
    convolves = left.device.type == "cpu" and left.dtype == torch.float32 and torch.get_num_threads() > 1
    if not convolves or m * k * n < _WORTH_A_CONVOLUTION or m * n >= k * max(m, n):
        return left @ right
    larger = left if m > n else right
    if larger.mT.is_contiguous():  # No copy is needed.
        return _by_convolution(right.mT, left.mT).mT
    return _by_convolution(left, right)


def _noise(squares: Tensor) -> Tensor:
    """(b, 1): the level of rounding errors in the eigenvalues (b, k) of Gram matrices, ascending."""
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


def _by_convolution(left: Tensor, right: Tensor) -> Tensor:
    parts = [_convolved(*pair) for pair in zip(left, right, strict=True)]
    return parts[0][None] if len(parts) == 1 else torch.stack(parts)


def _convolved(left: Tensor, right: Tensor) -> Tensor:
    """One product, as a convolution from k to m channels at n positions."""
    return functional.conv2d(right[None, :, :, None], left.contiguous()[:, :, None, None])[0, :, :, 0]
