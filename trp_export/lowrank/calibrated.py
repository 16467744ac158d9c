"""Factors that minimise the error of a layer's output instead of its kernel's, from the moments of its inputs.

With W (n, d) the kernel over input patches of d entries and M (d, d) their covariance, the expected squared error
of the output is tr((W - W') M (W - W')^T); the mean of the error goes into the bias.

A scheme splits a patch entry into a row a (what `reduce` covers) and a tap b (what `expand` covers):

    W'[n, a, b] = sum over r of U[a, r] V[n, r, b]

With one tap the whitened SVD is exact (Zhang et al. 2015). With several, all taps share U: a whitened SVD under the
sum of the taps' own covariances gives a start, V is then the exact least-squares solution under all of M, and
turns of conjugate gradients on U and exact V lower the error further. No turn can raise it.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np

from trp_export.lowrank.factor import Factors, Float64
from trp_export.lowrank.schemes import Array, Scheme, fold_pair

# Added to a covariance as a share of its mean diagonal: what the images did not show must not be taken for free.
RIDGE = 1e-4
_TURNS = 6
_CG_STEPS = 5
_LEAST_GAIN = 2e-3
# Keeps a Cholesky decomposition sound where a basis is all but dependent.
_JITTER = 1e-11


@dataclass(frozen=True, slots=True)
class Calibrated:
    """A pair and the share of the output's variance that it loses (0 where the output does not vary)."""

    factors: Factors
    relative_error: float


def is_calibratable(scheme: Scheme) -> bool:
    """False where slices of the input would be factored apart although their contributions add up."""
    return scheme.input_slices == 1


def output_errors(kernel: Array, scheme: Scheme, group: int, covariance: Float64) -> Float64:
    """Share of the output's variance that each rank loses: (full rank,), descending.

    `covariance` is (group, d, d) over patches (c/group, *k). With several taps it is what the start reaches; the
    factors of `calibrate` lose a little less.
    """
    problems = _problems(kernel, scheme, group, covariance)
    total = sum(problem.total for problem in problems)
    if total == 0:
        return np.zeros(min(problem.full_rank for problem in problems))
    return np.asarray(np.maximum(sum(_start_errors(problem) for problem in problems) / total, 0.0))


def calibrate(
    kernel: Array, scheme: Scheme, group: int, rank: int, covariance: Float64, turns: int = _TURNS
) -> Calibrated:
    """The pair of a rank (counted per matrix) with the least output error found, balanced."""
    problems = _problems(kernel, scheme, group, covariance)
    pairs = [_alternate(problem, rank, turns) for problem in problems]
    lost = sum(problem.error(left, right) for problem, (left, right) in zip(problems, pairs, strict=True))
    total = sum(problem.total for problem in problems)
    balanced = [balance(left, _columns(right)) for left, right in pairs]
    left, right = (np.stack(side) for side in zip(*balanced, strict=True))
    reduce, expand = fold_pair(left, right, scheme, kernel.shape, group)
    factors = Factors(np.ascontiguousarray(reduce), np.ascontiguousarray(expand))
    return Calibrated(factors, max(0.0, lost / total) if total else 0.0)


def bias_shift(kernel: Array, new_kernel: Array, mean: Float64) -> Float64:
    """What to add to the bias so that the mean output stays: (n,). `mean` is (group, d)."""
    n, group = kernel.shape[0], len(mean)
    lost = (np.asarray(kernel, dtype=np.float64) - new_kernel).reshape(group, n // group, -1)
    return np.asarray(np.einsum("gnd,gd->gn", lost, mean).reshape(n))


def balance(left: Float64, right: Float64) -> tuple[Float64, Float64]:
    """The same product with the square root of its singular values on each side: (a, r), (r, q) -> the same."""
    left_basis, left_core = np.linalg.qr(left)
    right_basis, right_core = np.linalg.qr(right.T)
    u, values, vt = np.linalg.svd(left_core @ right_core.T)
    root = np.sqrt(values)
    return (left_basis @ u) * root, root[:, None] * (vt @ right_basis.T)


@dataclass(frozen=True, slots=True)
class _Problem:
    """One matrix to factor: w (n, a, b) under m (a, b, a, b)."""

    w: Float64
    m: Float64

    @property
    def taps(self) -> int:
        return int(self.w.shape[2])

    @property
    def full_rank(self) -> int:
        return int(min(self.w.shape[1], self.w.shape[0] * self.taps))

    @property
    def total(self) -> float:
        """Variance of the output, summed over its channels."""
        return float(np.sum(self.wm() * self.w.reshape(len(self.w), -1)))

    def wm(self) -> Float64:
        size = self.w.shape[1] * self.taps
        return np.asarray(self.w.reshape(-1, size) @ self.m.reshape(size, size))

    def error(self, left: Float64, right: Float64) -> float:
        """Expected squared error of U (a, r), V (n, r, b)."""
        size = self.w.shape[1] * self.taps
        lost = (self.w - np.einsum("ar,nrb->nab", left, right, optimize=True)).reshape(-1, size)
        return float(np.sum((lost @ self.m.reshape(size, size)) * lost))


def _problems(kernel: Array, scheme: Scheme, group: int, covariance: Float64) -> list[_Problem]:
    """One problem per group and output slice, in the order in which `unfold` counts its matrices."""
    n, c, *extents = kernel.shape
    _, slices_out = scheme.slices(kernel.shape, group)
    rows = [1, *(2 + axis for axis in range(len(extents)) if axis in scheme.reduce_axes)]
    taps = [2 + axis for axis in range(len(extents)) if axis not in scheme.reduce_axes]
    row_count = prod(kernel.shape[axis] for axis in rows)
    patch = [axis - 1 for axis in (*rows, *taps)]
    problems = []
    for index, own in enumerate(covariance):
        d = len(own)
        m = own + RIDGE * np.trace(own) / d * np.eye(d)
        m = m.reshape(c, *extents, c, *extents).transpose(*patch, *(axis + 1 + len(extents) for axis in patch))
        m = np.ascontiguousarray(m).reshape(row_count, d // row_count, row_count, d // row_count)
        w = kernel[index * (n // group) : (index + 1) * (n // group)].astype(np.float64)
        w = w.transpose(0, *rows, *taps).reshape(slices_out, -1, row_count, d // row_count)
        problems += [_Problem(part, m) for part in w]
    return problems


def _start(problem: _Problem, rank: int) -> Float64:
    """U (a, r): the whitened SVD under the sum of the taps' covariances, columns of unit output variance."""
    shared = np.einsum("abcb->ac", problem.m)
    x = problem.w.transpose(1, 0, 2).reshape(len(shared), -1)
    if x.shape[1] <= x.shape[0]:
        _, vectors = np.linalg.eigh(x.T @ shared @ x)
        left = x @ vectors[:, ::-1][:, :rank]
    else:
        scale = np.trace(shared) / len(shared) or 1.0
        root = np.linalg.cholesky(shared + _JITTER * scale * np.eye(len(shared)))
        _, vectors = np.linalg.eigh((root.T @ x) @ (x.T @ root))
        left = np.linalg.solve(root.T, vectors[:, ::-1][:, :rank])
    size = np.sqrt(np.einsum("ar,ar->r", left, shared @ left))
    return np.asarray(left / np.where(size > 0, size, 1.0))


def _normal_equations(problem: _Problem, left: Float64) -> tuple[Float64, Float64]:
    """What V solves: G (r b, r b) and H (r b, n)."""
    rank, taps = left.shape[1], problem.taps
    half = np.einsum("abcd,ar->rbcd", problem.m, left, optimize=True)
    g = np.einsum("rbcd,cs->rbsd", half, left, optimize=True).reshape(rank * taps, rank * taps)
    h = half.reshape(rank * taps, -1) @ problem.w.reshape(len(problem.w), -1).T
    scale = np.trace(g) / len(g) or 1.0
    return g + _JITTER * scale * np.eye(len(g)), np.asarray(h)


def _start_errors(problem: _Problem) -> Float64:
    """Errors of all ranks at once: the bases are nested, so one Cholesky decomposition holds every solution."""
    g, h = _normal_equations(problem, _start(problem, problem.full_rank))
    explained = np.sum(np.linalg.solve(np.linalg.cholesky(g), h) ** 2, axis=1)
    return np.asarray(problem.total - np.cumsum(explained.reshape(-1, problem.taps).sum(axis=1)))


def _best_right(problem: _Problem, left: Float64) -> Float64:
    """V (n, r, b), exact for this U."""
    g, h = _normal_equations(problem, left)
    return np.asarray(np.linalg.solve(g, h).T.reshape(-1, left.shape[1], problem.taps))


def _alternate(problem: _Problem, rank: int, turns: int) -> tuple[Float64, Float64]:
    """Turns of U and V until they gain little; the last step is V, so that it is exact."""
    left = _start(problem, rank)
    right = _best_right(problem, left)
    if problem.taps == 1 or rank >= problem.full_rank:
        return left, right
    error = problem.error(left, right)
    for _ in range(turns):
        new_left = _better_left(problem, left, right)
        new_right = _best_right(problem, new_left)
        new_error = problem.error(new_left, new_right)
        if not new_error < error:
            break
        gain, left, right, error = 1 - new_error / error, new_left, new_right, new_error
        if gain < _LEAST_GAIN:
            break
    return left, right


def _better_left(problem: _Problem, left: Float64, right: Float64) -> Float64:
    """A few steps of conjugate gradients on U for this V, from where it is.

    The preconditioner takes the taps as independent: it is the inverse of a Kronecker product of small matrices.
    """
    rows, taps = left.shape[0], problem.taps
    grams = np.einsum("nrb,nsd->rbsd", right, right, optimize=True)
    by_tap = problem.m.transpose(1, 0, 2, 3).reshape(taps, rows, rows * taps)
    shared = np.einsum("abcb->ac", problem.m)
    own = np.einsum("rbsb->rs", grams)
    shared_inverse, own_inverse = _inverse(shared), _inverse(own)

    def apply(u: Float64) -> Float64:
        spread = np.einsum("cs,sdrb->bcdr", u, grams, optimize=True).reshape(taps, rows * taps, -1)
        return np.asarray((by_tap @ spread).sum(axis=0))

    wanted = np.einsum("nab,nrb->ar", problem.wm().reshape(problem.w.shape), right, optimize=True)
    residual = wanted - apply(left)
    preconditioned = shared_inverse @ residual @ own_inverse
    direction, slope = preconditioned, float(np.sum(residual * preconditioned))
    for _ in range(_CG_STEPS):
        image = apply(direction)
        curvature = float(np.sum(direction * image))
        if slope <= 0 or curvature <= 0:
            break
        step = slope / curvature
        left, residual = left + step * direction, residual - step * image
        preconditioned = shared_inverse @ residual @ own_inverse
        slope, old = float(np.sum(residual * preconditioned)), slope
        direction = preconditioned + slope / old * direction
    return left


def _inverse(matrix: Float64) -> Float64:
    scale = np.trace(matrix) / len(matrix) or 1.0
    return np.asarray(np.linalg.inv(matrix + 1e-8 * scale * np.eye(len(matrix))))


def _columns(right: Float64) -> Float64:
    """V (n, r, b) -> (r, n b), the columns of the unfolded matrix."""
    return np.asarray(right.transpose(1, 0, 2).reshape(right.shape[1], -1))
