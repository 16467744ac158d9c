"""Where an input holds its channels, read from the graph: followed from the input to what first mixes channels."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

# For each axis of a value, the axis of the input that it came from; None for a new one.
_Axes = tuple[int | None, ...]

_CONVOLUTIONS = ("Conv", "ConvTranspose", "ConvInteger", "QLinearConv", "FusedConv")
# These, too, have their channels second, though their weights do not count the input's channels.
_CHANNELS_SECOND = (
    *("BatchNormalization", "InstanceNormalization", "GroupNormalization", "MaxPool", "AveragePool", "LRN"),
    *("GlobalAveragePool", "GlobalMaxPool", "DepthToSpace", "SpaceToDepth", "Resize", "Upsample", "GridSample"),
)
_AXES_KEPT = (
    *("Abs", "Add", "BatchNormalization", "Cast", "CastLike", "Clip", "Concat", "DequantizeLinear", "Div", "Dropout"),
    *("Exp", "Floor", "Gather", "Identity", "InstanceNormalization", "LeakyRelu", "Log", "Max", "MaxPool", "Min"),
    *("AveragePool", "Mul", "Neg", "Pad", "Pow", "PRelu", "QuantizeLinear", "Relu", "Resize", "Round", "Sigmoid"),
    *("Slice", "Split", "Sqrt", "Sub", "Sum", "Tanh", "Upsample", "Where", "DynamicQuantizeLinear"),
)
# On their way the number of channels may change.
_CHANNELS_CHANGE = ("Concat", "Gather", "Pad", "Slice", "Split")
# Steps that a network takes when it scales pixels of 0 to 255 itself: what the smallest such divisor, mean, ... is.
_LEAST_DIVISOR, _LEAST_MEAN = 50.0, 20.0
_MOST_NODES = 10_000


@dataclass(frozen=True, slots=True)
class Reading:
    """What the graph says about an input: the axis of its channels, their number, and the axes before the conv.

    `channel_axis` is None where the graph does not tell; `rank` is that of the value that the conv reads. `convolved`
    is False where no conv was reached. `takes_pixels` is True where the graph scales pixels of 0 to 255 itself.
    """

    channel_axis: int | None = None
    channels: int | None = None
    rank: int | None = None
    convolved: bool = False
    takes_pixels: bool = False


def read_channels(value: ir.Value) -> Reading:
    """Follow an input to the first conv, else to the first operator that has its channels second."""
    rank = None if value.shape is None else len(value.shape)
    if rank is None:
        return Reading()
    second: Reading | None = None
    pixels = _takes_pixels(value)
    pending: deque[tuple[ir.Value, _Axes, bool]] = deque([(value, tuple(range(rank)), True)])
    reached = {value}
    for _ in range(_MOST_NODES):
        if not pending:
            break
        current, axes, counted = pending.popleft()
        for node, index in current.uses():
            if index == 0 and node.op_type in _CONVOLUTIONS and len(axes) >= 3:
                return Reading(axes[1], _input_channels(node) if counted else None, len(axes), True, pixels)
            if index == 0 and node.op_type == "NhwcConv" and len(axes) == 4:
                return Reading(axes[3], None, 4, True, pixels)
            if index == 0 and node.op_type in _CHANNELS_SECOND and len(axes) >= 3 and second is None:
                second = Reading(axes[1], None, len(axes), False, pixels)
            after = _axes_after(node, index, axes)
            for output in node.outputs if after is not None else ():
                if after is not None and output not in reached:
                    reached.add(output)
                    pending.append((output, after, counted and node.op_type not in _CHANNELS_CHANGE))
    return second or Reading(takes_pixels=pixels)


def _axes_after(node: ir.Node, index: int, axes: _Axes) -> _Axes | None:
    """The axes of a node's output, None where they cannot be followed."""
    if node.domain not in ("", "ai.onnx", "com.microsoft"):
        return None
    if node.op_type == "Transpose":
        order = node.attributes.get_ints("perm", list(range(len(axes)))[::-1])
        return tuple(axes[axis] for axis in order) if sorted(order) == list(range(len(axes))) else None
    if index == 0 and node.op_type in ("Unsqueeze", "Squeeze"):
        return _after_squeeze(node, axes)
    if index == 0 and node.op_type in ("Reshape", "Flatten"):
        return _after_reshape(node, axes)
    if node.op_type == "Gather":
        indices = _constant(node.inputs[1]) if len(node.inputs) > 1 else None
        return axes if index == 0 and indices is not None and indices.ndim == 1 else None
    if node.op_type in _AXES_KEPT:
        others = [value for value in node.inputs if value is not None and value.shape is not None]
        wider = any(len(value.shape or ()) > len(axes) for value in others)
        return None if wider and node.op_type not in ("Resize", "Upsample", "Pad", "Slice") else axes
    return None


def _after_squeeze(node: ir.Node, axes: _Axes) -> _Axes | None:
    named = _axes_of(node)
    if named is None:
        return None
    if node.op_type == "Squeeze":
        dropped = {axis % len(axes) for axis in named if -len(axes) <= axis < len(axes)}
        return tuple(axis for index, axis in enumerate(axes) if index not in dropped)
    rank = len(axes) + len(named)
    new = {axis % rank for axis in named}
    rest = iter(axes)
    return tuple(None if index in new else next(rest, None) for index in range(rank))


def _after_reshape(node: ir.Node, axes: _Axes) -> _Axes | None:
    """A Reshape that only moves an axis of size 1, as exporters write it for a Transpose of grey images."""
    source, target = node.inputs[0], _constant(node.inputs[1]) if len(node.inputs) > 1 else None
    if target is None or source is None or source.shape is None or (len(axes), target.size) != (4, 4):
        return None
    before = [dim if isinstance(dim, int) else None for dim in source.shape]
    if before[3] == 1 and target[1] == 1:
        return axes[0], axes[3], axes[1], axes[2]
    if before[1] == 1 and target[3] == 1:
        return axes[0], axes[2], axes[3], axes[1]
    return None


def _axes_of(node: ir.Node) -> Sequence[int] | None:
    if "axes" in node.attributes:
        return node.attributes.get_ints("axes", [])
    values = _constant(node.inputs[1]) if len(node.inputs) > 1 else None
    return None if values is None else [int(axis) for axis in values.reshape(-1)]


def _input_channels(node: ir.Node) -> int | None:
    weight = node.inputs[3] if node.op_type == "QLinearConv" else node.inputs[1]
    tensor = ir.convenience.get_const_tensor(weight) if weight is not None else None
    shape = None if tensor is None else tensor.shape.numpy()
    if shape is None or len(shape) < 3:
        return None
    if node.op_type == "ConvTranspose":
        return int(shape[0])
    return int(shape[1]) * node.attributes.get_int("group", 1)


def _takes_pixels(value: ir.Value) -> bool:
    """Whether the first arithmetic on the input divides by some 255, or subtracts a mean of pixels."""
    current = value
    for _ in range(8):
        nodes = [node for node, _ in current.uses() if node.op_type != "Shape"]
        if len(nodes) != 1:
            return False
        (node,) = nodes
        if node.op_type in ("Sub", "Add", "Mul", "Div") and len(node.inputs) == 2:
            return any(_scales_pixels(node.op_type, array) for array in _constants(node))
        if node.op_type not in ("Cast", "Identity", "Transpose", "Gather", "Unsqueeze", "Squeeze", "Reshape"):
            return False
        current = node.outputs[0]
    return False


def _scales_pixels(operator: str, array: np.ndarray) -> bool:
    values = np.asarray(array, dtype=np.float64)
    if operator == "Div":
        return bool(values.min() >= _LEAST_DIVISOR)
    if operator == "Mul":
        return bool(0 < values.min() <= values.max() <= 1 / _LEAST_DIVISOR)
    return bool((values if operator == "Sub" else -values).min() >= _LEAST_MEAN)


def _constants(node: ir.Node) -> Iterator[np.ndarray]:
    for value in node.inputs:
        array = _constant(value)
        if array is not None and array.size and array.dtype.kind in "fiu":
            yield array


def _constant(value: ir.Value | None) -> np.ndarray | None:
    """A small constant; large ones stay in their files."""
    tensor = ir.convenience.get_const_tensor(value) if value is not None else None
    return np.asarray(tensor.numpy()) if tensor is not None and tensor.size <= 4096 else None
