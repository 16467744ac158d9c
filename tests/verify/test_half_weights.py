"""Rewrites of networks with float16 weights are verified to the precision of float32, and their rounding exactly."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from faults import Fault, change, one_wrong_factor, scaled_by_a_thousandth, swapped_ranks, wrong_bias
from models import build

from trp_export.errors import UnsupportedError, VerifyError
from trp_export.graph.half_weights import is_rounding
from trp_export.precision.fp16 import to_fp16
from verify.conftest import Make

BODY = """
    a = Conv <pads = [1, 1, 1, 1]> (x, stem__weight)
    n = BatchNormalization (a, gamma, beta, mean, variance)
    r = Relu (n)
    b = Conv <pads = [1, 1, 1, 1]> (r, conv2__weight, bias)
    m = BatchNormalization (b, gamma, beta, mean, variance)
    y = Relu (m)
"""
WEIGHTS = (
    "stem__weight[16, 3, 3, 3], conv2__weight[16, 16, 3, 3], bias[16], gamma[16], beta[16], mean[16], variance[16]"
)


def network(kind: str = "float16") -> onnx.ModelProto:
    """Two convs with batch norm, all in one type."""
    weights = ", ".join(
        f"{kind}[{sizes} {name}"
        for name, sizes in (entry.split("[") for entry in WEIGHTS.replace("], ", "]; ").split("; "))
    )
    return build(
        f'<ir_version: 8, opset_import: ["" : 17]> net ({kind}[1, 3, 12, 12] x) => ({kind}[1, 16, 12, 12] y)'
        f"<{weights}> {{{BODY}}}"
    )


def test_sound_result_is_verified_to_the_precision_of_float32(exported: Make) -> None:
    deviation = exported(network).verify()
    assert {layer.name for layer in deviation.layers} >= {"stem", "conv2"}
    assert all(layer.bound < 1e-4 and layer.distance.relative_l2 < 1e-5 for layer in deviation.layers)


@pytest.mark.parametrize("fault", [scaled_by_a_thousandth, one_wrong_factor, swapped_ranks, wrong_bias])
def test_weight_that_is_not_the_rounding_of_its_float32_value_is_found(fault: Fault, exported: Make) -> None:
    export = exported(network)
    broken = export.result()
    fault(broken)
    with pytest.raises(VerifyError, match="is not what its float32 value rounds to"):
        export.verify(broken)


@pytest.mark.parametrize("fault", [scaled_by_a_thousandth, one_wrong_factor, swapped_ranks])
def test_wrong_rewrite_is_found_before_it_is_rounded(fault: Fault, exported: Make) -> None:
    export = exported(network)
    assert export.files.unrounded is not None
    wide = ir.load(export.files.unrounded[1])
    fault(wide)
    broken = export.result()
    for name, value in broken.graph.initializers.items():
        if name in wide.graph.initializers and value.const_value.dtype == ir.DataType.FLOAT16:
            change(value, wide.graph.initializers[name].const_value.numpy().astype(np.float16))
    ir.save(wide, export.files.unrounded[1])
    with pytest.raises(VerifyError, match="conv2: its output in the result"):
        export.verify(broken)


def test_neighbours_of_a_number_round_to_others() -> None:
    exact = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    stored = exact.astype(np.float16)
    assert is_rounding(stored, exact)
    assert is_rounding((exact * 1e-7).astype(np.float16), exact * np.float32(1e-7))
    for index, towards in ((3, np.inf), (7, -np.inf)):
        other = stored.copy()
        other[index] = np.nextafter(other[index], np.float16(towards))
        assert not is_rounding(other, exact)
    assert not is_rounding(stored[:-1], exact)


def test_converter_to_fp16_may_only_round(monkeypatch: pytest.MonkeyPatch) -> None:
    from onnxruntime.transformers import float16

    model = ir.serde.deserialize_model(network("float"))
    stem = model.graph.initializers["stem.weight"]
    array = stem.const_value.numpy().copy()
    array.flat[:5] = [1e-9, -1e-9, 1e6, -np.inf, 0]
    change(stem, array)
    assert to_fp16(model).graph.initializers["stem.weight"].dtype == ir.DataType.FLOAT16
    convert = float16.convert_np_to_float16
    monkeypatch.setattr(float16, "convert_np_to_float16", lambda *arguments: convert(*arguments) * np.float16(0.998))
    with pytest.raises(UnsupportedError, match="converter to fp16 changed the weight"):
        to_fp16(model)
