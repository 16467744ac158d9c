"""Factors that minimise the error of a layer's output instead of its kernel's, from the moments of its inputs.

With W (n, d) the kernel over input patches of d entries and M (d, d) their covariance, the expected squared error
of the output is tr((W - W') M (W - W')^T); the mean of the error goes into the bias. Where output channels count
unlike, W is weighed by them first (`metric`).

A scheme splits a patch entry into a row a (what `reduce` covers) and a tap b (what `expand` covers):

    W'[n, a, b] = sum over r of U[a, r] V[n, r, b]

With one tap the whitened SVD is exact (Zhang et al. 2015). With several, all taps share U: a whitened SVD under the
sum of the taps' own covariances gives a start, V is then the exact least-squares solution under all of M, and
turns of conjugate gradients on U and exact V lower the error further. No turn can raise it.

Slices of the input cut the rows: U is then block-diagonal, a block of r columns for each slice, and since what the
slices contribute adds up, one V is fitted to all of them together.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

import numpy as np

from trp_export.lowrank.factor import Factors, Float64
from trp_export.lowrank.metric import ErrorMetric, unweigh, weigh
from trp_export.lowrank.schemes import Array, Scheme, fold_pair, full_rank
from trp_export.lowrank.unlocked import solve_lower

# Added to a covariance as a share of its mean diagonal: what the images did not show must still cost something.
RIDGE = 1e-4
_TURNS = 6
_CG_STEPS = 5
_LEAST_GAIN = 2e-3
# Size of the largest array of a stack of problems; larger stacks are solved in parts.
_STACK_BYTES = 64 * 2**20
# Keeps a Cholesky decomposition stable where a basis is nearly dependent.
_JITTER = 1e-11
# Share of the largest variance below which an eigenvalue is rounding.
_NOISE = 1e-12


def output_errors(
    kernel: Array, scheme: Scheme, group: int, metric: ErrorMetric, held_out: Float64 | None = None
) -> Float64:
    """Share of the output's variance in a metric that each rank loses: (full rank,), descending.

    With several taps it is what the start reaches; the factors of `calibrated_pair` lose a little less. `held_out` are
    second moments of inputs that took no part in the metric: the same factors are then judged on them.
    """
    covariance = metric.inputs
    kernel = weigh(kernel, metric.roots(scheme.slices(kernel.shape, group)[1]))
    total, lost = 0.0, np.zeros(full_rank(scheme, kernel.shape, group))
    judges = _stacks(kernel, scheme, group, covariance if held_out is None else held_out)
    for stack, judge in zip(_stacks(kernel, scheme, group, covariance), judges, strict=True):
        variances = judge.variances()
        total += float(variances.sum())
        lost += _start_errors(stack, variances) if held_out is None else _held_out_errors(stack, judge, variances)
    if not total:
        return np.zeros_like(lost)
    # On other inputs a higher rank may do worse; a rank is then believed to lose what the worst above it loses.
    return np.asarray(np.maximum.accumulate(np.maximum(lost / total, 0.0)[::-1])[::-1])


def calibrated_pair(
    kernel: Array, scheme: Scheme, group: int, rank: int, metric: ErrorMetric, turns: int = _TURNS
) -> Factors:
    """The pair of a rank (counted per matrix) with the least output error found, balanced."""
    roots = metric.roots(scheme.slices(kernel.shape, group)[1])
    kernel, covariance = weigh(kernel, roots), metric.inputs
    pairs = [
        balance(*_pairs(stack, *_alternate(stack, rank, turns))) for stack in _stacks(kernel, scheme, group, covariance)
    ]
    left, right = (np.concatenate(side) for side in zip(*pairs, strict=True))
    reduce, expand = fold_pair(left, right, scheme, kernel.shape, group)
    return Factors(np.ascontiguousarray(reduce), np.ascontiguousarray(unweigh(expand, roots)))


def output_variance(kernel: Array, group: int, metric: ErrorMetric) -> float:
    """Variance of the output in a metric, with the ridge under which factors are computed."""
    kernel, covariance = weigh(kernel, metric.roots()), metric.inputs
    d = covariance.shape[1]
    w = np.asarray(kernel, dtype=np.float64).reshape(group, -1, d)
    ridge = RIDGE * np.trace(covariance, axis1=1, axis2=2) / d
    own = np.sum((w @ covariance) * w, axis=(1, 2)) + ridge * np.sum(w**2, axis=(1, 2))
    return float(own.sum())


def relative_error(kernel: Array, new_kernel: Array, group: int, metric: ErrorMetric) -> float:
    """Squared error of the output over its variance, in a metric; 0 for an output without variance."""
    whole = output_variance(kernel, group, metric)
    return output_variance(kernel - new_kernel, group, metric) / whole if whole > 0 else 0.0


def share_along(kernel: Array, group: int, metric: ErrorMetric, columns: Float64) -> float:
    """Share of that variance along columns (group, d, k), whose outer products are a part of the inputs' covariance."""
    whole = output_variance(kernel, group, metric)
    rows = np.asarray(weigh(kernel, metric.roots()), dtype=np.float64).reshape(group, -1, columns.shape[1])
    return float(np.square(rows @ columns).sum()) / whole if whole else 0.0


def bias_shift(kernel: Array, new_kernel: Array, mean: Float64) -> Float64:
    """The change of bias (n,) that keeps the mean of the output. `mean` is that of the input, (group, d)."""
    n, group = kernel.shape[0], len(mean)
    lost = (np.asarray(kernel, dtype=np.float64) - new_kernel).reshape(group, n // group, -1)
    return np.asarray(np.einsum("gnd,gd->gn", lost, mean).reshape(n))


def balance(left: Float64, right: Float64) -> tuple[Float64, Float64]:
    """The same products with the square root of their singular values on each side: (..., a, r), (..., r, q)."""
    left_basis, left_core = np.linalg.qr(left)
    right_basis, right_core = np.linalg.qr(np.swapaxes(right, -1, -2))
    u, values, vt = np.linalg.svd(left_core @ np.swapaxes(right_core, -1, -2))
    root = np.sqrt(values)
    return (left_basis @ u) * root[..., None, :], root[..., :, None] * (vt @ np.swapaxes(right_basis, -1, -2))


@dataclass(frozen=True, slots=True)
class _Stack:
    """Matrices that are factored independently under the same moments: w (p, n, a, b), m (a, b, a, b).

    The rows a are cut into slices. Columns of U count ranks, and slices within each: R = r x slices.
    """

    w: Float64
    m: Float64
    slices: int

    @property
    def rows(self) -> int:
        return int(self.w.shape[2])

    @property
    def taps(self) -> int:
        return int(self.w.shape[3])

    @property
    def full_rank(self) -> int:
        """The rank of each slice at which nothing is lost."""
        return min(self.rows // self.slices, int(self.w.shape[1]) * self.taps)

    def variances(self) -> Float64:
        """The variance of each matrix's output, summed over its channels: (p,)."""
        return np.asarray(np.einsum("pnab,pnab->p", self.under_m(self.w), self.w))

    def mask(self, rank: int) -> Float64:
        """1 where a row and a column of U belong to the same slice, 0 elsewhere: (a, R)."""
        one = np.repeat(np.eye(self.slices), self.rows // self.slices, axis=0)
        return np.tile(one, (1, rank))

    def errors(self, left: Float64, right: Float64) -> Float64:
        """Expected squared errors of U (p, a, R), V (p, n, R, b): (p,)."""
        made = (left @ _columns(right)).reshape(len(left), self.rows, -1, self.taps)
        lost = self.w - made.swapaxes(1, 2)
        return np.asarray(np.einsum("pnab,pnab->p", self.under_m(lost), lost))

    def under_m(self, kernels: Float64) -> Float64:
        """(p, n, a, b) times the moments."""
        size = self.rows * self.taps
        return np.asarray((kernels.reshape(-1, size) @ self.m.reshape(size, size)).reshape(kernels.shape))


def _stacks(kernel: Array, scheme: Scheme, group: int, covariance: Float64) -> Iterator[_Stack]:
    """The problems of each group, in the order in which `unfold` counts its matrices."""
    n, c, *extents = kernel.shape
    slices_in, slices_out = scheme.slices(kernel.shape, group)
    rows = [1, *(2 + axis for axis in range(len(extents)) if axis in scheme.reduce_axes)]
    taps = [2 + axis for axis in range(len(extents)) if axis not in scheme.reduce_axes]
    row_count = prod(kernel.shape[axis] for axis in rows)
    patch = [axis - 1 for axis in (*rows, *taps)]
    for index, own in enumerate(covariance):
        d = len(own)
        m = np.empty((d, d)).reshape([kernel.shape[1 + axis] for axis in (*patch, *patch)])
        m[...] = own.reshape(c, *extents, c, *extents).transpose(*patch, *(axis + 1 + len(extents) for axis in patch))
        m = m.reshape(d, d)
        m[np.diag_indices(d)] += RIDGE * np.trace(own) / d
        m = m.reshape(row_count, d // row_count, row_count, d // row_count)
        w = kernel[index * (n // group) : (index + 1) * (n // group)].astype(np.float64)
        w = w.transpose(0, *rows, *taps).reshape(slices_out, -1, row_count, d // row_count)
        whole = _Stack(w, m, slices_in)
        size = max(1, _STACK_BYTES // (8 * whole.full_rank * slices_in * whole.taps * d))
        yield from (_Stack(w[start : start + size], m, slices_in) for start in range(0, slices_out, size))


def _start(stack: _Stack, rank: int) -> Float64:
    """U (p, a, R): of each slice the whitened SVD under the sum of the taps' covariances."""
    shared = np.einsum("abcb->ac", stack.m)
    x = stack.w.transpose(0, 2, 1, 3).reshape(len(stack.w), stack.rows, -1)
    rows = stack.rows // stack.slices
    left = np.zeros((len(x), stack.rows, rank, stack.slices))
    for index in range(stack.slices):
        own = slice(index * rows, (index + 1) * rows)
        left[:, own, :, index] = _whitened(shared[own, own], x[:, own], rank)
    return left.reshape(len(x), stack.rows, -1)


def _whitened(shared: Float64, x: Float64, rank: int) -> Float64:
    """The leading left factors (p, a, r) of x (p, a, q) under a covariance (a, a), of unit output variance."""
    if x.shape[2] <= x.shape[1]:
        _, vectors = np.linalg.eigh(np.swapaxes(x, 1, 2) @ (shared @ x))
        left = x @ vectors[:, :, ::-1][:, :, :rank]
    else:
        scale = np.trace(shared) / len(shared) or 1.0
        root = np.linalg.cholesky(shared + _JITTER * scale * np.eye(len(shared)))
        whitened = root.T @ x
        _, vectors = np.linalg.eigh(whitened @ np.swapaxes(whitened, 1, 2))
        left = np.linalg.solve(root.T, vectors[:, :, ::-1][:, :, :rank])
    variances = np.einsum("par,par->pr", left, shared @ left)
    # The smallest are rounding: they become columns of zeros, so that nothing builds on them.
    sound = variances > _NOISE * variances.max(axis=1, keepdims=True)
    scale = np.where(sound, 1 / np.sqrt(np.where(sound, variances, 1.0)), 0.0)
    return np.asarray(left * scale[:, None])


def _normal_equations(stack: _Stack, left: Float64) -> tuple[Float64, Float64]:
    """The normal equations G V = H of V: G (p, R b, R b) and H (p, R b, n)."""
    count, rows, rank = left.shape
    taps = stack.taps
    half = np.swapaxes(left, 1, 2).reshape(-1, rows) @ stack.m.reshape(rows, -1)
    half = half.reshape(count, rank * taps, rows, taps)
    h = half.reshape(count, rank * taps, -1) @ stack.w.reshape(count, -1, rows * taps).transpose(0, 2, 1)
    half = np.swapaxes(half, 2, 3).reshape(count, -1, rows)
    g = half @ left
    del half  # These matrices are what takes the memory.
    g = np.swapaxes(g.reshape(count, rank * taps, taps, rank), 2, 3).reshape(count, rank * taps, rank * taps)
    diagonal = np.einsum("paa->pa", g)
    diagonal[...] = np.where(diagonal > 0, diagonal * (1 + _JITTER), 1.0)
    return g, h


def _start_errors(stack: _Stack, variances: Float64) -> Float64:
    """Errors of all ranks at once: the bases are nested, so one Cholesky decomposition holds every solution."""
    g, h = _normal_equations(stack, _start(stack, stack.full_rank))
    explained = np.sum(_solve_lower(_cholesky(g), h) ** 2, axis=(0, 2))
    return np.asarray(variances.sum() - np.cumsum(explained.reshape(stack.full_rank, -1).sum(axis=1)))


def _held_out_errors(stack: _Stack, judge: _Stack, variances: Float64) -> Float64:
    """Errors of all ranks under the moments of `judge`, of factors that are found under those of `stack`.

    In a basis Q that is orthonormal under the moments of `stack`, V of each rank is the head of the same Y = Q^T M W^T:
    the errors under other moments N are var - 2 Y.(Q^T N W^T) + (Q^T N Q).(Y Y^T), summed over the heads.
    """
    start = _start(stack, stack.full_rank)
    g, h = _normal_equations(stack, start)
    lower = _cholesky(g)
    del g
    judged, judged_h = _normal_equations(judge, start)
    y, crossed = np.split(_solve_lower(lower, np.concatenate([h, judged_h], axis=2)), 2, axis=2)
    judged = _solve_lower(lower, judged)
    judged = _solve_lower(lower, np.swapaxes(judged, 1, 2))
    del lower
    judged *= y @ np.swapaxes(y, 1, 2)
    gained, added = np.cumsum((y * crossed).sum(axis=(0, 2))), judged.sum(axis=0) if len(judged) > 1 else judged[0]
    for axis in (0, 1):
        np.cumsum(added, axis=axis, out=added)
    last = np.arange(1, stack.full_rank + 1) * (len(gained) // stack.full_rank) - 1
    added = added.diagonal()
    return np.asarray(variances.sum() - 2 * gained[last] + added[last])


def _solve_lower(lower: Float64, right: Float64) -> Float64:
    """X with L X = B, for stacks of lower triangles (p, q, q) and right sides (p, q, n)."""
    solved = [solve_lower(a, b) for a, b in zip(lower, right, strict=True)]
    return np.stack(solved) if len(solved) > 1 else solved[0][None]


def _cholesky(g: Float64) -> Float64:
    """Lower triangles (p, q, q). With far fewer samples than entries, rounding can outweigh the first jitter."""
    jitter = 0.0
    while True:
        try:
            return np.asarray(np.linalg.cholesky(g), dtype=np.float64)
        except np.linalg.LinAlgError:
            jitter = max(100 * jitter, 100 * _JITTER)
            if jitter > 1:
                raise
            np.einsum("paa->pa", g)[...] *= 1 + jitter


def _best_right(stack: _Stack, left: Float64) -> Float64:
    """V (p, n, R, b), exact for this U."""
    g, h = _normal_equations(stack, left)
    count, _, rank = left.shape
    return np.asarray(np.swapaxes(np.linalg.solve(g, h), 1, 2).reshape(count, -1, rank, stack.taps))


def _alternate(stack: _Stack, rank: int, turns: int) -> tuple[Float64, Float64]:
    """Alternate between U and V until a turn gains little; the last step solves for V, which is then exact."""
    left = _start(stack, rank)
    right = _best_right(stack, left)
    if stack.taps == stack.slices == 1 or rank >= stack.full_rank:
        return left, right
    errors = stack.errors(left, right)
    for _ in range(turns):
        new_left = _better_left(stack, left, right)
        new_right = _best_right(stack, new_left)
        new_errors = stack.errors(new_left, new_right)
        lower = new_errors < errors
        gain = float(np.sum((errors - new_errors)[lower]))
        left = np.where(lower[:, None, None], new_left, left)
        right = np.where(lower[:, None, None, None], new_right, right)
        errors = np.where(lower, new_errors, errors)
        if gain < _LEAST_GAIN * float(errors.sum()):
            break
    return left, right


def _better_left(stack: _Stack, left: Float64, right: Float64) -> Float64:
    """A few steps of conjugate gradients on U for this V, starting from the present U.

    The preconditioner takes the taps as independent: it is the inverse of a Kronecker product of small matrices.
    """
    count, rows, rank = left.shape
    taps = stack.taps
    flat = right.transpose(0, 2, 3, 1).reshape(count, rank * taps, -1)
    grams = (flat @ np.swapaxes(flat, 1, 2)).reshape(count, rank, taps, rank, taps)
    spreads = np.ascontiguousarray(grams.transpose(0, 1, 4, 2, 3)).reshape(count, rank, -1)
    moments = stack.m.reshape(rows, -1)
    shared_inverse = _inverse(np.einsum("abcb->ac", stack.m))
    own_inverse = _inverse(np.einsum("prbsb->prs", grams))
    mask = stack.mask(rank // stack.slices)

    def apply(u: Float64) -> Float64:
        """Over c, d, s and b the sum of m[a, b, c, d] u[c, s] grams[s, d, r, b]."""
        spread = (u @ spreads).reshape(count, rows, taps, taps, rank).transpose(2, 1, 3, 0, 4)
        return (moments @ spread.reshape(-1, count * rank)).reshape(rows, count, rank).swapaxes(0, 1)

    wanted = stack.under_m(stack.w).transpose(0, 2, 1, 3).reshape(count, rows, -1)
    residual = mask * (wanted @ right.swapaxes(2, 3).reshape(count, -1, rank) - apply(left))
    direction = mask * (shared_inverse @ residual @ own_inverse)
    slope = _dot(residual, direction)
    for _ in range(_CG_STEPS):
        image = mask * apply(direction)
        curvature = _dot(direction, image)
        sound = (slope > 0) & (curvature > 0)
        if not sound.any():
            break
        step = np.where(sound, slope / np.where(sound, curvature, 1.0), 0.0)
        left, residual = left + step * direction, residual - step * image
        preconditioned = mask * (shared_inverse @ residual @ own_inverse)
        slope, old = _dot(residual, preconditioned), slope
        direction = preconditioned + slope / np.where(sound, old, 1.0) * direction
    return left


def _dot(a: Float64, b: Float64) -> Float64:
    """One inner product for each of a stack of matrices: (p, 1, 1)."""
    return np.asarray(np.sum(a * b, axis=(1, 2), keepdims=True))


def _inverse(matrix: Float64) -> Float64:
    size = matrix.shape[-1]
    scale = np.trace(matrix, axis1=-2, axis2=-1)[..., None, None] / size
    return np.asarray(np.linalg.inv(matrix + 1e-8 * np.where(scale > 0, scale, 1.0) * np.eye(size)))


def _columns(right: Float64) -> Float64:
    """V (p, n, R, b) -> (p, R, n b)."""
    return np.asarray(np.swapaxes(right, 1, 2).reshape(len(right), right.shape[2], -1))


def _pairs(stack: _Stack, left: Float64, right: Float64) -> tuple[Float64, Float64]:
    """U (p, a, R), V (p, n, R, b) -> factors of the unfolded matrices: (p slices, a / slices, r), (..., r, n b)."""
    count, slices = len(left), stack.slices
    blocks = left.reshape(count, slices, stack.rows // slices, -1, slices)
    blocks = np.einsum("psars->psar", blocks).reshape(count * slices, stack.rows // slices, -1)
    columns = _columns(right).reshape(count, -1, slices, right.shape[1] * stack.taps).swapaxes(1, 2)
    return blocks, columns.reshape(count * slices, -1, columns.shape[-1])
