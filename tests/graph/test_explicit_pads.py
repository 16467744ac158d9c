"""Transposed and dilated convs get explicit padding where no open size decides it, and then answer as before."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from command import Command
from hypothesis import assume, given
from hypothesis import strategies as st
from models import build, run, save
from onnx import numpy_helper

from trp_export.graph.explicit_pads import make_pads_explicit

NETWORK = """<ir_version: 8, opset_import: ["": 17]>
net (float[1, 4, {size}, 7] x) => (float[1, 6, m, n] y)
<float[4, 6, 3, 4] w>
{{ a = Relu (x)
  y = ConvTranspose <{attributes}> (a, w) }}
"""


@given(
    stride=st.integers(1, 3), dilation=st.integers(1, 2), added=st.integers(0, 1), over=st.integers(0, 4),
    same=st.sampled_from(["NOTSET", "SAME_UPPER", "SAME_LOWER"]), has_shape=st.booleans(),
)  # fmt: skip
def test_explicit_padding_gives_the_same_values(
    stride: int, dilation: int, added: int, over: int, same: str, has_shape: bool
) -> None:
    assume(added < stride and (has_shape or same != "NOTSET"))
    sizes = [stride * (size - 1) + added + (kernel - 1) * dilation + 1 - over for size, kernel in ((5, 3), (7, 4))]
    attributes = f'strides = [{stride}, {stride}], dilations = [{dilation}, {dilation}], auto_pad = "{same}"'
    attributes += f", output_padding = [{added}, {added}]"
    if has_shape:
        attributes += f", output_shape = {sizes}"
    proto = build(NETWORK.format(size=5, attributes=attributes))
    model = ir.serde.deserialize_model(proto)
    make_pads_explicit(model)
    attributes_left = model.graph.node(1).attributes
    assume("pads" in attributes_left)
    assert not attributes_left.keys() & {"auto_pad", "output_shape"}
    inputs = {"x": np.random.default_rng(0).standard_normal((1, 4, 5, 7)).astype(np.float32)}
    np.testing.assert_allclose(run(ir.serde.serialize_model(model), inputs)[0], run(proto, inputs)[0], atol=1e-5)


DILATED = """<ir_version: 8, opset_import: ["": 17]>
net (float[1, 4, h, v] x) => (float[1, 6, h, v] y)
<float[6, 4, {size}, 3] w>
{{ y = Conv <{attributes}> (x, w) }}
"""


@given(size=st.integers(1, 4), dilation=st.integers(2, 3), same=st.sampled_from(["SAME_UPPER", "SAME_LOWER"]))
def test_dilated_conv_keeps_the_size_and_pads_the_side_that_its_name_says(size: int, dilation: int, same: str) -> None:
    """onnxruntime runs the conv with zeros between the taps, which ONNX defines as the same."""
    attributes = f'dilations = [{dilation}, {dilation}], auto_pad = "{same}"'
    proto = build(DILATED.format(size=size, attributes=attributes))
    (weight,) = map(numpy_helper.to_array, proto.graph.initializer)
    spread = np.zeros((6, 4, (size - 1) * dilation + 1, 2 * dilation + 1), np.float32)
    spread[..., ::dilation, ::dilation] = weight
    dense = build(DILATED.format(size=spread.shape[2], attributes=f'auto_pad = "{same}"').replace(", 3]", ", 7]"))
    dense.graph.initializer[0].CopyFrom(numpy_helper.from_array(spread, "w"))
    model = ir.serde.deserialize_model(proto)
    make_pads_explicit(model)
    inputs = {"x": np.random.default_rng(0).standard_normal((1, 4, 5, 9)).astype(np.float32)}
    np.testing.assert_allclose(run(ir.serde.serialize_model(model), inputs)[0], run(dense, inputs)[0], atol=1e-5)


def test_network_that_onnxruntime_cannot_run_for_its_dilations_is_exported(trp: Command, tmp_path: Path) -> None:
    attributes = 'dilations = [2, 2], auto_pad = "SAME_UPPER"'
    save(build(DILATED.format(size=3, attributes=attributes)), tmp_path / "model.onnx")
    outcome = trp("model.onnx", "--rank", "2", "--shape", "1,4,9,9", "--no-bench", "-o", "small.onnx")
    assert outcome.code == 0, outcome.err
    assert "each layer alone, since onnxruntime cannot run the whole model" in " ".join(outcome.out.split())
    assert run(tmp_path / "small.onnx", {"x": np.ones((1, 4, 9, 9), np.float32)})[0].shape == (1, 6, 9, 9)


def test_open_size_keeps_output_shape_and_the_report_says_why(trp: Command) -> None:
    attributes = "strides = [2, 2], output_shape = [10, 14]"
    save(build(NETWORK.format(size="h", attributes=attributes)), Path("model.onnx"))
    outcome = trp("model.onnx", "--rank", "2", "--shape", "1,4,5,7", "--no-bench", "-o", "small.onnx")
    assert outcome.code == 0, outcome.err
    assert "output_shape makes the padding depend on the size of its input" in " ".join(outcome.out.split())


@pytest.mark.parametrize("attributes", ["output_shape = [10, 14]", 'auto_pad = "SAME_LOWER"'])
def test_layer_of_a_fixed_size_becomes_a_pair(trp: Command, attributes: str) -> None:
    proto = build(NETWORK.format(size=5, attributes=f"strides = [2, 2], {attributes}"))
    save(proto, Path("model.onnx"))
    outcome = trp("model.onnx", "--rank", "2", "--no-bench", "-o", "small.onnx")
    assert outcome.code == 0, outcome.err
    assert "exact" in outcome.out
    assert "kept" not in outcome.out
