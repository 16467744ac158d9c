"""Means from batch norm and the bias they correct, checked against running the network on normal inputs."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from networks import input_shapes

from trp_export.graph.bias import add_to_bias, takes_bias
from trp_export.graph.prepare import prepare
from trp_export.graph.shapes import infer_shapes
from trp_export.graph.sites import LocatedSite, find_sites
from trp_export.graph.statistics import mean_inputs
from trp_export.lowrank.calibrated import bias_shift

GRAPH = """
<ir_version: 8, opset_import: ["": 17]>
net (float[N, 4, 9, 9] x) => (float[N, M] y)
<float[4] g = {1, 0.5, 2, -1}, float[4] b = {0, 1, -1, 0.3}, float[4] m = {0, 0, 0, 0}, float[4] v = {1, 1, 1, 1},
 float[8] g2 = {1, 1, 1, 1, 1, 1, 1, 1}, float[8] b2 = {0, 0, 1, 0, 0, 2, 0, 0},
 float[8] m2 = {0, 0, 0, 0, 0, 0, 0, 0}, float[8] v2 = {1, 1, 1, 1, 1, 1, 1, 1}>
{
    n = BatchNormalization <epsilon = 1e-12> (x, g, b, m, v)
    a = Relu (n)
    c = Conv <group = 2, strides = [2, 2], pads = [1, 1, 1, 1]> (a, first_weight)
    d = BatchNormalization (c, g2, b2, m2, v2)
    e = Relu (d)
    f = GlobalAveragePool (e)
    h = Flatten (f)
    y = Gemm <transB = 1, beta = 0.5> (h, last_weight, last_bias)
}
"""


def _network(text: str = GRAPH) -> tuple[ir.Model, tuple[LocatedSite, ...]]:
    rng = np.random.default_rng(3)
    proto = onnx.parser.parse_model(text)
    for node in proto.graph.node:
        node.input[:] = [name.replace("_", ".") for name in node.input]
    arrays = {
        "first.weight": rng.standard_normal((8, 2, 3, 3)),
        "last.weight": rng.standard_normal((5, 8)),
        "last.bias": np.ones(5),
    }
    for name, array in arrays.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array.astype(np.float32), name))
    model = prepare(ir.serde.deserialize_model(proto))
    return model, find_sites(model, infer_shapes(model, input_shapes(model)))


def _run(model: ir.Model, x: np.ndarray, output: str) -> np.ndarray:
    proto = ir.serde.serialize_model(model)
    proto.graph.output.append(onnx.helper.make_empty_tensor_value_info(output))
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run([output], {"x": x})[0])


def test_mean_inputs_match_a_run_on_normal_inputs() -> None:
    model, located = _network()
    x = np.random.default_rng(0).standard_normal((4000, 4, 9, 9)).astype(np.float32)
    first = located[0]
    predicted = mean_inputs(located)["first"]
    kernel = first.kernel().astype(np.float64)
    output = np.einsum("gnd,gd->gn", kernel.reshape(2, 4, 18), predicted).reshape(-1)
    np.testing.assert_allclose(_run(model, x, "c").mean(axis=(0, 2, 3)), output, atol=0.03)


def test_means_pass_through_averaging() -> None:
    _, located = _network()
    means = mean_inputs(located)
    assert set(means) == {"first", "last"}
    relu = 1 / np.sqrt(2 * np.pi)
    np.testing.assert_allclose(means["last"][0, [0, 1, 3]], relu, rtol=1e-2)


@pytest.mark.parametrize(
    ("auto_pad", "size", "pads"), [("SAME_UPPER", 9, [1, 1, 1, 1]), ("SAME_LOWER", 8, [1, 1, 0, 0])]
)
def test_mean_inputs_know_the_padding_that_follows_from_the_size(auto_pad: str, size: int, pads: list[int]) -> None:
    text = GRAPH.replace("9, 9", f"{size}, {size}")
    automatic, explicit = (
        mean_inputs(_network(text.replace("pads = [1, 1, 1, 1]", padding))[1])["first"]
        for padding in (f'auto_pad = "{auto_pad}"', f"pads = {pads}")
    )
    np.testing.assert_array_equal(automatic, explicit)


@pytest.mark.parametrize("six", ["float six = {6}", "float[1] six = {6}"])
def test_means_pass_through_a_clip_whose_bounds_have_any_rank(six: str) -> None:
    text = GRAPH.replace("a = Relu (n)", "a = Clip (n, none, six)").replace(
        "<float[4] g", f"<{six}, float[1] none = {{0}}, float[4] g"
    )
    _, located = _network(text)
    _, relu = _network()
    np.testing.assert_allclose(mean_inputs(located)["first"], mean_inputs(relu)["first"], atol=1e-3)


@pytest.mark.parametrize("name", ["first", "last"])
def test_a_bias_shift_moves_the_output_by_the_shift(name: str) -> None:
    model, located = _network()
    x = np.random.default_rng(0).standard_normal((3, 4, 9, 9)).astype(np.float32)
    output = "c" if name == "first" else "y"
    before = _run(model, x, output)
    place = next(place for place in located if place.site.name == name)
    assert takes_bias(place)
    shift = np.arange(place.site.kernel_shape[0], dtype=np.float64)
    add_to_bias(model, located, {name: shift})
    after = _run(model, x, output)
    expected = shift.reshape(1, -1, *[1] * (before.ndim - 2))
    np.testing.assert_allclose(after - before, np.broadcast_to(expected, before.shape), atol=1e-5)


def test_a_shifted_bias_does_not_take_the_name_of_an_identity() -> None:
    """Exporters store equal biases once and put an Identity behind them."""
    text = """<ir_version: 8, opset_import: ["" : 17]> net (float[1, 2, 5, 5] x) => (float[1, 3, 5, 5] y)
    <float[3, 2, 1, 1] w = {1, 2, 3, 4, 5, 6}, float[3] stored = {1, 2, 3}>
    { same = Identity (stored)  a = Conv (x, w, same)  y = Add (a, same) }"""
    model = ir.serde.deserialize_model(onnx.parser.parse_model(text))
    located = find_sites(model, {})
    add_to_bias(model, located, {located[0].site.name: np.ones(3)})
    (bias,) = [node.inputs[2] for node in model.graph if node.op_type == "Conv"]
    assert bias is not None
    assert bias.name not in ("same", "stored")
    ir.serde.deserialize_model(ir.serde.serialize_model(model))  # Refuses a name that stands for two values.


def test_bias_shift_is_the_lost_kernel_times_the_mean() -> None:
    rng = np.random.default_rng(0)
    kernel, new, mean = rng.standard_normal((6, 2, 3)), rng.standard_normal((6, 2, 3)), rng.standard_normal((2, 6))
    shift = bias_shift(kernel, new, mean)
    assert shift[4] == pytest.approx(float(np.sum((kernel - new)[4].reshape(-1) * mean[1])))


def test_mean_of_a_shared_layer_is_that_of_all_its_uses() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]>
    net (float[N, 4, 9, 9] x, float[N, 4, 5, 5] z) => (float[N, 6, 9, 9] c, float[N, 6, 2, 2] d)
    <float[4] g = {1, 0.5, 2, -1}, float[4] b = {0, 1, -1, 0.3}, float[4] m = {0, 0, 0, 0}, float[4] v = {1, 1, 1, 1},
     float[4] h = {3, 0, 1, -2}>
    { a = BatchNormalization <epsilon = 1e-12> (x, g, b, m, v)  c = Conv <pads = [1, 1, 1, 1]> (a, w)
      e = BatchNormalization <epsilon = 1e-12> (z, g, h, m, v)  d = Conv <strides = [2, 2]> (e, w) }"""
    rng = np.random.default_rng(0)
    proto = onnx.parser.parse_model(text)
    kernel = rng.standard_normal((6, 4, 3, 3)).astype(np.float32)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(kernel, "w"))
    model = prepare(ir.serde.deserialize_model(proto))
    located = find_sites(model, infer_shapes(model, input_shapes(model)))
    (mean,) = mean_inputs(located).values()
    session = ort.InferenceSession(ir.serde.serialize_model(model).SerializeToString())
    feeds = {"x": rng.standard_normal((4000, 4, 9, 9)), "z": rng.standard_normal((4000, 4, 5, 5))}
    outputs = session.run(None, {name: array.astype(np.float32) for name, array in feeds.items()})
    wanted = np.concatenate([np.moveaxis(output, 1, 0).reshape(6, -1) for output in outputs], axis=1).mean(axis=1)
    np.testing.assert_allclose(kernel.reshape(6, -1) @ mean[0], wanted, atol=0.03)
