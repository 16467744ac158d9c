"""Make channels of any network equal, in all that makes them, so that they should be merged."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import onnx_ir as ir

from trp_export.channels.analysis import Analysis
from trp_export.channels.groups import Group
from trp_export.channels.labels import Ids
from trp_export.channels.steps import Mix
from trp_export.graph.kernels import as_kernel, as_weight
from trp_export.graph.weights import set_value


def equal_pairs(analysis: Analysis, groups: tuple[Group, ...]) -> dict[int, int]:
    """A quarter of the channels of each group that may lose some, each with one that occurs in the same places.

    Those of each block of a grouped conv have a partner in their block, so that equally many go.
    """
    places = _places(analysis)
    blocks: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for index, balance in enumerate(analysis.balances):
        for block, row in enumerate(balance.rows):
            for channel in analysis.ties.roots(row).tolist():
                blocks[channel].append((index, block))
    pairs = {}
    for group in groups:
        alike: dict[object, list[int]] = defaultdict(list)
        for channel in group.channels.tolist():
            if analysis.ties.reason(channel) is None:
                alike[(*places[channel], *blocks[channel])].append(channel)
        for first, *others in alike.values():
            pairs |= dict.fromkeys(others[len(others) - max(1, len(others) // 4) :], first)
    return pairs


def make_equal(analysis: Analysis, pairs: dict[int, int]) -> None:
    """Copy the filters, and all entries of constants, of each channel's partner over its own, in place."""
    for step in analysis.steps:
        if isinstance(step, Mix):
            kernel = as_kernel(step.node, step.weight.array(), step.group).copy()
            changed = _copied(kernel, analysis, step.outputs, pairs, axis=0)
            if changed is not None:
                set_value(step.weight.root, step.weight.as_stored(as_weight(step.node, changed, step.group)))
    for rows in analysis.rows:
        changed = _copied(rows.constant.array().copy(), analysis, rows.ids, pairs, axis=rows.axis)
        if changed is not None:
            set_value(rows.constant.root, rows.constant.as_stored(changed))


def _places(analysis: Analysis) -> dict[int, tuple[tuple[str, int], ...]]:
    """Where each channel occurs, and how often."""
    counts: dict[int, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for value, labels in analysis.labels.items():
        for channel in analysis.ties.roots(labels.ids).tolist():
            counts[channel][value.name or ""] += 1
    return {channel: tuple(sorted(each.items())) for channel, each in counts.items()}


def _copied(array: np.ndarray, analysis: Analysis, ids: Ids, pairs: dict[int, int], axis: int) -> np.ndarray | None:
    roots = analysis.ties.roots(ids)
    moved = np.moveaxis(array, axis, 0)
    is_changed = False
    for channel, other in pairs.items():
        mine, others = np.flatnonzero(roots == channel), np.flatnonzero(roots == other)
        if len(mine) == len(others) > 0:
            moved[mine] = moved[others]
            is_changed = True
    return array if is_changed else None


def randomise(model: ir.Model, seed: int = 0) -> None:
    """Biases and statistics that differ from channel to channel; fresh networks have zeros and ones."""
    random = np.random.default_rng(seed)
    for node in model.graph:
        if node.op_type == "BatchNormalization":
            for value in node.inputs[1:5]:
                if value is not None and value.const_value is not None:
                    array = value.const_value.numpy()
                    set_value(value, array + random.uniform(0.05, 0.2, array.shape).astype(array.dtype))
