"""Channel groups: layers whose output channels stand or fall together, or the reason why they stay.

A group is what a user sees of the analysis: the layers that make its channels, how many there are, and the layers that
read them. Its channels are counted in the order of its first layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trp_export.channels.analysis import Analysis
from trp_export.channels.labels import Ids
from trp_export.channels.steps import Mix
from trp_export.graph.sites import layer_name
from trp_export.system.text import name_some


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """Channels by the lowest number of those tied to each; `reason` says why all of them stay, None if some may go."""

    name: str
    channels: Ids
    producers: tuple[str, ...]
    consumers: tuple[str, ...]
    reason: str | None

    def __str__(self) -> str:
        made = name_some(self.producers)
        read = name_some(self.consumers) if self.consumers else "nothing"
        stays = f"; stays: {self.reason}" if self.reason else ""
        return f"{len(self.channels)} channels of {made}, read by {read}{stays}"


def find_groups(analysis: Analysis) -> tuple[Group, ...]:
    """The groups in the order of the graph."""
    mixes = [step for step in analysis.steps if isinstance(step, Mix)]
    # Layers that share a channel are one group: each layer leads to the first one.
    first_of: dict[int, int] = {}
    leader = list(range(len(mixes)))
    roots = [np.unique(analysis.ties.roots(step.outputs)) for step in mixes]
    for index, own in enumerate(roots):
        for root in own.tolist():
            other = first_of.setdefault(root, index)
            low, high = sorted((_leader(leader, other), _leader(leader, index)))
            leader[high] = low
    members: dict[int, list[int]] = {}
    for index in range(len(mixes)):
        members.setdefault(_leader(leader, index), []).append(index)
    return tuple(_group(analysis, mixes, [roots[index] for index in own], own) for own in members.values())


def _leader(leader: list[int], index: int) -> int:
    while leader[index] != index:
        index = leader[index]
    return index


def _group(analysis: Analysis, mixes: Sequence[Mix], roots: Sequence[Ids], members: Sequence[int]) -> Group:
    channels = np.unique(np.concatenate(roots))
    own = set(channels.tolist())
    producers = tuple(dict.fromkeys(_name(mixes[index]) for index in members))
    consumers = [
        _name(step)
        for step in mixes
        if step.inputs is not None and not own.isdisjoint(analysis.ties.roots(step.inputs).tolist())
    ]
    consumers += [
        columns.constant.root.name or ""
        for columns in analysis.columns
        if not own.isdisjoint(analysis.ties.roots(columns.ids).tolist())
    ]
    reasons = [analysis.ties.reason(channel) for channel in channels.tolist()]
    reason = next((reason for reason in reasons if reason), None) if all(reasons) else None
    if len(channels) == 1:
        reason = reason or "a single channel"
    return Group(producers[0], channels, producers, tuple(dict.fromkeys(consumers)), reason)


def _name(step: Mix) -> str:
    return layer_name(step.node, step.weight)
