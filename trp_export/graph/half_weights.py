"""Weights before they are rounded to float16, so that a rewrite can be verified to the precision of float32.

A model with float16 weights is rewritten twice: as it is, and with its weights in float32. The second one never runs.
Its weights are rounded once and become those of the first.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from trp_export.graph.weights import set_value
from trp_export.lowrank.schemes import Array

# A number halfway between two neighbours, rounded to float32 before, may go to either.
_TIE = 1 + 2.0**-12
# Weights that were rounded on the way are not further apart.
_CLOSE = 2.0**-8


def widened(model: ir.Model) -> ir.Model | None:
    """A copy whose float16 weights are float32; None where there are none."""
    copy = model.clone()
    half = [value for value in copy.graph.initializers.values() if _is_half(value)]
    for value in half:
        assert value.const_value is not None
        array = value.const_value.numpy().astype(np.float32)
        value.const_value = ir.tensor(array, name=value.name)
        value.type = ir.TensorType(ir.DataType.FLOAT)
    return copy if half else None


def take_rounded(model: ir.Model, wide: ir.Model) -> None:
    """Round the weights of `wide` into those float16 weights of the model that they belong to, in place."""
    for value, exact in _pairs(model, wide):
        stored = value.const_value.numpy() if value.const_value is not None else exact
        if np.allclose(stored, exact, rtol=_CLOSE, atol=_CLOSE * float(np.abs(exact).max(initial=0.0))):
            set_value(value, exact)


def has_rounded(model: ir.Model, wide: ir.Model) -> bool:
    """True where the float16 weights of the model are those of `wide`, rounded."""
    pairs = _pairs(model, wide)
    return all(
        value.const_value is not None and is_rounding(value.const_value.numpy(), exact) for value, exact in pairs
    )


def _pairs(model: ir.Model, wide: ir.Model) -> Iterator[tuple[ir.Value, Array]]:
    """Each float16 weight of the model, and the values of the same name and shape before they were rounded."""
    for name, value in model.graph.initializers.items():
        exact = wide.graph.initializers.get(name)
        if exact is not None and exact.const_value is not None and _is_half(value) and _shape(exact) == _shape(value):
            yield value, exact.const_value.numpy()


def is_rounding(stored: Array, exact: Array) -> bool:
    """True where every float16 number is a nearest one to the float32 number in its place."""
    if stored.shape != exact.shape:
        return False
    with np.errstate(invalid="ignore", over="ignore"):
        half_way = np.spacing(np.abs(stored)).astype(np.float64) / 2
        near = np.abs(stored.astype(np.float64) - exact) <= half_way * _TIE
        same = (stored == exact.astype(np.float16)) | (np.isnan(stored) & np.isnan(exact))
    return bool(np.all(near | same))


def _is_half(value: ir.Value) -> bool:
    return value.const_value is not None and value.const_value.dtype == ir.DataType.FLOAT16


def _shape(value: ir.Value) -> tuple[int, ...] | None:
    return None if value.const_value is None else tuple(int(size) for size in value.const_value.shape.numpy())
