"""Put QuantizeLinear and DequantizeLinear around the operators that are to run in 8 bits. This module decides nothing.

onnxruntime merges each operator with the pairs around it into one operator that computes in 8 bits.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from trp_export.graph.prepare import remove_unused
from trp_export.graph.weights import add_initializer, find_bias
from trp_export.precision.grids import Grid, round_bias, round_weight, weight_scales
from trp_export.precision.quantisable import MOVERS, QuantisableOp, Types, find_units, is_float, known_types

LEAST_OPSET = 13  # the first with one scale per channel
# The name of a value after rounding is its name before with this added.
ROUNDED = ".rounded"


def rounded_values(model: ir.Model, kept: Collection[str] = (), types: Types | None = None) -> dict[str, str]:
    """The values to round, each with the name of the value whose grid it takes: itself, or the value that it moves.

    `kept` are the names of the units that stay in float; `types` are those that `known_types` gives.
    """
    types = known_types(model) if types is None else types
    names = {
        value.name or ""
        for unit in find_units(model, types)
        if unit.name not in kept
        for value in (*unit.inputs, unit.output)
        if value is not None
    }
    moves = [move for node in model.graph if (move := _move(node, types)) is not None]
    for source, moved in reversed(moves):
        if moved in names:
            names.add(source)
    grids = {name: name for name in names}
    for source, moved in moves:
        if source in names:
            grids[moved] = grids[source]
    return grids


def _move(node: ir.Node, types: Types) -> tuple[str, str] | None:
    """The names of the input and the output of a node that only moves floats."""
    if node.domain not in ("", "ai.onnx") or node.op_type not in MOVERS or len(node.outputs) != 1:
        return None
    source = node.inputs[0]
    if source is None or source.is_initializer() or not is_float(source, types):
        return None
    return source.name or "", node.outputs[0].name or ""


def round_model(
    model: ir.Model, grids: Mapping[str, Grid], kept: Collection[str] = (), types: Types | None = None
) -> None:
    """Make all units except the `kept` run in 8 bits, in place. `grids` holds one grid for each rounded value."""
    types = known_types(model) if types is None else types
    units = [unit for unit in find_units(model, types) if unit.name not in kept]
    sources = rounded_values(model, kept, types)
    values = {value.name or "": value for value in model.graph.inputs}
    values |= {value.name or "": value for node in model.graph for value in node.outputs}
    _Rounder(model, {name: grids[source] for name, source in sources.items()}).all(units, values)
    remove_unused(model)  # The float weights.


@dataclass(slots=True)
class _Rounder:
    model: ir.Model
    grids: Mapping[str, Grid]

    def all(self, units: Sequence[QuantisableOp], values: Mapping[str, ir.Value]) -> None:
        shared: dict[tuple[ir.Value, int], list[QuantisableOp]] = {}
        for unit in units:
            if unit.weight is not None:
                shared.setdefault((unit.weight.root, unit.output_axis), []).append(unit)
        for layers in shared.values():
            self._weight(layers)
        for name, grid in self.grids.items():
            self._activation(values[name], grid)

    def _activation(self, value: ir.Value, grid: Grid) -> None:
        graph, name = self.model.graph, value.name or ""
        scale = add_initializer(graph, f"{name}.scale", np.array(grid.scale), ir.DataType.FLOAT)
        zero = add_initializer(graph, f"{name}.zero", np.array(grid.zero), ir.DataType.UINT8)
        quantise = ir.node("QuantizeLinear", [value, scale, zero], name=f"{name}.quantize")
        dequantise = ir.node("DequantizeLinear", [quantise.outputs[0], scale, zero], name=f"{name}.dequantize")
        quantise.outputs[0].name, after = f"{name}.uint8", dequantise.outputs[0]
        after.name, after.type, after.shape = f"{name}{ROUNDED}", value.type, value.shape
        producer = value.producer()
        value.replace_all_uses_with(after, replace_graph_outputs=True)
        quantise.replace_input_with(0, value)
        if after.is_graph_output():
            after.name, value.name = name, f"{name}.float"
        if producer is None:
            graph.insert_before(graph[0], [quantise, dequantise])
        else:
            graph.insert_after(producer, [quantise, dequantise])

    def _weight(self, units: Sequence[QuantisableOp]) -> None:
        """Round a weight once for all units that read it; each has a bias in steps of its own input."""
        weight, axis = units[0].weight, units[0].output_axis
        assert weight is not None
        kernel, grids = weight.array(), [self.grids[unit.inputs[0].name or ""] for unit in units]
        biases = [_bias(unit) for unit in units]
        needed = [weight_scales(kernel, axis, bias, own.scale) for bias, own in zip(biases, grids, strict=True)]
        scales = np.max(needed, axis=0)
        whole = self._store(weight.root.name or units[0].name, round_weight(kernel, scales, axis), scales)
        for unit, bias, grid in zip(units, biases, grids, strict=True):
            unit.node.replace_input_with(1, self._floats(unit.node, whole, axis))
            if bias is not None:
                steps = (scales.astype(np.float64) * grid.scale).astype(np.float32)
                stored = self._store(f"{unit.name}.bias", round_bias(bias, steps), steps)
                unit.node.replace_input_with(2, self._floats(unit.node, stored, 0))

    def _store(self, name: str, whole: NDArray[np.signedinteger], scales: NDArray[np.float32]) -> list[ir.Value]:
        """Whole numbers in place of a constant, with their scales and, for weights, their zero points."""
        graph, dtype = self.model.graph, ir.DataType.from_numpy(whole.dtype)
        stored = [
            add_initializer(graph, f"{name}.{dtype.name.lower()}", whole, dtype),  # type: ignore[arg-type]
            add_initializer(graph, f"{name}.scale", scales, ir.DataType.FLOAT),
        ]
        if dtype != ir.DataType.INT32:  # onnxruntime merges weights only where zero points are stored.
            stored.append(add_initializer(graph, f"{name}.zero", np.zeros(scales.shape), dtype))
        return stored

    def _floats(self, reader: ir.Node, stored: Sequence[ir.Value], axis: int) -> ir.Value:
        """Add the node that turns whole numbers into floats for one reader, as onnxruntime wants it."""
        count = len(stored[0].uses())
        name = f"{stored[0].name}.{count}" if count else stored[0].name
        node = ir.node("DequantizeLinear", stored, {"axis": axis}, name=f"{name}.dequantize")
        node.outputs[0].name = f"{name}.rounded"
        node.outputs[0].type, node.outputs[0].shape = ir.TensorType(ir.DataType.FLOAT), stored[0].shape
        self.model.graph.insert_before(reader, node)
        return node.outputs[0]


def _bias(unit: QuantisableOp) -> NDArray[np.float64] | None:
    """The bias with one entry for each output channel; None where the layer has none."""
    if len(unit.node.inputs) < 3 or unit.node.inputs[2] is None:
        return None
    assert unit.weight is not None
    bias = find_bias(unit.node)
    assert bias is not None
    return np.broadcast_to(bias, (unit.weight.shape[unit.output_axis],))
