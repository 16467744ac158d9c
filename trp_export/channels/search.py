"""Find the channels that can go at no loss: those equal to another one, and those that are constant or never read.

A channel goes with all that is tied to it, so wherever a layer reads the one it must equal what that layer reads of
the other, or be zero there, or a constant that the layer's bias can take, or meet only zero weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trp_export.channels.analysis import Analysis
from trp_export.channels.blocks import worth_removing
from trp_export.channels.equal import Numbers, number_channels
from trp_export.channels.groups import Group
from trp_export.channels.labels import Ids
from trp_export.channels.steps import Mix
from trp_export.planning.channels import ChannelDecision, Cluster


@dataclass(frozen=True, slots=True, eq=False)
class _Read:
    """What a layer reads: the channel at each position, its number, its block of a grouped conv, whether the layer can
    do without it, and for each filter, by its channel, which positions it multiplies by a weight that is not zero."""

    channels: Ids
    numbers: Ids
    blocks: Ids
    spare: NDArray[np.bool_]
    filters: Ids
    uses: NDArray[np.bool_]


def find_removable(analysis: Analysis, groups: Sequence[Group]) -> tuple[ChannelDecision, ...]:
    """A decision for each group: which channels are merged or dropped, or why all stay."""
    numbers = number_channels(analysis)
    reads = list(_reads(analysis, numbers))
    free = {
        channel: index
        for index, group in enumerate(groups)
        for channel in group.channels.tolist()
        if analysis.ties.reason(channel) is None
    }
    held: set[int] = set()
    while True:
        dropped = _dropped(reads, free)
        others = {channel: group for channel, group in free.items() if channel not in dropped}
        wanted = {**_merged(reads, others), **dict.fromkeys(dropped, None)}
        gone = balanced(analysis, wanted)
        odd = _leaving_odd_counts(groups, gone)
        if len(gone) == len(wanted) and not odd:
            break
        held |= odd
        gone = {channel: other for channel, other in gone.items() if channel not in odd}
        # What a channel that stays is computed from stays, too.
        free = {channel: group for channel, group in free.items() if channel in gone or channel not in wanted}
    return tuple(_decision(group, gone, held) for group in groups)


def _leaving_odd_counts(groups: Sequence[Group], gone: dict[int, int | None]) -> set[int]:
    """Channels that had better stay: a few less than a whole number of blocks run slower than the blocks."""
    stay: set[int] = set()
    for group in groups:
        lost = [channel for channel in group.channels.tolist() if channel in gone]
        stay.update(lost[worth_removing(len(group.channels), len(lost)) :])
    return stay


def _reads(analysis: Analysis, numbers: Numbers) -> Iterator[_Read]:
    for step in analysis.steps:
        if isinstance(step, Mix) and step.data is not None and step.inputs is not None:
            used = np.asarray(step.kernel().any(axis=3))
            group, outputs, inputs = used.shape
            uses = np.zeros((group * outputs, group * inputs), dtype=np.bool_)
            for index in range(group):
                row, column = index * outputs, index * inputs
                uses[row : row + outputs, column : column + inputs] = used[index]
            channels, filters = analysis.ties.roots(step.inputs), analysis.ties.roots(step.outputs)
            blocks = np.repeat(np.arange(group), inputs)
            yield _Read(channels, numbers.of_values[step.data], blocks, numbers.spare(step), filters, uses)
    for columns in analysis.columns:
        channels, own = analysis.ties.roots(columns.inputs), numbers.of_values[columns.data]
        all_used = np.ones((1, len(channels)), dtype=np.bool_)
        is_zero = numbers.values(own) == 0
        yield _Read(channels, own, np.zeros_like(channels), is_zero, np.array([-1]), all_used)


def _merged(reads: Sequence[_Read], free: dict[int, int]) -> dict[int, int]:
    """Each channel that equals an earlier one of its group wherever either is read, with that one."""
    signatures: dict[int, list[tuple[int, int, int]]] = {channel: [] for channel in free}
    for index, read in enumerate(reads):
        for channel, number, block in zip(
            read.channels.tolist(), read.numbers.tolist(), read.blocks.tolist(), strict=True
        ):
            if channel in signatures:
                signatures[channel].append((index, number, block))
    first: dict[object, int] = {}
    target = {}
    for channel, signature in signatures.items():
        other = first.setdefault((free[channel], *signature), channel) if signature else channel
        if other != channel:
            target[channel] = other
    return target


def _dropped(reads: Sequence[_Read], free: dict[int, int]) -> set[int]:
    """The channels that each layer can do without, or that only filters read which are dropped or ignore them."""
    dropped: set[int] = set()
    while True:
        needed: set[int] = set()
        seen: set[int] = set()
        for read in reads:
            gone = np.isin(read.filters, list(dropped)) if dropped else np.zeros(len(read.filters), dtype=bool)
            used = read.uses[~gone].any(axis=0) & ~read.spare
            needed.update(read.channels[used].tolist())
            seen.update(read.channels.tolist())
        more = {channel for channel in free if channel in seen and channel not in needed}
        if more <= dropped:
            return dropped
        dropped |= more


def balanced(analysis: Analysis, gone: dict[int, int | None]) -> dict[int, int | None]:
    """The same with fewer channels, so that no tensor is left without any and groups of a conv stay of equal size.

    `gone` holds the channel that each is merged into, None for those that are dropped.
    """
    left = dict(gone)
    tensors = [analysis.ties.roots(labels.ids) for labels in analysis.labels.values()]
    tensors = [tensor for tensor in tensors if not set(tensor.tolist()).isdisjoint(left)]
    rows = [[analysis.ties.roots(row) for row in balance.rows] for balance in analysis.balances]
    while True:
        stay = {int(tensor[0]) for tensor in tensors if all(channel in left for channel in tensor.tolist())}
        for parts in rows:
            counts = [sum(channel in left for channel in part.tolist()) for part in parts]
            for part, count in zip(parts, counts, strict=True):
                lost = [channel for channel in part.tolist() if channel in left]
                stay.update(lost[len(lost) - (count - min(counts)) :])
        if not stay:
            return left
        left = {channel: other for channel, other in left.items() if channel not in stay}


def _decision(group: Group, gone: dict[int, int | None], held: set[int]) -> ChannelDecision:
    place = {channel: index for index, channel in enumerate(group.channels.tolist())}
    clusters: dict[int, list[int]] = {}
    dropped = []
    for channel, index in place.items():
        if channel not in gone:
            continue
        other = gone[channel]
        if other is None:
            dropped.append(index)
        else:
            clusters.setdefault(place[other], []).append(index)
    merged = tuple(Cluster(first, tuple(others)) for first, others in sorted(clusters.items()))
    return ChannelDecision(
        group.name, len(group.channels), merged, tuple(dropped), _reason(group, merged, dropped, held)
    )


def _reason(group: Group, merged: Sequence[Cluster], dropped: Sequence[int], held: set[int]) -> str:
    equal = sum(len(cluster.merged) for cluster in merged)
    words = [f"{equal} equal to another"] if equal else []
    words += [f"{len(dropped)} constant or not read"] if dropped else []
    if not words and not held.isdisjoint(group.channels.tolist()):
        return "so few could go that the rest would run slower"
    return " and ".join(words) or group.reason or "no two channels are equal and none is constant"
