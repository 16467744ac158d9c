"""Convert a model to another precision for timing only: the operators that would ship, with ranges from random inputs.

Ranges do not affect the time, with one exception: a value that is never negative gets a grid from zero, which makes its
Relu free.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from trp_export.precision.fp16 import to_fp16
from trp_export.precision.grids import Grid, grid_between
from trp_export.precision.int8 import raise_opset
from trp_export.precision.quantisable import find_units
from trp_export.precision.rounding import round_model, rounded_values
from trp_export.runtime.partial import Tap

Shapes = Mapping[str, Sequence[int | None]]


def convert_for_speed(model: ir.Model, precision: str, shapes: Shapes) -> ir.Model:
    """A copy of the model in fp32, fp16 or int8. `shapes` are the shapes of its inputs.

    In int8 a model without a layer that can run in 8 bits stays in float, as it would ship. Raises UnsupportedError.
    """
    if precision == "fp32":
        return model
    ir.external_data.load_to_model(model)
    if precision == "fp16":
        return to_fp16(model)
    if not any(unit.weight is not None for unit in find_units(model)):
        return model
    made = raise_opset(model.clone())
    round_model(made, _grids_of_noise(made, shapes))
    return made


def _grids_of_noise(model: ir.Model, shapes: Shapes) -> dict[str, Grid]:
    generator = np.random.default_rng(0)
    inputs = [value.name or "" for value in model.graph.inputs]
    tap = Tap(model, inputs, sorted(set(rounded_values(model).values())), threads=1)
    found = tap({name: generator.standard_normal([size or 1 for size in shapes[name]]) for name in tap.inputs})
    return {name: _grid(values) for name, values in found.items()}


def _grid(values: NDArray[Any]) -> Grid:
    low, high = float(values.min(initial=0)), float(values.max(initial=0))
    return grid_between(low, high) if np.isfinite([low, high]).all() else grid_between(-1.0, 1.0)
