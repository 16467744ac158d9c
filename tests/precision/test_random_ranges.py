"""Models in another precision without images: the operators that would ship."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from models import build, save
from networks import in_batches

from trp_export.precision.int8 import to_int8
from trp_export.precision.random_ranges import convert_for_speed

SHAPES = {"image": (1, 3, 12, 12)}


@pytest.fixture
def model(tmp_path: Path) -> ir.Model:
    return ir.load(save(build(), tmp_path / "model.onnx"))


def operators(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph)


def test_the_same_nodes_are_rounded_as_would_ship(model: ir.Model) -> None:
    images = np.random.default_rng(1).standard_normal((64, 3, 12, 12)).astype(np.float32)
    shipped = to_int8(
        model,
        in_batches(*(images[start : start + 16] for start in range(0, 64, 16)), name=model.graph.inputs[0].name or ""),
    )
    assert not shipped.in_float
    made = convert_for_speed(model, "int8", SHAPES)
    assert operators(made) == operators(shipped.model)
    assert operators(made)["QuantizeLinear"]
    assert not operators(model)["QuantizeLinear"]  # The one given stays as it is.


def test_a_grid_after_a_relu_starts_at_zero(model: ir.Model) -> None:
    """Else the Relu would be a kernel of its own."""
    made = convert_for_speed(model, "int8", SHAPES)
    rounded = [node for node in made.graph if node.op_type == "QuantizeLinear"]
    after_relu = [node for node in rounded if node.inputs[0].producer() and node.inputs[0].producer().op_type == "Relu"]  # type: ignore[union-attr]
    assert after_relu
    for node in after_relu:
        zero = node.inputs[2].const_value  # type: ignore[union-attr]
        assert zero is not None
        assert int(zero.numpy()) == 0


def test_what_is_not_finite_on_noise_does_no_harm(model: ir.Model) -> None:
    for value in model.graph.initializers.values():
        if value.const_value is not None and value.const_value.dtype == ir.DataType.FLOAT:
            value.const_value = ir.tensor(np.full(value.const_value.shape.numpy(), 1e38, np.float32), name=value.name)
    made = convert_for_speed(model, "int8", SHAPES)
    scales = [value.const_value.numpy() for name, value in made.graph.initializers.items() if name.endswith(".scale")]  # type: ignore[union-attr]
    assert all(np.isfinite(scale).all() for scale in scales)


def test_a_model_without_layers_for_8_bits_stays_float(tmp_path: Path) -> None:
    upsampling = """<ir_version: 8, opset_import: ["" : 17]>
net (float[1, 3, 12, 12] image) => (float[1, 8, 24, 24] y)
<float[3, 8, 2, 2] up__weight>
{ y = ConvTranspose <strides = [2, 2]> (image, up__weight) }
"""
    model = ir.load(save(build(upsampling), tmp_path / "up.onnx"))
    assert operators(convert_for_speed(model, "int8", SHAPES)) == operators(model)
