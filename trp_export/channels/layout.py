"""Rules of the operators that only move channels: reshape, transpose, concatenate, split, slice, gather."""

from __future__ import annotations

from math import prod

import numpy as np
import onnx_ir as ir

from trp_export.channels.analysis import Analysis, NotUnderstoodError, Rule, whole
from trp_export.channels.counts import counts
from trp_export.channels.elementwise import reduced_axes
from trp_export.channels.labels import Ids, Labels
from trp_export.channels.numbers import require_entry_can_change, set_numbers
from trp_export.channels.shuffle import shuffle
from trp_export.channels.steps import Kept, Setting, Source
from trp_export.graph.weights import find_numbers

# The channels that an Unflatten ties at most, and those that a Flatten makes: each is followed by itself.
_MOST_TIED, _MOST_MADE = 4096, 65536


def _transpose(analysis: Analysis, node: ir.Node) -> None:
    labels = analysis.tracked(node.inputs[0])
    if labels is None:
        return
    order = list(node.attributes.get_ints("perm", list(range(labels.rank))[::-1]))
    analysis.follow(node, axis=order.index(labels.axis))


def _reshape(analysis: Analysis, node: ir.Node) -> None:
    """Reshape and Flatten: channels stay an axis, become blocks of one (c, h, w -> chw), or are made of blocks."""
    if analysis.tracked(node.inputs[0]) is None or shuffle(analysis, node):
        return
    value, labels = analysis.require(node.inputs[0])
    before, after = analysis.known_shape(value), analysis.known_shape(node.outputs[0])
    count, outer, inner = len(labels.ids), prod(before[: labels.axis]), prod(before[labels.axis + 1 :])
    axis = _axis_after(after, outer, count, inner)
    if axis is None:
        raise NotUnderstoodError("it cuts channels apart")
    size = after[axis]
    if size > max(count, _MOST_MADE):
        raise NotUnderstoodError(f"it makes more than {_MOST_MADE} channels")
    if size >= count:
        block = size // count
        positions, tags = np.repeat(np.arange(count), block), np.tile(np.arange(block), count)
        ids = labels.ids[positions]
        sources: tuple[Source, ...] = (Source(value, positions),)
    else:
        block, tags = count // size, None
        rows = labels.ids.reshape(size, block)
        for column in range(1, block):
            analysis.ties.tie(rows[:, 0], rows[:, column])
        ids = rows[:, 0]
        sources = tuple(Source(value, np.arange(size) * block + column) for column in range(block))
    if node.op_type == "Reshape" and require_entry_can_change(analysis, node, 1, axis, labels.axis, ids):
        analysis.settings.append(Setting(ids, lambda kept: set_numbers(analysis, node, 1, {axis: int(kept.sum())})))
    analysis.pass_on(node, Labels(len(after), axis, ids), sources, tags=tags)


def _axis_after(after: tuple[int, ...], outer: int, count: int, inner: int) -> int | None:
    """The axis of the new shape that holds the channels, whole, with some of what lies inside them, or in blocks."""
    for axis, size in enumerate(after):
        if prod(after[:axis]) != outer or size == 1 or count == 1:
            continue
        holds = size % count == 0 and inner % (size // count) == 0
        blocks = count % size == 0 and count // size <= _MOST_TIED
        return axis if holds or blocks else None
    return None


def _moved_axis(analysis: Analysis, node: ir.Node) -> None:
    """Squeeze and Unsqueeze."""
    labels = analysis.tracked(node.inputs[0])
    if labels is None:
        return
    if node.op_type == "Unsqueeze":
        axes = reduced_axes(node, labels.rank + _count_axes(node))
        if axes is None:
            raise NotUnderstoodError("its axes are computed")
        rank = labels.rank + len(axes)
        analysis.follow(node, axis=[axis for axis in range(rank) if axis not in axes][labels.axis], rank=rank)
        return
    axes = reduced_axes(node, labels.rank)
    if axes is None or labels.axis in axes:
        raise NotUnderstoodError("its axes are unknown")
    left = [axis for axis in range(labels.rank) if axis not in axes]
    analysis.follow(node, axis=left.index(labels.axis), rank=len(left))


def _count_axes(node: ir.Node) -> int:
    given = find_numbers(node.inputs[1]) if len(node.inputs) > 1 else node.attributes.get_ints("axes", ())
    return len(given) if given is not None else 0


def _concat(analysis: Analysis, node: ir.Node) -> None:
    """On the axis of the channels these are strung together, on another one they are tied."""
    tracked = [labels for labels in map(analysis.tracked, node.inputs) if labels is not None]
    if not tracked:
        return
    first = tracked[0]
    axis = node.attributes.get_int("axis", 1) % first.rank
    if any((labels.rank, labels.axis) != (first.rank, first.axis) for labels in tracked):
        raise NotUnderstoodError("its inputs have their channels on different axes")
    if axis != first.axis:
        if len(tracked) < len(node.inputs) or len({len(labels.ids) for labels in tracked}) > 1:
            raise NotUnderstoodError("an input has channels that are unknown")
        for labels in tracked:
            analysis.ties.tie(first.ids, labels.ids)
        sources = tuple(whole(value, analysis.labels[value]) for value in node.inputs if value is not None)
        analysis.pass_on(node, first, sources)
        return
    for value in node.inputs:
        if value is not None and value not in analysis.labels:
            _give_fixed_channels(analysis, value, first)
    joined = [(value, analysis.labels[value]) for value in node.inputs if value is not None]
    parts = [whole(value, labels) for value, labels in joined]
    ids = np.concatenate([labels.ids for _, labels in joined])
    analysis.pass_on(node, Labels(first.rank, axis, ids), tuple(parts), moves=True)


def _give_fixed_channels(analysis: Analysis, value: ir.Value, like: Labels) -> None:
    """Channels that stay, for an input of the network or for what is not understood."""
    size = analysis.known_shape(value)[like.axis]
    ids = analysis.ties.fresh(size)
    analysis.ties.block(ids, f"{value.name} is not made by a layer")
    analysis.labels[value] = Labels(like.rank, like.axis, ids)


def _split(analysis: Analysis, node: ir.Node) -> None:
    value = node.inputs[0]
    labels = analysis.tracked(value)
    if labels is None or value is None:
        return
    if node.attributes.get_int("axis", 0) % labels.rank != labels.axis:
        for index in range(len(node.outputs)):
            analysis.pass_on(node, labels, (whole(value, labels),), output=index, tags=np.full(len(labels.ids), index))
        return
    sizes = _split_sizes(node, len(labels.ids))
    if sum(sizes) != len(labels.ids):
        raise NotUnderstoodError("its sizes do not fit its input")
    ends = np.cumsum(sizes)

    def apply(kept: Kept) -> None:
        left = [int(part.sum()) for part in np.split(kept, ends[:-1])]
        node.attributes.pop("num_outputs", None)
        if analysis.model.opset_imports.get("", 1) < 13:
            node.attributes["split"] = ir.AttrInt64s("split", left)
        else:
            set_numbers(analysis, node, 1, dict(enumerate(left)), length=len(left))

    analysis.settings.append(Setting(labels.ids, apply))
    for index, positions in enumerate(np.split(np.arange(len(labels.ids)), ends[:-1])):
        part = Labels(labels.rank, labels.axis, labels.ids[positions])
        analysis.pass_on(node, part, (Source(value, positions),), output=index, moves=True)


def _split_sizes(node: ir.Node, size: int) -> list[int]:
    sizes = list(node.attributes.get_ints("split", ()))
    if len(node.inputs) > 1 and node.inputs[1] is not None:
        given = find_numbers(node.inputs[1])
        if given is None:
            raise NotUnderstoodError("its sizes are computed")
        sizes = given
    if sizes:
        return sizes
    each = -(-size // len(node.outputs))
    return [min(each, size - each * index) for index in range(len(node.outputs))]


def _slice(analysis: Analysis, node: ir.Node) -> None:
    value = node.inputs[0]
    labels = analysis.tracked(value)
    if labels is None or value is None:
        return
    if len(node.inputs) < 3:
        raise NotUnderstoodError("its ends are attributes")  # Before opset 10.
    starts, ends, axes, steps = (find_numbers(other) for other in [*node.inputs[1:], None, None][:4])
    axes = axes if len(node.inputs) > 3 else list(range(len(starts or ())))
    if axes is None:
        raise NotUnderstoodError("its axes are computed")
    axes = [axis % labels.rank for axis in axes]
    if labels.axis not in axes:
        analysis.follow(node)
        return
    index = axes.index(labels.axis)
    if starts is None or ends is None or (len(node.inputs) > 4 and (steps is None or steps[index] != 1)):
        raise NotUnderstoodError("it takes every other channel, or its ends are computed")
    count = len(labels.ids)
    first, last, _ = slice(starts[index], ends[index]).indices(count)
    if last <= first:
        raise NotUnderstoodError("it takes no channel")
    positions = np.arange(first, last)

    def apply(kept: Kept) -> None:
        set_numbers(analysis, node, 1, {index: int(kept[:first].sum())})
        set_numbers(analysis, node, 2, {index: int(kept[:last].sum())})

    analysis.settings.append(Setting(labels.ids, apply))
    analysis.pass_on(
        node, Labels(labels.rank, labels.axis, labels.ids[positions]), (Source(value, positions),), moves=True
    )


def _gather(analysis: Analysis, node: ir.Node) -> None:
    value = node.inputs[0]
    labels = analysis.tracked(value)
    if labels is None or value is None:
        return
    axis = node.attributes.get_int("axis", 0) % labels.rank
    indices = find_numbers(node.inputs[1])
    shape = analysis.shape(node.inputs[1])
    if axis != labels.axis:
        axes_added = len(shape) - 1 if shape is not None else None
        if axes_added is None or analysis.tracked(node.inputs[1]) is not None:
            raise NotUnderstoodError("its indices are computed")
        moved = labels.axis + (axes_added if labels.axis > axis else 0)
        analysis.follow(node, axis=moved, rank=labels.rank + axes_added)
        return
    if indices is None or shape is None or len(shape) != 1:
        raise NotUnderstoodError("it takes one channel, or its indices are computed")
    count = len(labels.ids)
    positions = np.array(indices, dtype=np.int64) % count
    ids = labels.ids[positions]

    def apply(kept: Kept) -> None:
        left = (np.cumsum(kept) - 1)[positions[kept[positions]]]
        set_numbers(analysis, node, 1, dict(enumerate(left.tolist())), length=len(left))

    analysis.settings.append(Setting(labels.ids, apply))
    analysis.pass_on(node, Labels(labels.rank, axis, ids), (Source(value, positions),), moves=True)


def _depth_to_space(analysis: Analysis, node: ir.Node) -> None:
    """Each output channel is made of block^2 input channels, which are tied."""
    value, labels = analysis.require(node.inputs[0])
    block = node.attributes.get_int("blocksize", 0) ** 2
    if labels.axis != 1 or block < 1 or len(labels.ids) % block:
        raise NotUnderstoodError("its block does not fit its channels")
    positions = np.arange(len(labels.ids))
    by_column = node.attributes.get_string("mode", "DCR") == "CRD"
    rows = positions.reshape(-1, block) if by_column else positions.reshape(block, -1).T
    for column in range(1, block):
        analysis.ties.tie(labels.ids[rows[:, 0]], labels.ids[rows[:, column]])
    sources = tuple(Source(value, rows[:, column]) for column in range(block))
    analysis.pass_on(node, Labels(labels.rank, 1, labels.ids[rows[:, 0]]), sources)


def _space_to_depth(analysis: Analysis, node: ir.Node) -> None:
    value, labels = analysis.require(node.inputs[0])
    if labels.axis != 1:
        raise NotUnderstoodError("its channels are on another axis")
    block, count = node.attributes.get_int("blocksize", 0) ** 2, len(labels.ids)
    positions: Ids = np.tile(np.arange(count), block)
    tags: Ids = np.repeat(np.arange(block), count)
    analysis.pass_on(node, Labels(4, 1, labels.ids[positions]), (Source(value, positions),), tags=tags)


LAYOUT: dict[str, Rule] = {
    "Transpose": _transpose,
    "Reshape": _reshape,
    "Flatten": _reshape,
    "Squeeze": _moved_axis,
    "Unsqueeze": _moved_axis,
    "Concat": _concat,
    "Split": _split,
    "Slice": _slice,
    "Gather": _gather,
    "DepthToSpace": _depth_to_space,
    "SpaceToDepth": _space_to_depth,
    "Shape": counts,
}
