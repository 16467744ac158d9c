"""Factors of a layer: one pair, or several whose outputs are added, each fitted to the residual of the others.

Source: the residual branch of Yu & Bouganis, SVD-NAS, WACV 2023; there each pair is fitted once. Here pairs are
fitted in turns, since each fit can only lower the error.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from trp_export.lowrank.calibrated import calibrated_pair, output_errors, output_variance
from trp_export.lowrank.factor import Factors, Float64, factorise, product, stored_product
from trp_export.lowrank.metric import ErrorMetric
from trp_export.lowrank.schemes import Array, Branch, Branches, Scheme

# The factors of a layer's branches, in their order.
Pairs = tuple[Factors, ...]

_TURNS = 6
_LEAST_GAIN = 5e-3


def factorise_branches(kernel: Array, branches: Branches, group: int) -> Pairs:
    """Pairs whose sum approximates the kernel in the Frobenius norm; for a single branch it is the optimum."""
    return _in_turns(
        kernel,
        branches,
        group,
        lambda left, branch: factorise(left, branch.scheme, group, branch.rank),
        lambda left: float(np.sum(np.asarray(left, dtype=np.float64) ** 2)),
    )


def calibrate_branches(kernel: Array, branches: Branches, group: int, metric: ErrorMetric) -> Pairs:
    """Pairs whose sum loses little of the layer's output variance in a metric."""
    return _in_turns(
        kernel,
        branches,
        group,
        lambda left, branch: calibrated_pair(left, branch.scheme, group, branch.rank, metric),
        lambda left: output_variance(left, group, metric),
    )


def sum_products(pairs: Sequence[Factors], branches: Branches, kernel_shape: Sequence[int], group: int) -> Float64:
    """The dense kernel (n, c/group, *k) that equals the sum of the branches."""
    total, *others = (
        product(factors, branch.scheme, kernel_shape, group) for factors, branch in zip(pairs, branches, strict=True)
    )
    for other in others:
        total += other
    return total


def stored_kernel(pairs: Sequence[Factors], branches: Branches, kernel_shape: Sequence[int], group: int) -> Array:
    """The same, in the precision of the factors where there is one pair."""
    if len(pairs) == 1:
        return stored_product(pairs[0], branches[0].scheme, kernel_shape, group)
    return sum_products(pairs, branches, kernel_shape, group)


def residual(kernel: Array, pairs: Sequence[Factors], branches: Branches, group: int) -> Array:
    """The kernel minus the sum of the branches; the kernel itself without branches."""
    return kernel - sum_products(pairs, branches, kernel.shape, group) if branches else kernel


def calibrated_errors(
    kernel: Array,
    scheme: Scheme,
    group: int,
    metric: ErrorMetric,
    after: Branches = (),
    held_out: Float64 | None = None,
) -> Float64:
    """Share of the output's variance that is lost at each rank, with the branches before it: (full rank,).

    Pairs that are fitted in turns lose a little less. `held_out` as for `output_errors`.
    """
    if not after:
        return output_errors(kernel, scheme, group, metric, held_out)
    judge = metric if held_out is None else replace(metric, inputs=held_out)
    left = residual(kernel, calibrate_branches(kernel, after, group, metric), after, group)
    whole = output_variance(kernel, group, judge)
    share = output_variance(left, group, judge) / whole if whole else 0.0
    return share * output_errors(left, scheme, group, metric, held_out)


def _in_turns(
    kernel: Array,
    branches: Branches,
    group: int,
    fit: Callable[[Array, Branch], Factors],
    error: Callable[[Array], float],
) -> Pairs:
    """Fit each pair to the residual of those before it, then to that of all others until this gains little."""
    pairs: list[Factors] = []
    for index, branch in enumerate(branches):
        pairs.append(fit(residual(kernel, pairs, branches[:index], group), branch))
    if len(branches) < 2:
        return tuple(pairs)
    best = error(residual(kernel, pairs, branches, group))
    for _ in range(_TURNS):
        trial = list(pairs)
        for index, branch in enumerate(branches):
            others = [*trial[:index], *trial[index + 1 :]]
            left = residual(kernel, others, (*branches[:index], *branches[index + 1 :]), group)
            trial[index] = fit(left, branch)
        found = error(residual(kernel, trial, branches, group))
        if found >= best:
            break
        gain, pairs, best = best - found, trial, found
        if gain < _LEAST_GAIN * best:
            break
    return tuple(pairs)
