"""The LR-space of a layer: every decomposition that its channels allow, at ranks spaced by their share of dense MACs.

Source: Yu & Bouganis, SVD-NAS, WACV 2023. Input slicing in one slice is channel-wise, in slices of one channel it is
depthwise then pointwise; output slicing in one slice is pointwise-first, in slices of one channel network decoupling.
"""

from __future__ import annotations

from dataclasses import dataclass

from trp_export.lowrank.schemes import (
    CHANNEL_WISE,
    DECOUPLING,
    MATRIX,
    POINTWISE_FIRST,
    SPATIAL_WISE,
    SPATIAL_WISE_TRANSPOSED,
    Branch,
    Branches,
    Scheme,
    input_sliced,
    output_sliced,
)
from trp_export.lowrank.site import Site

# Shares of a layer's dense multiply-adds: of a single pair, and of a second one, for which the first gives up LOWERED.
SHARES = tuple(step / 20 for step in range(2, 20))
SECOND_SHARES = tuple(step / 20 for step in range(1, 9))
LOWERED = 0.20


@dataclass(frozen=True, slots=True)
class Candidate:
    """A possible replacement of a layer and its multiply-adds; no branches stand for the dense layer."""

    branches: Branches
    macs: int


def lr_space(site: Site) -> tuple[Candidate, ...]:
    """All candidates of a site, each once: dense, then each scheme at each share. A refused site has dense alone."""
    dense = Candidate((), site.macs)
    if site.refusal is not None:
        return (dense,)
    return (dense, *_at_shares(site, (), SHARES))


def second_branches(site: Site, first: Branch) -> tuple[Candidate, ...]:
    """Sums of the first pair at a lower rank and a second pair; none where the first rank is too low for that."""
    rank = first.rank - round(LOWERED * site.macs / site.macs_per_rank(first.scheme))
    if rank < 1 or site.is_matrix:
        return ()
    return _at_shares(site, (Branch(first.scheme, rank),), SECOND_SHARES)


def _at_shares(site: Site, after: Branches, shares: tuple[float, ...]) -> tuple[Candidate, ...]:
    """A scheme's largest rank within each share, below the cost of the dense layer."""
    found = [
        (*after, Branch(scheme, rank))
        for scheme in all_schemes(site)
        for share in shares
        if (rank := min(int(share * site.macs / site.macs_per_rank(scheme)), site.full_rank(scheme))) >= 1
    ]
    candidates = (Candidate(branches, site.macs_of(branches)) for branches in dict.fromkeys(found))
    return tuple(candidate for candidate in candidates if candidate.macs < site.macs)


def usual_schemes(site: Site) -> tuple[Scheme, ...]:
    """The schemes without slices, and decoupling; only the matrix form for a site on which all schemes are the same."""
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
