"""What onnxruntime's converter to fp16, and onnxruntime itself, get wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from models import build, noise, relative_l2, run, save
from networks import to_half
from onnx import numpy_helper

import trp_export.precision.fp16 as fp16
from trp_export.errors import UnsupportedError
from trp_export.graph.prepare import prepare
from trp_export.inputs.description import describe_inputs
from trp_export.precision.convert import convert
from trp_export.precision.fp16 import require_opens, to_fp16

NET = """<ir_version: 8, opset_import: ["" : 17]> net (float[1, 3, 8, 8] x) => (float[1, 4, 8, 8] y)
<float[4, 3, 3, 3] w__weight> { a = Conv <pads = [1, 1, 1, 1]> (x, w__weight)  y = Relu (a) }"""


def test_a_file_that_the_converter_made_is_converted_again(tmp_path: Path) -> None:
    once = to_fp16(ir.serde.deserialize_model(build(NET)))
    names = {value.name for node in once.graph for value in node.outputs}
    twice = to_fp16(once)
    onnx.checker.check_model(ir.serde.serialize_model(twice), full_check=True)
    file = tmp_path / "half.onnx"
    ir.save(twice, file)
    require_opens(file)
    assert "graph_input_cast_0" in names


@pytest.mark.parametrize("operator", ["Celu (a)", "DequantizeLinear (q, s, z)"])
def test_operators_that_know_no_float16_stay_in_float32(operator: str) -> None:
    """Celu anywhere, and what unpacks 8 bits before opset 19."""
    text = NET.replace("y = Relu (a)", f"q = QuantizeLinear (a, s, z)  y = {operator}")
    text = text.replace("w__weight>", "w__weight, float s = {0.05}, int8 z = {0}>")
    source = build(text)
    half = ir.serde.serialize_model(to_fp16(prepare(ir.serde.deserialize_model(source))))
    wanted, got = (run(model, noise(source))[0] for model in (source, half))
    assert relative_l2(wanted, got) < 1e-2


def test_outputs_that_no_node_makes_stay_as_they_are() -> None:
    """An input and a weight that are outputs, too, and an output that is listed twice."""
    source = build(NET)
    source.graph.output.extend(
        [source.graph.output[0], source.graph.input[0], onnx.helper.make_tensor_value_info("w.weight", 1, [4, 3, 3, 3])]
    )
    half = ir.serde.serialize_model(to_fp16(prepare(ir.serde.deserialize_model(source))))
    assert half.graph.output == source.graph.output
    for wanted, got in zip(run(source, noise(source)), run(half, noise(source)), strict=True):
        assert relative_l2(wanted, got) < 1e-2


def test_sizes_of_outputs_stay_open() -> None:
    text = NET.replace("float[1, 4, 8, 8] y", "float[n, 4, h, w] y")
    (output,) = to_fp16(ir.serde.deserialize_model(build(text))).graph.outputs
    assert output.shape is not None
    assert [str(size) for size in output.shape] == ["n", "4", "h", "w"]


def test_a_value_that_the_converter_loses_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def lose(model: onnx.ModelProto, **_: object) -> onnx.ModelProto:
        model.graph.node[1].input[0] = "lost"
        return model

    monkeypatch.setattr("onnxruntime.transformers.float16.convert_float_to_float16", lose)
    with pytest.raises(UnsupportedError, match="loses the value lost"):
        to_fp16(ir.serde.deserialize_model(build(NET)))


BOXES = """<ir_version: 8, opset_import: ["" : 17]> net (float[1, 3, 8, 8] x, bool all) => (int64[kept, 3] y)
<float[4, 3, 3, 3] w__weight, float[6, 3, 3, 3] v__weight, int64[3] four = {1, -1, 4}, int64[3] six = {1, 6, -1},
int64[1] most = {9}, int64[1] every = {36}, float[1] half = {0.5}, float two = {2}>
{ p = Conv (x, w__weight)  boxes = Reshape (p, four)  q = Conv (x, v__weight)  scores = Reshape (q, six)
  y = If (all) <
    then_branch = a () => (int64[kept, 3] y1) { d = Mul (boxes, two)  y1 = NonMaxSuppression (d, scores, most, half) },
    else_branch = b () => (int64[kept, 3] y2) { e = Mul (scores, two)  f, g = TopK <axis = 2> (e, every)
      y2 = NonMaxSuppression (boxes, f, most, half) }> }"""


def test_operators_of_floats_inside_bodies_read_what_the_body_makes(tmp_path: Path) -> None:
    half = to_fp16(ir.serde.deserialize_model(build(BOXES)))
    file = tmp_path / "half.onnx"
    ir.save(half, file)
    require_opens(file)
    pixels = np.random.default_rng(0).standard_normal((1, 3, 8, 8)).astype(np.float32)
    for branch in (True, False):
        (kept,) = run(file, {"x": pixels, "all": np.array(branch)})
        assert len(kept)


def test_a_sequence_among_the_outputs_is_no_obstacle(tmp_path: Path) -> None:
    text = NET.replace("=> (float[1, 4, 8, 8] y)", "=> (seq(float[1, 1, 8, 8]) y)")
    text = text.replace("y = Relu (a)", "b = Relu (a)  y = SplitToSequence <axis = 1> (b)")
    source = save(build(text), tmp_path / "model.onnx")
    assert to_half(source).refused is None


def test_a_model_without_weights_in_float32_is_refused() -> None:
    text = NET.replace("float[", "double[")
    with pytest.raises(UnsupportedError, match="no weight can be had in fp16: they are double"):
        to_fp16(ir.serde.deserialize_model(build(text)))


def test_a_model_on_which_onnxruntime_crashes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = save(build(NET), tmp_path / "model.onnx")
    require_opens(file)
    monkeypatch.setattr(fp16, "_OPEN", "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    with pytest.raises(UnsupportedError, match=r"crashes when it opens this model \(signal 11\)"):
        require_opens(file)


def test_an_answer_that_hardly_varies_on_noise_is_judged_beside_its_size(tmp_path: Path) -> None:
    """A bias near one, which float16 rounds, beside a spread of 1e-4."""
    text = NET.replace("y = Relu (a)", "y = Add (a, b)").replace("w__weight>", "w__weight, float b = {1.0003}>")
    model = build(text)
    (weight,) = (tensor for tensor in model.graph.initializer if tensor.name == "w.weight")
    weight.CopyFrom(numpy_helper.from_array(1e-4 * numpy_helper.to_array(weight), weight.name))
    source = save(model, tmp_path / "model.onnx")
    assert to_half(source).refused is None


@pytest.mark.parametrize(("scale", "image", "name"), [(6e4, 1.0, "y"), (1e-5, 1e6, "x")])
def test_inputs_and_outputs_beyond_the_range_are_named(tmp_path: Path, scale: float, image: float, name: str) -> None:
    """The converter casts them under names of its own."""
    text = NET.replace("y = Relu (a)", "y = Mul (a, scale)").replace("w__weight>", "w__weight, float scale = {1}>")
    model = build(text)
    for tensor in model.graph.initializer:
        if tensor.name == "scale":
            tensor.CopyFrom(numpy_helper.from_array(np.float32(scale), tensor.name))
    source = save(model, tmp_path / "model.onnx")
    inputs = describe_inputs(ir.load(source)).completed({"x": image * noise(model)["x"][:1]})
    refused = convert("fp16", source, tmp_path / "half.onnx", inputs, (), False, lambda *_: None).refused
    assert refused is not None
    assert refused.startswith(f"{name} reaches ")
