"""The LR-space of a layer: every decomposition that its channels allow.

Source: Yu & Bouganis, SVD-NAS, WACV 2023. Input slicing in one slice is channel-wise, in slices of one channel it is
depthwise then pointwise; output slicing in one slice is pointwise-first, in slices of one channel network decoupling.
"""

from __future__ import annotations

from trp_export.lowrank.schemes import (
    CHANNEL_WISE,
    DECOUPLING,
    MATRIX,
    POINTWISE_FIRST,
    SPATIAL_WISE,
    SPATIAL_WISE_TRANSPOSED,
    Scheme,
    input_sliced,
    output_sliced,
)
from trp_export.lowrank.site import Site


def usual_schemes(site: Site) -> tuple[Scheme, ...]:
    """The schemes without slices that differ on a site, and decoupling; the one matrix form where all are the same."""
    if site.is_matrix:
        return (MATRIX,)
    if len(site.kernel_shape) == 4:
        return CHANNEL_WISE, SPATIAL_WISE, SPATIAL_WISE_TRANSPOSED, POINTWISE_FIRST, DECOUPLING
    return CHANNEL_WISE, POINTWISE_FIRST, DECOUPLING


def sliced_schemes(site: Site) -> tuple[Scheme, ...]:
    """Input slicing and output slicing with every number of slices that divides the channels, both ends included."""
    if site.is_matrix:
        return (MATRIX,)
    n, c = site.kernel_shape[0] // site.group, site.kernel_shape[1]
    of_input = tuple(input_sliced(slices) for slices in _divisors(c))
    of_output = tuple(output_sliced(slices) for slices in _divisors(n) if slices < n)
    return (*of_input, *of_output, DECOUPLING)


def all_schemes(site: Site) -> tuple[Scheme, ...]:
    """The usual schemes, then the sliced ones that are not among them."""
    return tuple(dict.fromkeys((*usual_schemes(site), *sliced_schemes(site))))


def _divisors(number: int) -> tuple[int, ...]:
    small = [part for part in range(1, int(number**0.5) + 1) if number % part == 0]
    return tuple(sorted({*small, *(number // part for part in small)}))
