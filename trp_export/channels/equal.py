"""Number what each channel computes, so that equal channels get equal numbers.

The numbers are made in the order of the graph, as a compiler numbers values. A channel of a layer gets its number from
its filter, in which the columns of equal inputs are summed and those of inputs that are always zero are left out; a
channel of any other operator from the numbers that it is computed from and from its own parameters. Two channels with
one number are equal on every input. A channel that is the same constant everywhere is known by its value.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import tanh
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from trp_export.channels.analysis import Analysis
from trp_export.channels.labels import Ids
from trp_export.channels.steps import Each, Mix, Rows, Source
from trp_export.graph.exact.affine import affine_terms
from trp_export.graph.weights import find_bias, find_constant
from trp_export.lowrank.factor import Float64
from trp_export.lowrank.schemes import Array

# Two filters are equal if their weights differ by less than this many roundings of the largest.
_ROUNDINGS = 4


@dataclass(slots=True)
class Numbers:
    """The number of each channel of each value, and the value of the constant ones, by number."""

    of_values: dict[ir.Value, Ids] = field(default_factory=dict)
    constants: dict[int, float] = field(default_factory=dict)
    _known: dict[object, int] = field(default_factory=dict)

    def intern(self, key: object) -> int:
        """The number of what `key` describes."""
        return self._known.setdefault(key, len(self._known))

    def constant(self, value: float) -> int:
        """The number of a channel that has this value everywhere."""
        number = self.intern(("constant", value))
        self.constants[number] = value
        return number

    def is_zero(self, value: ir.Value) -> NDArray[np.bool_]:
        """For each channel of a value whether it is always zero."""
        return np.array([self.constants.get(int(number)) == 0 for number in self.of_values[value]], dtype=bool)


def number_channels(analysis: Analysis, tolerance: float | None = None) -> Numbers:
    """The numbers of all channels. `tolerance` is relative to the largest weight; by default it is that of rounding."""
    numbers = Numbers()
    made = {step.output for step in analysis.steps}
    for value, labels in analysis.labels.items():
        if value not in made:  # An input of the network: each channel is itself.
            numbers.of_values[value] = np.array(
                [numbers.intern(("given", value.name, place)) for place in range(len(labels.ids))]
            )
    for step in analysis.steps:
        if isinstance(step, Mix):
            numbers.of_values[step.output] = _number_mix(step, numbers, tolerance)
        else:
            numbers.of_values[step.output] = _number_each(step, numbers, tolerance)
    return numbers


def _number_mix(step: Mix, numbers: Numbers, tolerance: float | None) -> Ids:
    kernel = step.kernel()
    group, outputs, inputs, _ = kernel.shape
    read = numbers.of_values[step.data] if step.data is not None else np.arange(group * inputs) - group * inputs
    bias = _bias(step.node, group * outputs)
    scale, spread = float(np.abs(kernel).max(initial=0.0)), _tolerance(step.weight.dtype, tolerance)
    made: list[int] = []
    for index in range(group):
        own = read[index * inputs : (index + 1) * inputs]
        columns, offset = _summed(kernel[index], own, numbers.constants, is_padded=step.is_padded)
        if bias is None:
            made += [numbers.intern((step.node.name, index, "own", row)) for row in range(outputs)]
            continue
        # In the precision of the layer, so that equal sums are equal.
        shift = (offset + bias[index * outputs : (index + 1) * outputs]).astype(kernel.dtype).astype(np.float64)
        rows = columns.reshape(outputs, -1)
        alive = np.asarray(rows.any(axis=1))
        for row, first in enumerate(equal_rows(rows, scale, spread).tolist()):
            key = (step.node.name, index, first, shift[row])
            made.append(numbers.intern(key) if alive[row] else numbers.constant(float(shift[row])))
    return np.array(made)


def _bias(node: ir.Node, outputs: int) -> Float64 | None:
    """(n,), None where it differs from row to row of a Gemm."""
    bias = find_bias(node)
    if bias is None or bias.size not in (1, outputs):
        return None
    return np.broadcast_to(bias, (outputs,))


def _summed(kernel: Array, read: Ids, constants: Mapping[int, float], *, is_padded: bool) -> tuple[Array, Float64]:
    """The kernel (n, c, k) with one column for each number that is read, and what constant inputs add to the output."""
    offset = np.zeros(len(kernel))
    unique, first, places = np.unique(read, return_index=True, return_inverse=True)
    columns = kernel[:, first].copy()
    for place in np.flatnonzero(np.bincount(places) > 1).tolist():
        columns[:, place] = kernel[:, places == place].sum(axis=1, dtype=np.float64)
    for place, number in enumerate(unique.tolist()):
        value = constants.get(number)
        if value == 0 or (value is not None and not is_padded):
            offset += value * columns[:, place].sum(axis=1, dtype=np.float64)
            columns[:, place] = 0
    return columns, offset


def equal_rows(rows: Array, scale: float, tolerance: float) -> Ids:
    """A class for each row; rows of one class differ from its first by at most `tolerance` times `scale` an entry.

    Rows are compared with those whose sums are near, since equal rows have equal sums.
    """
    sums = rows.sum(axis=1, dtype=np.float64)
    reach = tolerance * scale
    window = reach * rows.shape[1]
    classes = np.arange(len(rows))
    order = np.argsort(sums, kind="stable")
    firsts: list[int] = []
    for row in order.tolist():
        firsts = [first for first in firsts if sums[row] - sums[first] <= window]
        for first in firsts:
            if np.abs(rows[row] - rows[first]).max(initial=0.0) <= reach:
                classes[row] = first
                break
        else:
            firsts.append(row)
    return classes


def _tolerance(dtype: ir.DataType, given: float | None) -> float:
    return given if given is not None else _ROUNDINGS * float(np.finfo(dtype.numpy()).eps)


def _number_each(step: Each, numbers: Numbers, tolerance: float | None) -> Ids:
    parts = [_read(source, numbers) for source in step.sources]
    if step.moves:  # The parts of a Concat follow one another.
        return np.concatenate(parts)
    read = np.stack(parts, axis=1)
    own = [_classes(rows, tolerance)[positions] for rows, positions in step.parameters]
    tags = step.tags if step.tags is not None else np.zeros(len(read), np.int64)
    known = _constants(step, read, numbers)
    made = []
    for place, row in enumerate(read.tolist()):
        if known[place] is not None:
            made.append(numbers.constant(known[place]))
        elif step.node.op_type == "Add" and not own and len(row) == 2 and (zero := _zero(row, numbers)) is not None:
            made.append(row[1 - zero])
        else:
            key = (step.node.name, step.output.name, *row, *(int(part[place]) for part in own), int(tags[place]))
            made.append(numbers.intern(key))
    return np.array(made)


def _read(source: Source, numbers: Numbers) -> Ids:
    if source.value is None:
        return np.full(len(source.positions), numbers.constant(0.0))
    return numbers.of_values[source.value][source.positions]


def _zero(row: list[int], numbers: Numbers) -> int | None:
    return next((index for index, number in enumerate(row) if numbers.constants.get(number) == 0), None)


def _classes(rows: Rows, tolerance: float | None) -> Ids:
    array = rows.constant.array()
    flat = np.moveaxis(array, rows.axis, 0).reshape(len(rows.ids), -1)
    scale = float(np.abs(flat).max(initial=0.0)) if flat.dtype.kind == "f" else 0.0
    spread = _tolerance(rows.constant.dtype, tolerance) if flat.dtype.kind == "f" else 0.0
    return equal_rows(flat, scale, spread)


def _constants(step: Each, read: Ids, numbers: Numbers) -> list[Any]:
    """The value of each output channel that is constant, None for the others."""
    values = [[numbers.constants.get(number) for number in row] for row in read.tolist()]
    op_type = step.node.op_type
    if op_type == "BatchNormalization":
        return _normalised(step.node, values)
    if op_type in ("Conv", "ConvTranspose"):
        return _depthwise(step, values)
    if op_type == "Mul":
        values = [[0.0] if 0.0 in row else [None] for row in values]
    function = _FUNCTIONS.get(op_type)
    others = len(step.node.inputs) > len(step.sources)
    if function is None or (op_type in _ALL_OPERANDS and others) or (op_type == "Div" and not _divides(step)):
        return [None] * len(values)
    return [None if None in row else function(step.node, [value or 0.0 for value in row]) for row in values]


def _normalised(node: ir.Node, values: list[list[float | None]]) -> list[float | None]:
    affine = affine_terms(node)
    if affine is None:
        return [None] * len(values)
    known: list[float | None] = []
    for (value,), scale, shift in zip(values, *affine, strict=True):
        constant = float(shift) if scale == 0 else None if value is None else float(scale * value + shift)
        known.append(None if constant is None else float(np.float32(constant)))
    return known


def _depthwise(step: Each, values: list[list[float | None]]) -> list[float | None]:
    """A channel that reads zeros, or whose filter is zero, is its bias."""
    weight = step.parameters[0][0].constant.array()
    dead = np.abs(weight).reshape(len(values), -1).max(axis=1) == 0
    bias = find_bias(step.node)
    if bias is None:
        return [None] * len(values)
    shift = np.broadcast_to(bias, (len(values),))
    return [
        float(np.float32(shift[place])) if dead[place] or row == [0.0] else None for place, row in enumerate(values)
    ]


def _divides(step: Each) -> bool:
    """Whether the channels are divided by constants that are not zero."""
    divisor = find_constant(step.node.inputs[1])
    return divisor is not None and bool(divisor.array().all())


def _same(node: ir.Node, row: list[float]) -> float | None:
    return row[0] if len(set(row)) == 1 else None


def _if_zero(node: ir.Node, row: list[float]) -> float | None:
    """Of operators that make zeros of zeros, whatever they make of other constants."""
    return 0.0 if not any(row) else None


def _clip(node: ir.Node, row: list[float]) -> float | None:
    bounds = []
    for index, name in enumerate(("min", "max"), start=1):
        value = node.inputs[index] if len(node.inputs) > index else None
        constant = find_constant(value)
        if value is not None and (constant is None or constant.array().size != 1):
            return None
        bounds.append(
            float(constant.array().reshape(()))
            if constant
            else node.attributes.get_float(name, -np.inf if index == 1 else np.inf)
        )
    return float(min(max(row[0], bounds[0]), bounds[1]))


def _pad_value(node: ir.Node, row: list[float]) -> float | None:
    if node.attributes.get_string("mode", "constant") != "constant":
        return row[0]
    value = find_constant(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] is not None else None
    if len(node.inputs) > 2 and node.inputs[2] is not None and value is None:
        return None
    filled = float(value.array().reshape(())) if value is not None else node.attributes.get_float("value", 0.0)
    return row[0] if filled == row[0] else None


def _leaky(node: ir.Node, row: list[float]) -> float | None:
    return row[0] if row[0] >= 0 else row[0] * node.attributes.get_float("alpha", 0.01)


def _extrapolates(node: ir.Node, row: list[float]) -> float | None:
    mode = node.attributes.get_string("coordinate_transformation_mode", "half_pixel")
    return 0.0 if row[0] == 0 and mode != "tf_crop_and_resize" else None


# Zero only where all operands are.
_ALL_OPERANDS = ("Add", "Sub", "Sum")

# What an operator makes of channels that are constant. Of one that is not listed it is not known.
_FUNCTIONS: Mapping[str, Callable[[ir.Node, list[float]], float | None]] = {
    **dict.fromkeys(("Relu",), lambda node, row: max(row[0], 0.0)),
    **dict.fromkeys(("MaxPool", "GlobalMaxPool", "GlobalAveragePool", "Flatten", "Reshape", "Transpose"), _same),
    **dict.fromkeys(("Squeeze", "Unsqueeze", "ReduceMean", "ReduceMax", "ReduceMin", "Slice", "Gather"), _same),
    **dict.fromkeys(
        ("Mul", "PRelu", "AveragePool", "Abs", "Neg", "Elu", "Selu", "Gelu", "HardSwish", "Mish"), _if_zero
    ),
    **dict.fromkeys(("Swish", "Sqrt", "Erf", "Softsign", "Sin", "ReduceSum", "DepthToSpace", "SpaceToDepth"), _if_zero),
    **dict.fromkeys((*_ALL_OPERANDS, "Div"), _if_zero),
    "Tanh": lambda node, row: float(np.float32(tanh(row[0]))),
    "LeakyRelu": _leaky,
    "Clip": _clip,
    "Pad": _pad_value,
    "Resize": _extrapolates,
}
