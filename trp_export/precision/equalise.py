"""Scale the channels between reduce and expand to similar ranges, so that one grid suits all of them.

    expand(reduce(x)) = (expand / a)(a reduce(x))   for any a > 0 per channel

The result in float stays the same. In 8 bits, weights have one scale per channel and the values between the two layers
have a single scale. The rescaling is also exact through a Relu, where measurements showed no gain.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from trp_export.graph.weights import Constant, find_bias, find_constant, set_value
from trp_export.inputs.samples import Batch
from trp_export.lowrank.factor import Float64
from trp_export.runtime.partial import Tap

# How far ranges are equalised, in logarithms. Chosen by measurement: what values gain, the next weights lose.
_STRENGTH = 0.75
_LARGEST_FACTOR = 2.0**10


@dataclass(frozen=True, slots=True, eq=False)
class _Pair:
    """Convs of one weight, each of whose outputs is read by exactly one other conv, all of these with one weight."""

    first: ir.Node
    second: ir.Node
    between: tuple[str, ...]


def equalise(model: ir.Model, batches: Sequence[Batch]) -> int:
    """Rescale the channels between each two convs that follow one another, in place. Returns the number of pairs."""
    pairs = list(_pairs(model))
    if not pairs:
        return 0
    ranges = _channel_ranges(model, [name for pair in pairs for name in pair.between], batches)
    for pair in pairs:
        _rescale(pair, _factors(np.max([ranges[name] for name in pair.between], axis=0)))
    return len(pairs)


def _pairs(model: ir.Model) -> Iterator[_Pair]:
    """Pairs that share both weights and the first bias are one."""
    found: dict[tuple[ir.Value | None, ...], list[tuple[ir.Node, ir.Node]]] = {}
    for node in model.graph:
        readers = node.outputs[0].consumers() if node.op_type == "Conv" else ()
        if len(readers) == 1 and readers[0].op_type == "Conv" and not node.outputs[0].is_graph_output():
            bias = node.inputs[2] if len(node.inputs) > 2 else None
            found.setdefault((node.inputs[1], bias, readers[0].inputs[1]), []).append((node, readers[0]))
    for pairs in found.values():
        first, second = pairs[0]
        groups = {conv.attributes.get_int("group", 1) for _, conv in pairs}
        if _own_weights([node for node, _ in pairs]) and _own_weights([conv for _, conv in pairs]) and len(groups) == 1:
            yield _Pair(first, second, tuple(node.outputs[0].name or "" for node, _ in pairs))


def _own_weights(convs: Sequence[ir.Node]) -> bool:
    """True where weights and biases are constants that only these layers read."""
    constants = [(conv, find_constant(value)) for conv in convs for value in conv.inputs[1:] if value is not None]
    return all(
        c is not None and c.root in conv.inputs and {reader for reader, _ in c.root.uses()} <= {*convs}
        for conv, c in constants
    )


def _channel_ranges(model: ir.Model, names: Sequence[str], batches: Sequence[Batch]) -> dict[str, Float64]:
    """The largest absolute value of each channel: (n,)."""
    tap = Tap(model, [value.name or "" for value in model.graph.inputs], names)
    ranges: dict[str, Float64] = {}
    for batch in batches:
        for name, array in tap(batch.arrays).items():
            largest = np.abs(array).max(axis=(0, *range(2, array.ndim)), initial=0).astype(np.float64)
            ranges[name] = np.maximum(ranges.get(name, largest), largest)
    return ranges


def _factors(ranges: Float64) -> Float64:
    """The factor of each channel: (n,). Channels that are always zero keep a factor of 1."""
    alive = ranges > 0
    if not alive.any():
        return np.ones_like(ranges)
    middle = np.exp(np.log(ranges[alive]).mean())
    wanted = (middle / np.where(alive, ranges, middle)) ** _STRENGTH
    return np.asarray(np.clip(wanted, 1 / _LARGEST_FACTOR, _LARGEST_FACTOR))


def _rescale(pair: _Pair, factors: Float64) -> None:
    first, second = _constant(pair.first, 1), _constant(pair.second, 1)
    set_value(first.root, first.array() * _along(factors, 0, first.array().ndim))
    if len(pair.first.inputs) > 2 and pair.first.inputs[2] is not None:
        bias = find_bias(pair.first)
        assert bias is not None
        set_value(_constant(pair.first, 2).root, bias * factors)
    group = pair.second.attributes.get_int("group", 1)
    kernel = second.array()  # (n, c/group, *k): each group of outputs reads its own part of the channels
    parts = kernel.reshape(group, -1, *kernel.shape[1:])
    own = factors.reshape(group, 1, -1, *[1] * (kernel.ndim - 2))
    set_value(second.root, (parts / own).reshape(kernel.shape))


def _constant(node: ir.Node, index: int) -> Constant:
    constant = find_constant(node.inputs[index])
    assert constant is not None
    return constant


def _along(values: Float64, axis: int, axes: int) -> Float64:
    return values.reshape([-1 if other == axis else 1 for other in range(axes)])
