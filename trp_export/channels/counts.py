"""Numbers of channels that the graph itself computes, from the shape of a tensor.

Such a number follows the channels by itself. That is right where it serves to reshape or resize a tensor of the same
channels; anywhere else the channels stay.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from trp_export.channels.analysis import Analysis
from trp_export.channels.labels import Ids
from trp_export.graph.weights import find_numbers

# Operators that a shape goes through on its way to its reader.
_PASSED = ("Add", "Cast", "Concat", "Div", "Floor", "Gather", "Identity", "Mul", "Slice", "Squeeze", "Sub", "Unsqueeze")


def counts(analysis: Analysis, node: ir.Node) -> None:
    """The rule of Shape: what reads the number of channels is judged when all nodes are known."""
    value = node.inputs[0]
    labels = analysis.tracked(value)
    if labels is None:
        return
    span = _span(node, labels.rank)
    if labels.axis in span:
        analysis.counted.append((node, labels, span.index(labels.axis), len(span)))


def judge_counts(analysis: Analysis) -> None:
    """Make channels stay whose number is read by anything but what the rules have seen to follow it."""
    for node, labels, place, length in analysis.counted:
        stray = _stray_reader(analysis, node.outputs[0], place, length)
        if stray is not None:
            analysis.ties.block(labels.ids, f"{stray.op_type} {stray.name} depends on how many there are")


def _stray_reader(analysis: Analysis, value: ir.Value, place: int | None, length: int) -> ir.Node | None:
    """The first reader of the entry at `place` of a shape, or of any entry, that does not follow the channels."""
    for reader, index in value.uses():
        if (reader, index) in analysis.follows:
            continue
        if reader.op_type not in _PASSED:
            return reader
        if place is not None and reader.op_type in ("Gather", "Slice") and _leaves_out(reader, place, length):
            continue
        after = place if reader.op_type in ("Cast", "Identity") else None
        stray = _stray_reader(analysis, reader.outputs[0], after, length)
        if stray is not None:
            return stray
    return value.producer() if value.is_graph_output() else None


def _leaves_out(reader: ir.Node, place: int, length: int) -> bool:
    numbers = [find_numbers(value) for value in reader.inputs[1:]]
    if reader.op_type == "Gather":
        return numbers[0] is not None and place not in [number % length for number in numbers[0]]
    bounds = _bounds(numbers)
    return bounds is not None and place not in list(range(length))[bounds[0] : bounds[1]]


def counts_channels(analysis: Analysis, value: ir.Value | None, place: int, ids: Ids) -> bool:
    """Whether this entry of a value, and no other, is the number of these channels, from the shape of a tensor."""
    sizes = _sizes(analysis, value)
    if sizes is None or place >= len(sizes) or sizes.count(sizes[place]) > 1:
        return False
    tensor, axis = sizes[place]
    labels = analysis.labels[tensor]
    return labels.axis == axis and analysis.ties.roots(labels.ids).tolist() == analysis.ties.roots(ids).tolist()


def _sizes(analysis: Analysis, value: ir.Value | None) -> list[tuple[ir.Value, int]] | None:
    """For each entry of a value the tensor with channels, and its axis, that it is the size of; None for any other."""
    node = value.producer() if value is not None else None
    first = node.inputs[0] if node is not None and node.inputs else None
    if node is None or first is None:
        return None
    if node.op_type == "Shape":
        labels = analysis.tracked(first)
        return [(first, axis) for axis in _span(node, labels.rank)] if labels is not None else None
    if node.op_type not in ("Cast", "Gather", "Identity", "Slice", "Squeeze", "Unsqueeze"):
        return None
    sizes, numbers = _sizes(analysis, first), [find_numbers(other) for other in node.inputs[1:]]
    if sizes is None or node.op_type not in ("Gather", "Slice"):
        return sizes
    if node.op_type == "Gather":
        return [sizes[number] for number in numbers[0]] if numbers[0] is not None else None
    bounds = _bounds(numbers)
    return sizes[bounds[0] : bounds[1]] if bounds is not None else None


def _bounds(numbers: Sequence[list[int] | None]) -> tuple[int, int] | None:
    """Where a Slice of a shape begins and ends; None where that is computed, or entries between are left out."""
    if len(numbers) < 2 or numbers[0] is None or numbers[1] is None or (len(numbers) > 3 and numbers[3] != [1]):
        return None
    return numbers[0][0], numbers[1][0]


def _span(shape: ir.Node, rank: int) -> list[int]:
    """The axes whose sizes a Shape gives."""
    start, end = shape.attributes.get_int("start", 0), shape.attributes.get_int("end", rank)
    return list(range(rank))[start:end]
