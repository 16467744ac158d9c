"""int8 and fp16 of networks whose last operators hide or join what came before."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from models import run, save
from networks import in_batches, make_images, to_half

from trp_export.errors import UnsupportedError
from trp_export.graph.prepare import prepare
from trp_export.precision import int8 as module
from trp_export.precision.convert import LARGEST_DIVERGENCE
from trp_export.precision.int8 import to_int8

HEAD = '<ir_version: 8, opset_import: ["": 17]>\nnet (float[N, 3, 12, 12] x) => ({outputs})\n'
TRUNK = "t = Conv <pads = [1, 1, 1, 1]> (x, w)\n r = Relu (t)\n"
CLASSES = TRUNK + "c = Conv (r, u)\n y = ArgMax <axis = 1> (c)\n"
DETECTOR = TRUNK + (
    "b = Conv (r, v)\n k = Constant <value_float = 300.0> ()\n p = Mul (b, k)\n"
    "c = Conv (r, u)\n s = Sigmoid (c)\n y = Concat <axis = 1> (p, s)\n"
)
WEIGHTS = {"w": (16, 3, 3, 3), "v": (4, 16, 1, 1), "u": (5, 16, 1, 1)}


def make_proto(body: str, outputs: str) -> onnx.ModelProto:
    proto = onnx.parser.parse_model(HEAD.replace("{outputs}", outputs) + "{\n" + body + "}")
    rng = np.random.default_rng(0)
    for name, shape in WEIGHTS.items():
        if any(name in node.input for node in proto.graph.node):
            array = rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
            proto.graph.initializer.append(onnx.numpy_helper.from_array(array.astype(np.float32), name))
    return proto


def make_int8(proto: onnx.ModelProto) -> module.Int8:
    images = make_images(64).inputs
    return to_int8(prepare(ir.serde.deserialize_model(proto)), in_batches(images[:32], images[32:]))


def test_scores_keep_their_steps_beside_large_boxes() -> None:
    """One scale for boxes of hundreds and scores of 0 to 1 would leave two values for a score."""
    proto = make_proto(DETECTOR, "float[N, 9, 12, 12] y")
    made = make_int8(proto)
    inputs = {"x": make_images(16, seed=5).inputs}
    before, after = (run(one, inputs)[0][:, 4:] for one in (proto, ir.serde.serialize_model(made.model)))
    assert np.abs(before - after).max() < 0.05
    assert len(np.unique(after)) > 50


def test_a_network_that_ends_in_argmax_runs_in_8_bits() -> None:
    proto = make_proto(CLASSES, "int64[N, 1, 12, 12] y")
    made = make_int8(proto)
    assert made.in_float == ()
    assert [node.op_type for node in made.model.graph].count("DequantizeLinear") > 3
    inputs = {"x": make_images(16, seed=5).inputs}
    before, after = (run(one, inputs)[0] for one in (proto, ir.serde.serialize_model(made.model)))
    assert np.mean(before == after) > 0.95


def test_int8_that_leaves_nothing_in_8_bits_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_ENOUGH", 0.0)
    monkeypatch.setattr(module, "_MOST_IN_FLOAT", 1.0)
    with pytest.raises(UnsupportedError, match="every layer of this model does too much damage in 8 bits"):
        make_int8(make_proto(CLASSES, "int64[N, 1, 12, 12] y"))


def test_fp16_that_overflows_is_refused_without_images(tmp_path: Path) -> None:
    body = "t = Conv <pads = [1, 1, 1, 1]> (x, w)\n m = Mul (t, s)\n r = Relu (m)\n y = Conv (r, v)\n"
    proto = make_proto(body, "float[N, 4, 12, 12] y")
    weights = {tensor.name: tensor for tensor in proto.graph.initializer}
    kernel = onnx.numpy_helper.to_array(weights["w"]).copy()
    scale = np.ones((16, 1, 1), dtype=np.float32)
    kernel[:8] *= 1e6
    scale[:8] /= 1e6
    weights["w"].CopyFrom(onnx.numpy_helper.from_array(kernel, "w"))
    proto.graph.initializer.append(onnx.numpy_helper.from_array(scale, "s"))
    made = to_half(save(proto, tmp_path / "model.onnx"))
    assert made.refused is not None
    assert f"{LARGEST_DIVERGENCE:.0%} is allowed" in made.refused or "infinite" in made.refused


def test_fp16_of_a_usual_network_may_ship_without_images(tmp_path: Path) -> None:
    model = prepare(ir.serde.deserialize_model(make_proto(DETECTOR, "float[N, 9, 12, 12] y")))
    source = save(ir.serde.serialize_model(model), tmp_path / "model.onnx")
    assert to_half(source).refused is None
