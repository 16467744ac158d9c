"""Number what each channel computes, so that equal channels get equal numbers.

The numbers are made in the order of the graph, as a compiler numbers values. A channel of a layer gets its number from
its filter, in which the columns of equal inputs are summed and those of inputs that are always zero are left out; a
channel of any other operator from the numbers that it is computed from and from its own parameters. Two channels with
one number are equal on every input. A channel that is the same constant everywhere is known by its value.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from trp_export.channels.analysis import Analysis
from trp_export.channels.constants import constants_of
from trp_export.channels.labels import Ids
from trp_export.channels.steps import Each, Mix, Rows, Source
from trp_export.graph.weights import find_bias
from trp_export.lowrank.factor import Float64
from trp_export.lowrank.schemes import Array

# Two filters are equal if their weights differ by less than this many roundings of the largest.
_ROUNDINGS = 4
# Entries that tell rows apart before all of them are compared, and of how many they are chosen.
_PROBES, _SAMPLED = 32, 256
_BFLOAT16_EPS = 2.0**-7  # numpy has no bfloat16.


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

    def values(self, numbers: Ids) -> Float64:
        """The value of each channel by its number, NaN where it is not constant."""
        known = [self.constants.get(number, np.nan) for number in numbers.reshape(-1).tolist()]
        return np.array(known).reshape(numbers.shape)

    def spare(self, step: Mix) -> NDArray[np.bool_]:
        """For each channel that a layer reads whether the layer can do without: it is zero, or goes into the bias."""
        assert step.data is not None, "what a layer of unknown channels reads stays"
        constants = self.values(self.of_values[step.data])
        return constants == 0 if not takes_constants(step) else ~np.isnan(constants)


def number_channels(analysis: Analysis) -> Numbers:
    """The numbers of all channels."""
    numbers = Numbers()
    is_double = any(isinstance(step, Mix) and step.weight.dtype == ir.DataType.DOUBLE for step in analysis.steps)
    precision = np.dtype(np.float64 if is_double else np.float32)
    made = {step.output for step in analysis.steps}
    for value, labels in analysis.labels.items():
        if value not in made:  # An input of the network: each channel is itself.
            numbers.of_values[value] = np.array(
                [numbers.intern(("given", value.name, place)) for place in range(len(labels.ids))]
            )
    for step in analysis.steps:
        if isinstance(step, Mix):
            numbers.of_values[step.output] = _number_mix(step, numbers)
        else:
            numbers.of_values[step.output] = _number_each(step, numbers, precision)
    return numbers


def _number_mix(step: Mix, numbers: Numbers) -> Ids:
    kernel = step.kernel()
    group, outputs, inputs, _ = kernel.shape
    read = numbers.of_values[step.data] if step.data is not None else np.arange(group * inputs) - group * inputs
    bias = _bias(step.node, group * outputs)
    # Without np.abs, which would copy the kernel.
    scale = float(max(kernel.max(initial=0.0), -kernel.min(initial=0.0)))
    spread = _tolerance(step.weight.dtype)
    made: list[int] = []
    for index in range(group):
        own = read[index * inputs : (index + 1) * inputs]
        columns, offset = _summed(kernel[index], own, numbers.constants, is_padded=step.is_padded)
        if bias is None:
            made += [numbers.intern((step.node.name, index, "own", row)) for row in range(outputs)]
            continue
        # In the precision of the layer, so that equal sums are equal.
        shift = (
            (step.alpha * offset + bias[index * outputs : (index + 1) * outputs])
            .astype(kernel.dtype)
            .astype(np.float64)
        )
        rows = columns.reshape(outputs, -1)
        alive = np.asarray(rows.any(axis=1))
        for row, first in enumerate(equal_rows(rows, scale, spread).tolist()):
            key = (step.node.name, index, first, shift[row])
            made.append(numbers.intern(key) if alive[row] else numbers.constant(float(shift[row])))
    return np.array(made)


def takes_constants(step: Mix) -> bool:
    """Whether a layer can add what it makes of constant channels to its bias: not where padding cuts them off."""
    return (
        step.node.op_type in ("Conv", "Gemm") and not step.is_padded and _bias(step.node, len(step.outputs)) is not None
    )


def _bias(node: ir.Node, outputs: int) -> Float64 | None:
    """(n,), None where it differs from row to row of a Gemm."""
    bias = find_bias(node)
    if bias is None or bias.size not in (1, outputs):
        return None
    return np.broadcast_to(bias, (outputs,))


def _summed(kernel: Array, read: Ids, constants: Mapping[int, float], *, is_padded: bool) -> tuple[Array, Float64]:
    """The kernel (n, c, k) with one column for each number that is read, and what constant inputs add to the output.

    The kernel itself, not a copy, where it has such columns and no input is constant.
    """
    offset = np.zeros(len(kernel))
    unique, first, places = np.unique(read, return_index=True, return_inverse=True)
    known = {place: constants[number] for place, number in enumerate(unique.tolist()) if number in constants}
    moved = {place: value for place, value in known.items() if value == 0 or not is_padded}
    if len(unique) == len(read) and not moved:
        return kernel, offset
    columns = kernel[:, first]
    for place in np.flatnonzero(np.bincount(places) > 1).tolist():
        columns[:, place] = kernel[:, places == place].sum(axis=1, dtype=np.float64)
    for place, value in moved.items():
        offset += value * columns[:, place].sum(axis=1, dtype=np.float64)
        columns[:, place] = 0
    return columns, offset


def equal_rows(rows: Array, scale: float, tolerance: float) -> Ids:
    """A class for each row; rows of one class differ from its first by at most `tolerance` times `scale` an entry.

    Rows are compared with those that are near in a few entries, which tell most rows apart.
    """
    reach = tolerance * scale
    probes = rows[:, _telling(rows)].astype(np.float64)
    sums = probes.sum(axis=1)
    window = reach * probes.shape[1]
    classes, firsts = np.arange(len(rows)), np.zeros(len(rows), np.int64)
    start = end = 0  # The first rows of classes whose sums are within the window.
    for row in np.argsort(sums, kind="stable").tolist():
        while start < end and not sums[row] - sums[firsts[start]] <= window:
            start += 1
        near = firsts[start:end][(np.abs(probes[firsts[start:end]] - probes[row]) <= reach).all(axis=1)]
        for first in near.tolist():
            if np.abs(rows[row] - rows[first]).max(initial=0.0) <= reach:
                classes[row] = first
                break
        else:
            firsts[end] = row
            end += 1
    return classes


def _telling(rows: Array) -> NDArray[np.intp]:
    """A few entries in which rows differ most, of a sample of them: in a sparse kernel most are zero."""
    sample = np.unique(np.linspace(0, max(rows.shape[1] - 1, 0), _SAMPLED).astype(np.intp))[: rows.shape[1]]
    return sample[np.argsort(rows[:, sample].std(axis=0, dtype=np.float64))[-_PROBES:]]


def _tolerance(dtype: ir.DataType) -> float:
    """By how much equal weights may differ by rounding, relative to the largest."""
    return _ROUNDINGS * (_BFLOAT16_EPS if dtype == ir.DataType.BFLOAT16 else float(np.finfo(dtype.numpy()).eps))


def _number_each(step: Each, numbers: Numbers, precision: np.dtype[Any]) -> Ids:
    parts = [_read(source, numbers) for source in step.sources]
    if step.moves:  # The parts of a Concat follow one another.
        return np.concatenate(parts)
    read = np.stack(parts, axis=1)
    own = [_classes(rows)[positions] for rows, positions in step.parameters]
    tags = step.tags if step.tags is not None else np.zeros(len(read), np.int64)
    known = constants_of(step, numbers.values(read), precision)
    made = []
    for place, row in enumerate(read.tolist()):
        if not np.isnan(known[place]):
            made.append(numbers.constant(float(known[place])))
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


def _classes(rows: Rows) -> Ids:
    array = rows.constant.array()
    flat = np.moveaxis(array, rows.axis, 0).reshape(len(rows.ids), -1)
    flat = flat.astype(np.int8) if flat.dtype.kind == "b" else flat  # numpy subtracts no truth values.
    scale = float(np.abs(flat).max(initial=0.0)) if flat.dtype.kind == "f" else 0.0
    spread = _tolerance(rows.constant.dtype) if flat.dtype.kind == "f" else 0.0
    return equal_rows(flat, scale, spread)
