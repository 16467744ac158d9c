"""The normal form: constant expressions, functions, inputs with a default, networks that are quantised already."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import warm_simplify
from hypothesis import given, settings
from hypothesis import strategies as st
from models import KEEP_ALL, build, changed, export, noise, relative_l2, run, save
from networks import input_shapes
from onnx import TensorProto, helper, numpy_helper

from trp_export import Options, Rank, compress
from trp_export.errors import LoadError, UnsupportedError
from trp_export.graph.bounds import require_bounded
from trp_export.graph.packed import drop_shapes, pack_weights
from trp_export.graph.prepare import prepare
from trp_export.graph.shapes import infer_value_shapes
from trp_export.graph.simplify import ask_worker, simplify
from trp_export.graph.sites import find_sites
from trp_export.options import Calibration

IMAGE = "float[1, 4, 12, 12] x"


def text(body: str, weights: str, header: str = IMAGE, out: str = "float[N, M, H, W] y") -> str:
    return f'<ir_version: 8, opset_import: ["" : 17]>\nnet ({header}) => ({out}) <{weights}> {{ {body} }}'


def prepared(proto: onnx.ModelProto) -> ir.Model:
    return prepare(ir.serde.deserialize_model(proto))


EXPRESSIONS = {
    "cast": ("k = Cast <to = 1> (w)", "float16[8, 4, 3, 3] w"),
    "scale": ("k = Mul (w, s)", "float[8, 4, 3, 3] w, float[8, 1, 1, 1] s"),
    "reshape": ("k = Reshape (w, t)", "float[32, 9] w, int64[4] t = {8, 4, 3, 3}"),
    "transpose": ("h = Mul (w, s)  k = Transpose <perm = [3, 2, 0, 1]> (h)", "float[3, 3, 4, 8] w, float[1] s"),
    "weight norm": (
        "n = ReduceL2 <axes = [1, 2, 3]> (w)  d = Div (g, n)  k = Mul (w, d)",
        "float[8, 4, 3, 3] w, float[8, 1, 1, 1] g",
    ),
    "unpacked": (
        "k = DequantizeLinear (w, s)", "int8[8, 4, 3, 3] w, float s = {0.05}",
    ),
    "rounded": (
        "q = QuantizeLinear (w, s, z)  k = DequantizeLinear (q, s, z)",
        "float[8, 4, 3, 3] w, float s = {0.05}, int8 z = {0}",
    ),
    "constant": ("k = ConstantOfShape <value = float[1] {0.5}> (t)", "int64[4] t = {8, 4, 3, 3}"),
    "spread": ("k = Expand (w, t)", "float[8, 4, 1, 1] w, int64[4] t = {8, 4, 3, 3}"),
    "joined": ("k = Concat <axis = 0> (w, v)", "float[4, 4, 3, 3] w, float[4, 4, 3, 3] v"),
}  # fmt: skip


@pytest.mark.parametrize(("expression", "weights"), EXPRESSIONS.values(), ids=EXPRESSIONS)
def test_a_constant_expression_before_a_weight_is_folded(expression: str, weights: str) -> None:
    proto = build(text(f"{expression}  y = Conv <pads = [1, 1, 1, 1]> (x, k)", weights))
    model = prepared(proto)
    assert [node.op_type for node in model.graph] == ["Conv"]
    (place,) = find_sites(model, {})
    assert place.site.refusal is None
    wanted, got = (run(each, noise(proto))[0] for each in (proto, ir.serde.serialize_model(model)))
    assert relative_l2(wanted, got) < 1e-6


@pytest.mark.parametrize("operator", ["Add", "Sub", "Mul", "Div", "PRelu"])
def test_a_constant_expression_behind_a_layer_is_folded(operator: str) -> None:
    weights = "float[8, 4, 3, 3] w, float[8] b, int64[3] t = {8, 1, 1}"
    proto = build(text(f"c = Conv (x, w)  s = Reshape (b, t)  y = {operator} (c, s)", weights))
    model = prepared(proto)
    assert [node.op_type for node in model.graph] == ["Conv", operator]
    wanted, got = (run(each, noise(proto))[0] for each in (proto, ir.serde.serialize_model(model)))
    assert relative_l2(wanted, got) < 1e-6


def test_expressions_that_make_the_same_weight_share_one_value() -> None:
    """As in the branches of an If, each of which cuts the same weights of an LSTM out of those that are stored."""
    body = """y = If (far) <
        then_branch = one () => (float[1, 8, 4, 4] y1) {
            s1 = Constant <value = int64[1] {0}> ()  e1 = Constant <value = int64[1] {8}> ()
            k1 = Slice (w, s1, e1)  y1 = Conv <pads = [1, 1, 1, 1]> (x, k1) },
        else_branch = two () => (float[1, 8, 4, 4] y2) {
            s2 = Constant <value = int64[1] {0}> ()  e2 = Constant <value = int64[1] {8}> ()
            k2 = Slice (w, s2, e2)  r = Conv <pads = [1, 1, 1, 1]> (x, k2)  y2 = Relu (r) }>"""
    proto = build(text(body, "float[9, 4, 3, 3] w", "float[1, 4, 4, 4] x, bool far"))
    model = prepared(proto)
    assert [tuple(value.shape) for value in model.graph.initializers.values()] == [(8, 4, 3, 3)]
    for far in (True, False):
        feeds = {"x": np.ones((1, 4, 4, 4), np.float32), "far": np.array(far)}
        wanted, got = (run(each, feeds)[0] for each in (proto, ir.serde.serialize_model(model)))
        assert relative_l2(wanted, got) < 1e-6


def test_an_expression_with_an_input_in_it_stays() -> None:
    proto = build(text("k = Mul (w, s)  y = Conv (x, k)", "float[8, 4, 3, 3] w", f"{IMAGE}, float[1] s"))
    assert [node.op_type for node in prepared(proto).graph] == ["Mul", "Conv"]


def test_an_expression_that_makes_a_large_weight_from_nothing_stays() -> None:
    proto = build(text("k = ConstantOfShape (t)  y = Conv (x, k)", "int64[4] t = {100000, 4, 3, 3}"))
    assert [node.op_type for node in prepared(proto).graph] == ["ConstantOfShape", "Conv"]


GROWING = {
    "ConstantOfShape": ("o = ConstantOfShape (t)", "int64[3] t = {1024, 1024, 1000}"),
    "Tile": ("o = Tile (w, t)", "float[1, 1, 1] w, int64[3] t = {1024, 1024, 1000}"),
    "Expand": ("o = Expand (w, t)", "float[1, 1, 1] w, int64[3] t = {1024, 1024, 1000}"),
    "Range": ("o = Range (a, b, c)", "float a = {0}, float b = {1000000000}, float c = {1}"),
    "Range between arrays of one number": (
        "o = Range (a, b, c)",
        "float[1] a = {0}, float[1] b = {1000000000}, float[1] c = {1}",
    ),
}


@pytest.mark.parametrize(("body", "weights"), GROWING.values(), ids=GROWING)
def test_constants_without_bound_are_refused_before_anything_is_computed(body: str, weights: str) -> None:
    proto = build(text(f"{body}  s = ReduceSum <keepdims = 0> (o)  y = Mul (x, s)", weights))
    model = prepared(proto)
    with pytest.raises(UnsupportedError, match="constant expressions of this model stand for more than"):
        require_bounded(model, infer_value_shapes(model, input_shapes(model)))


@pytest.mark.parametrize("source", [build(), None])
def test_onnxsim_answers_the_same_in_a_process_of_its_own(source: onnx.ModelProto | None) -> None:
    """The other tests ask one that is forked. `ask_worker` was imported before it took its place."""
    message = source.SerializeToString() if source is not None else b"no model"
    own, forked = ask_worker(message), warm_simplify.ask(message)
    assert (own.returncode, own.stdout) == (forked.returncode, forked.stdout)
    assert own.returncode == (0 if source is not None else 1)
    assert own.stderr.splitlines()[-1:] == forked.stderr.splitlines()[-1:]


def test_simplifying_does_not_make_a_model_larger() -> None:
    body = "o = ConstantOfShape (t)  g = Tile (w, r)  a = Add (x, o)  y = Mul (a, g)"
    weights = "int64[4] t = {1, 4, 120, 120}, float[1, 1, 1, 120] w, int64[4] r = {1, 4, 120, 1}"
    proto = build(text(body, weights, "float[1, 4, 120, 120] x"))
    model, _ = simplify(prepared(proto))
    made = ir.serde.serialize_model(model)
    assert made.ByteSize() < 2 * proto.ByteSize() + 1000
    assert relative_l2(run(proto, noise(proto))[0], run(made, noise(proto))[0]) < 1e-6


def test_statistics_of_a_training_batch_norm_share_no_initializer() -> None:
    """onnxruntime writes new statistics over old ones: were they the shift as well, it would change the answer."""
    parameters = ", ".join(f"float[16] {name}" for name in ("one", "zero", "mean", "variance"))
    body = "y, m, v = BatchNormalization <training_mode = 1> (x, one, zero, mean, variance)"
    proto = build(text(body, parameters, "float[2, 16, 3, 3] x"))
    for initializer in proto.graph.initializer:
        equal = np.full(16, initializer.name in ("one", "variance"), np.float32)
        initializer.CopyFrom(numpy_helper.from_array(equal, initializer.name))
    feeds = {"x": np.random.default_rng(0).standard_normal((2, 16, 3, 3)).astype(np.float32) + 5}
    model, _ = simplify(prepared(proto))
    made = ir.serde.serialize_model(model)
    session = onnxruntime.InferenceSession(made.SerializeToString())
    for answer in (session.run(None, feeds)[0], session.run(None, feeds)[0]):
        assert relative_l2(run(proto, feeds)[0], answer) < 1e-6


def nested_functions(depth: int) -> onnx.ModelProto:
    """Functions that call the one before twice: 2 ** depth nodes."""
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    functions = [helper.make_function("own", "f0", ["a"], ["b"], [helper.make_node("Relu", ["a"], ["b"])], opsets)]
    for index in range(depth):
        calls = [helper.make_node(f"f{index}", [a], [b], domain="own") for a, b in (("a", "t"), ("t", "b"))]
        functions.append(helper.make_function("own", f"f{index + 1}", ["a"], ["b"], calls, opsets))
    call = helper.make_node(f"f{depth}", ["x"], ["y"], domain="own")
    info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4]) for name in ("x", "y")]
    graph = helper.make_graph([call], "net", info[:1], info[1:])
    return helper.make_model(graph, functions=functions, opset_imports=opsets, ir_version=8)


@pytest.mark.parametrize("depth", [14, 40, 400])
def test_nested_functions_are_refused_before_they_are_inlined(depth: int) -> None:
    with pytest.raises(UnsupportedError, match=r"stand for .* nodes, more than this program inlines"):
        prepared(nested_functions(depth))


def test_few_nodes_are_refused_where_naming_their_copies_takes_millions_of_trials() -> None:
    with pytest.raises(UnsupportedError, match=r"stand for 6,\d\d\d nodes"):
        prepared(nested_functions(11))


def test_functions_within_the_bounds_are_inlined() -> None:
    assert len(list(prepared(nested_functions(5)).graph)) == 32


def with_default(ir_version: int = 8) -> onnx.ModelProto:
    """An input that may be left out, and a weight that is a Constant node or an initializer."""
    proto = build(text("a = Conv <pads = [1, 1, 1, 1]> (x, w)  y = Mul (a, strength)", "float[8, 4, 3, 3] w"))
    proto.ir_version = ir_version
    proto.graph.input.append(helper.make_tensor_value_info("strength", TensorProto.FLOAT, [1]))
    proto.graph.initializer.append(numpy_helper.from_array(np.ones(1, np.float32), "strength"))
    return proto


@pytest.mark.parametrize("weights", ["initializers", "Constant nodes"])
def test_an_input_with_a_default_stays_an_input(weights: str, tmp_path: Path) -> None:
    proto = with_default()
    if weights == "Constant nodes":
        tensor = next(tensor for tensor in proto.graph.initializer if tensor.name == "w")
        proto.graph.node.insert(0, helper.make_node("Constant", [], ["w"], value=tensor))
        proto.graph.initializer.remove(tensor)
    report = export(save(proto, tmp_path / "model.onnx"))
    assert len(changed(report)) == 1
    made = onnx.load(report.files[0])
    assert made.graph.input == proto.graph.input
    assert numpy_helper.to_array(next(t for t in made.graph.initializer if t.name == "strength")) == [1.0]
    inputs = noise(build(text("y = Relu (x)", "")))
    for more in ({}, {"strength": np.full(1, 0.5, np.float32)}):
        wanted, got = (run(each, {**inputs, **more})[0] for each in (proto, made))
        assert relative_l2(wanted, got) < 1e-5


def test_weights_that_are_all_listed_as_inputs_are_factored_and_noted(tmp_path: Path) -> None:
    proto = build(text("y = Conv (x, w)", "float[8, 4, 3, 3] w"))
    proto.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [8, 4, 3, 3]))
    report = export(save(proto, tmp_path / "model.onnx"))
    assert len(changed(report)) == 1
    assert any("weight w, which the file lists as an input" in note for note in report.notes)


QUANTISED = {
    "QDQ": "q = QuantizeLinear (x, s, z)  d = DequantizeLinear (q, s, z)  y = Conv (d, w)",
    "dynamic": "q, t, o = DynamicQuantizeLinear (x)  i = ConvInteger (q, k, o)  y = Cast <to = 1> (i)",
}


@pytest.mark.parametrize("body", QUANTISED.values(), ids=QUANTISED)
def test_a_quantised_network_is_refused_and_the_float_model_named(body: str) -> None:
    weights = "float[8, 4, 3, 3] w, uint8[8, 4, 3, 3] k, float s = {0.1}, uint8 z = {128}"
    with pytest.raises(UnsupportedError, match=r"quantised already .* Start from the float model"):
        prepared(build(text(body, weights)))


IN_FLOATS = {
    "pixels are unpacked": ("f = DequantizeLinear (x, s, z)  y = Conv (f, w)", "uint8[1, 4, 12, 12] x", "float"),
    "the answer is rounded": ("f = Conv (x, w)  r = Relu (f)  y = QuantizeLinear (r, s, z)", IMAGE, "uint8"),
}


@pytest.mark.parametrize(("body", "header", "kind"), IN_FLOATS.values(), ids=IN_FLOATS)
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_network_whose_ends_alone_are_8_bits_wide_is_exported(
    body: str, header: str, kind: str, precision: str, tmp_path: Path
) -> None:
    weights = "float[64, 4, 3, 3] w, float s = {0.1}, uint8 z = {128}"
    proto = build(text(body, weights, header, f"{kind}[N, M, H, W] y"))
    source, result = save(proto, tmp_path / "model.onnx"), tmp_path / "small.onnx"
    calibration = Calibration("none")
    options = Options(Rank(2), precision=precision, calibration=calibration, benchmark=KEEP_ALL, output=result)  # type: ignore[arg-type]
    assert len(changed(compress(source, options))) == 1
    wanted, got = (run(path, noise(proto))[0].astype(np.float32) for path in (source, result))
    assert relative_l2(wanted, got) < (1e-5 if precision == "fp32" else 1e-2)


def with_nan(body: str, weights: str) -> onnx.ModelProto:
    """The first number of `n` is NaN."""
    proto = build(text(body, weights))
    (tensor,) = (tensor for tensor in proto.graph.initializer if tensor.name == "n")
    array = numpy_helper.to_array(tensor).copy()
    array.flat[0] = np.nan
    tensor.CopyFrom(numpy_helper.from_array(array, "n"))
    return proto


def test_nan_that_a_where_may_choose_is_no_weight() -> None:
    body = "c = Conv (x, w)  l = Less (c, z)  h = Where (l, n, c)  i = IsNaN (h)  y = Where (i, z, h)"
    model = prepared(with_nan(body, "float[8, 4, 3, 3] w, float n, float z = {0}"))
    assert "n" in model.graph.initializers


@pytest.mark.parametrize(
    ("body", "weights"),
    [
        ("y = Conv (x, n)", "float[8, 4, 3, 3] n"),
        ("y = Conv (x, w, n)", "float[8, 4, 3, 3] w, float[8] n"),
        ("t = Transpose (n)  y = MatMul (x, t)", "float[6, 12] n"),
        ("y = InstanceNormalization (x, s, n)", "float[4] s, float[4] n"),
        ("c = Conv (x, w)  y = Add (c, n)", "float[8, 4, 3, 3] w, float n"),
        ("c = Conv (x, w)  y = Mul (c, n)", "float[8, 4, 3, 3] w, float n"),
    ],
)
def test_nan_that_takes_part_is_refused_by_name(body: str, weights: str) -> None:
    with pytest.raises(LoadError, match=r"n has NaN or infinite weights \(n\)"):
        prepared(with_nan(body, weights))


FUSED = {
    "com.microsoft": 'y = com.microsoft.FusedConv <activation = "Relu"> (x, w)',
    "com.microsoft.nchwc": "y = com.microsoft.nchwc.Conv (x, w)",
}


@pytest.mark.parametrize("domain", FUSED)
def test_a_file_that_onnxruntime_optimised_is_refused_and_its_source_named(domain: str) -> None:
    proto = build(text(FUSED[domain], "float[8, 4, 3, 3] w").replace("17]", f'17, "{domain}" : 1]', 1))
    with pytest.raises(UnsupportedError, match=r"optimised this file .* Start from the file that it was made from"):
        prepared(proto)


PACKED = {
    "a cast": ("k = Cast <to = 1> (w)", "float16[64, 4, 3, 3] w"),
    "a scale for each channel": ("k = DequantizeLinear <axis = 0> (w, s)", "int8[64, 4, 3, 3] w, float[64] s"),
    "two steps": ("d = DequantizeLinear (w, t)  k = Mul (d, g)", "int8[64, 4, 3, 3] w, float t, float[64, 1, 1, 1] g"),
}


@pytest.mark.parametrize(("body", "weights"), PACKED.values(), ids=PACKED)
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), is_exact=st.booleans())
def test_weights_go_back_behind_their_expression_where_nothing_is_lost(
    body: str, weights: str, seed: int, is_exact: bool
) -> None:
    proto = build(text(f"{body}  y = Conv (x, k)", weights), seed)
    model = prepare(ir.serde.deserialize_model(proto))
    (place,) = find_sites(model, {})
    if not is_exact:
        place.constant.root.const_value = ir.tensor(place.constant.array() * np.float32(1.0001) + np.float32(1e-3))
    before = ir.serde.serialize_model(model)
    pack_weights(model, ir.serde.deserialize_model(proto))
    after = ir.serde.serialize_model(model)
    onnx.checker.check_model(after)
    assert after.ByteSize() < (0.7 if is_exact else 1.1) * before.ByteSize()
    # onnxruntime computes with weights that it unpacks in another order of summation.
    np.testing.assert_allclose(run(after, noise(proto))[0], run(before, noise(proto))[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("has_shapes", [False, True])
def test_shapes_between_nodes_go_where_the_original_has_none(has_shapes: bool) -> None:
    proto = build(text("c = Conv (x, k)  y = Relu (c)", "float[64, 4, 3, 3] k"))
    shaped = onnx.shape_inference.infer_shapes(proto)
    assert shaped.graph.value_info
    model = ir.serde.deserialize_model(shaped)
    drop_shapes(model, ir.serde.deserialize_model(shaped if has_shapes else proto))
    after = ir.serde.serialize_model(model)
    onnx.checker.check_model(after)
    assert ("c" in {value.name for value in after.graph.value_info}) == has_shapes
    assert after.graph.output == shaped.graph.output
    np.testing.assert_array_equal(run(after, noise(proto))[0], run(proto, noise(proto))[0])
