"""Channel groups: layers whose output channels stand or fall together, or the reason why they stay.

A group is what a user sees of the analysis: the layers that make its channels, how many there are, and the layers that
read them. Its channels are counted in the order of its first layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from trp_export.channels.analysis import Analysis
from trp_export.channels.labels import Ids
from trp_export.channels.steps import Mix
from trp_export.graph.cost import is_counted
from trp_export.graph.sites import OPS, layer_name
from trp_export.graph.weights import find_constant
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
    readers = [(_name(node), set(analysis.ties.roots(ids).tolist())) for node, ids in _readers(analysis)]
    groups = []
    for together in members.values():
        channels = np.unique(np.concatenate([roots[index] for index in together]))
        groups.append(_group(analysis, channels, [_name(mixes[index].node) for index in together], readers))
    return tuple(groups)


def _leader(leader: list[int], index: int) -> int:
    while leader[index] != index:
        index = leader[index]
    return index


def _readers(analysis: Analysis) -> Iterator[tuple[ir.Node, Ids]]:
    """The layers that read channels: those that mix or sum them, and depthwise convs, which hand them on."""
    for layer in analysis.layers:
        if layer.inputs is not None:
            yield layer.node, layer.inputs
    makers = {layer.node for layer in analysis.layers}
    for rows in analysis.rows:
        if is_counted(rows.node) and rows.node not in makers:
            yield rows.node, rows.ids


def _group(
    analysis: Analysis, channels: Ids, producers: Sequence[str], readers: Sequence[tuple[str, set[int]]]
) -> Group:
    own = channels.tolist()
    consumers = [name for name, read in readers if not read.isdisjoint(own)]
    reasons = [analysis.ties.reason(channel) for channel in own]
    reason = next((reason for reason in reasons if reason), None) if all(reasons) else None
    if len(channels) == 1:
        reason = reason or "a single channel"
    return Group(producers[0], channels, tuple(dict.fromkeys(producers)), tuple(dict.fromkeys(consumers)), reason)


def _name(node: ir.Node) -> str:
    return layer_name(node, find_constant(node.inputs[1]) if node.op_type in OPS else None)
