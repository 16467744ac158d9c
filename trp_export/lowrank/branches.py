"""What a layer becomes: one factor pair, or several whose outputs are added, each the pair of what those before leave.

Source: the residual branch of Yu & Bouganis, SVD-NAS, WACV 2023. A single pair is a sum of one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from trp_export.lowrank.calibrated import calibrate, output_errors, output_variance
from trp_export.lowrank.factor import Factors, Float64, factorise, product
from trp_export.lowrank.schemes import Array, Branches, Scheme

# The factors of a layer's branches, in their order.
Pairs = tuple[Factors, ...]


def factorise_branches(kernel: Array, branches: Branches, group: int) -> Pairs:
    """The best pair of the kernel, then that of what is left, and so on."""
    pairs: list[Factors] = []
    for index, branch in enumerate(branches):
        left = residual(kernel, pairs, branches[:index], group)
        pairs.append(factorise(left, branch.scheme, group, branch.rank))
    return tuple(pairs)


def calibrate_branches(kernel: Array, branches: Branches, group: int, covariance: Float64) -> Pairs:
    """The same with the least error of the layer's output; `covariance` as for `calibrate`."""
    pairs: list[Factors] = []
    for index, branch in enumerate(branches):
        left = residual(kernel, pairs, branches[:index], group)
        pairs.append(calibrate(left, branch.scheme, group, branch.rank, covariance).factors)
    return tuple(pairs)


def sum_products(pairs: Sequence[Factors], branches: Branches, kernel_shape: Sequence[int], group: int) -> Float64:
    """The dense kernel (n, c/group, *k) that the branches amount to."""
    total = np.zeros(kernel_shape)
    for factors, branch in zip(pairs, branches, strict=True):
        total += product(factors, branch.scheme, kernel_shape, group)
    return total


def residual(kernel: Array, pairs: Sequence[Factors], branches: Branches, group: int) -> Array:
    """What the branches leave of a kernel; the kernel itself where there are none."""
    return kernel - sum_products(pairs, branches, kernel.shape, group) if branches else kernel


def calibrated_errors(kernel: Array, scheme: Scheme, group: int, covariance: Float64, after: Branches = ()) -> Float64:
    """Share of the output's variance that each rank loses, added to the branches before it: (full rank,)."""
    if not after:
        return output_errors(kernel, scheme, group, covariance)
    left = residual(kernel, calibrate_branches(kernel, after, group, covariance), after, group)
    whole = output_variance(kernel, group, covariance)
    share = output_variance(left, group, covariance) / whole if whole else 0.0
    return share * output_errors(left, scheme, group, covariance)
