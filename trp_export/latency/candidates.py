"""The ranks that matter on a device: whole blocks of channels, and where a layer has few of them, quarters of one.

onnxruntime pads channels to its block, so ranks in between cost as much as the next whole block; in numbers of
channels that are no multiple of four a layer falls out of the blocked layout altogether.
"""

from __future__ import annotations

from collections.abc import Sequence

from trp_export.lowrank.schemes import ONE_PER_CHANNEL, Scheme
from trp_export.lowrank.site import Site
from trp_export.options import INT8_CHANNELS

_LEAST = 4  # channels that the blocked layout takes at a time
_FEW_BLOCKS = 4
LEVELS = 5


def offered_ranks(site: Site, scheme: Scheme, block: int, align: int = 1, precision: str = "fp32") -> tuple[int, ...]:
    """Ranks below break-even that the planner may choose from, ascending; none where no pair saves anything.

    `align` above 1 asks for its multiples and nothing else; in int8 every rank is a multiple of four.
    """
    ranks = _by_blocks(site, scheme, block, align)
    if precision != "int8" or scheme.output_slices == ONE_PER_CHANNEL:
        return ranks
    return tuple(rank for rank in ranks if rank % INT8_CHANNELS == 0)


def _by_blocks(site: Site, scheme: Scheme, block: int, align: int) -> tuple[int, ...]:
    top = min(site.full_rank(scheme), site.break_even(scheme) - 1)
    if align > 1:
        return tuple(range(align, top + 1, align))
    if top < 2 * _LEAST or scheme.output_slices == ONE_PER_CHANNEL:  # The rank of a decoupled layer counts its paths.
        return tuple(range(1, min(top, 2 * _LEAST) + 1))
    blocks = set(range(block, top + 1, block))
    if top < _FEW_BLOCKS * block:
        blocks |= {*range(_LEAST, min(block, top + 1), _LEAST), top // _LEAST * _LEAST}
    return tuple(sorted(blocks))


def sampled_ranks(offered: Sequence[int], levels: int = LEVELS) -> tuple[int, ...]:
    """The rank to measure at each level: evenly spread over those offered, both ends among them."""
    last = len(offered) - 1
    return tuple(offered[round(level * last / (levels - 1))] for level in range(levels)) if offered else ()
