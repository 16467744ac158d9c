"""Models in 8 bits: exact where 8 bits suffice, all of it in 8-bit kernels, refused where images tell nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from hypothesis import given, settings
from models import build, relative_l2, run
from networks import in_batches, make_images, make_network
from shared import USES, SharedUse, shared_images, shared_network

from trp_export.errors import UnsupportedError
from trp_export.graph.cost import node_macs
from trp_export.graph.prepare import prepare
from trp_export.graph.shapes import infer_shapes
from trp_export.graph.weights import set_value
from trp_export.inputs.samples import Batch
from trp_export.precision import int8 as module
from trp_export.precision.equalise import equalise
from trp_export.precision.fp16 import to_fp16
from trp_export.precision.grids import WEIGHT_LIMIT, Grid
from trp_export.precision.int8 import UselessImagesError, shown_and_held_out, to_int8
from trp_export.precision.quantisable import find_units
from trp_export.precision.ranges import METHODS, full_range, gather_spreads
from trp_export.precision.rounding import round_model, rounded_values

LINEAR = """<ir_version: 8, opset_import: ["" : 13]>
net (float[N, 6] x) => (float[N, 4] y)
<float[4, 6] w, float[4] b>
{ y = Gemm <transB = 1> (x, w, b) }
"""
OLD = """<ir_version: 4, opset_import: ["" : 9]>
net (float[N, 3, 12, 12] image) => (float[N, 8, 12, 12] y)
<float[8, 3, 3, 3] conv__weight, float[8] conv__bias>
{ a = Conv <pads = [1, 1, 1, 1]> (image, conv__weight, conv__bias)
  y = Relu (a) }
"""


def batches(name: str = "image") -> list[Batch]:
    inputs = make_images(64).inputs
    return in_batches(*(inputs[start : start + 8] for start in range(0, 64, 8)), name=name)


def proto(model: ir.Model) -> onnx.ModelProto:
    return ir.serde.serialize_model(model)


def kernels(model: ir.Model, folder: Path) -> list[str]:
    """What onnxruntime makes of a model."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    onnxruntime.InferenceSession(proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [node.op_type for node in onnx.load(folder / "optimised.onnx").graph.node]


def test_numbers_that_8_bits_hold_come_out_exactly() -> None:
    """Whole inputs of 0 to 255, whole weights within the limit: nothing is rounded, so nothing may change."""
    rng = np.random.default_rng(0)
    model = ir.serde.deserialize_model(build(LINEAR))
    weight = rng.integers(-WEIGHT_LIMIT, WEIGHT_LIMIT + 1, (4, 6)) * 0.25
    weight[:, 0] = WEIGHT_LIMIT * 0.25
    set_value(model.graph.initializers["w"], weight)
    set_value(model.graph.initializers["b"], rng.integers(-1000, 1000, 4) * 0.25)
    inputs = rng.integers(0, 256, (32, 6)).astype(np.float32)
    inputs[0, 0], inputs[0, 1] = 0, 255
    before = run(proto(model), {"x": inputs})[0]
    round_model(model, {"x": Grid(1.0, 0)})
    np.testing.assert_allclose(run(proto(model), {"x": inputs})[0], before, rtol=1e-6)


def test_every_layer_runs_in_8_bits(tmp_path: Path) -> None:
    model, _ = make_network()
    made = to_int8(model, batches("x"))
    onnx.checker.check_model(proto(made.model), full_check=True)
    assert made.in_float == ()
    found = kernels(made.model, tmp_path)
    assert found.count("QLinearConv") == 4
    assert {"QLinearAdd", "QGemm"} <= set(found)
    assert not {"Conv", "FusedConv", "Gemm", "Add", "Relu"} & set(found)
    assert not any(tensor.data_type == onnx.TensorProto.FLOAT and tensor.name.endswith(".weight")
                   for tensor in proto(made.model).graph.initializer)  # fmt: skip


def test_8_bits_answer_as_floats_do_and_leave_the_model_alone() -> None:
    model, _ = make_network()
    given = proto(model).SerializeToString()
    made = to_int8(model, batches("x"))
    assert proto(model).SerializeToString() == given
    inputs = {"x": make_images(32, seed=5).inputs[:, :, :12, :12]}
    assert relative_l2(run(proto(model), inputs)[0], run(proto(made.model), inputs)[0]) < 0.03


def test_what_stays_float_computes_as_before(tmp_path: Path) -> None:
    """With all units in float nothing is rounded; with one, its own kernel is a float one."""
    model, _ = make_network()
    inputs = {"x": make_images(4).inputs[:, :, :12, :12]}
    before = run(proto(model), inputs)[0]
    names = [unit.name for unit in find_units(model)]
    spreads = gather_spreads(model, sorted(set(rounded_values(model).values())), batches("x"))
    grids = {name: full_range(spread) for name, spread in spreads.items()}
    whole, part = model.clone(), model.clone()
    round_model(whole, grids, names)
    np.testing.assert_array_equal(run(proto(whole), inputs)[0], before)
    round_model(part, grids, names[:1])
    found = kernels(part, tmp_path)
    assert found.count("QLinearConv") == 3
    assert sum(name in ("Conv", "FusedConv") for name in found) == 1


def test_damage_beyond_the_limit_puts_layers_back_into_float(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = make_network()
    whole = to_int8(model, batches("x"))
    monkeypatch.setattr(module, "_ENOUGH", whole.divergence / 2)
    part = to_int8(model, batches("x"))
    assert part.in_float
    assert part.divergence <= whole.divergence / 2


def test_layers_in_float_take_at_most_half_of_the_multiply_adds(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit cannot be reached, so as much stays in float as may."""
    model, _ = make_network()
    monkeypatch.setattr(module, "_ENOUGH", 0.0)
    monkeypatch.setattr(module, "_NEARLY", 1.0)
    made = to_int8(model, batches("x"))
    runs = infer_shapes(model, {"x": batches("x")[0].arrays["x"].shape})
    macs = {unit.name: node_macs(unit.node, runs) or 0 for unit in find_units(model) if unit.weight is not None}
    share = sum(macs.get(name, 0) for name in made.in_float) / sum(macs.values())
    assert 0 < share <= 0.5


PAIR = """<ir_version: 8, opset_import: ["" : 17]>
net (float[N, 3, 12, 12] image) => (float[N, 8, 12, 12] y)
<float[6, 3, 3, 1] reduce__weight, float[6] reduce__bias, float[8, 3, 1, 3] expand__weight>
{ a = Conv <pads = [1, 0, 1, 0]> (image, reduce__weight, reduce__bias)
  b = Conv <pads = [0, 1, 0, 1], group = 2> (a, expand__weight)
  y = Relu (b) }
"""


def test_equalised_channels_change_nothing_but_their_ranges() -> None:
    model = ir.serde.deserialize_model(build(PAIR))
    uneven = np.geomspace(1e-2, 1e2, 6)
    for name, factors in {
        "reduce.weight": uneven.reshape(-1, 1, 1, 1),
        "reduce.bias": uneven,
        "expand.weight": 1 / np.repeat(uneven.reshape(2, 3, 1, 1), 4, axis=0),
    }.items():
        value = model.graph.initializers[name]
        assert value.const_value is not None
        set_value(value, value.const_value.numpy() * factors)
    inputs = {"image": make_images(8).inputs[:, :, :12, :12]}
    before, apart = run(proto(model), inputs)[0], int8_error(model, inputs)
    assert equalise(model, batches()) == 1
    assert relative_l2(before, run(proto(model), inputs)[0]) < 1e-5
    assert int8_error(model, inputs) < apart / 2


def int8_error(model: ir.Model, inputs: dict[str, np.ndarray]) -> float:
    """Of the model rounded as it is."""
    spreads = gather_spreads(model, sorted(set(rounded_values(model).values())), batches())
    rounded = model.clone()
    round_model(rounded, {name: full_range(spread) for name, spread in spreads.items()})
    return relative_l2(run(proto(model), inputs)[0], run(proto(rounded), inputs)[0])


def test_channels_before_a_relu_or_with_other_readers_stay() -> None:
    model, _ = make_network()
    given = proto(model).SerializeToString()
    assert equalise(model, batches("x")) == 0
    assert proto(model).SerializeToString() == given


def test_an_old_opset_is_raised() -> None:
    model = ir.serde.deserialize_model(build(OLD))
    made = to_int8(model, batches())
    assert made.model.opset_imports[""] >= 13
    inputs = {"image": make_images(4).inputs[:, :, :12, :12]}
    assert relative_l2(run(proto(model), inputs)[0], run(proto(made.model), inputs)[0]) < 0.03


SHARED = """<ir_version: 8, opset_import: ["" : 17]>
net (float[N, 3, 12, 12] image) => (float[N, 6, 12, 12] y, float[N, 3, 12, 12] b)
<float[3, 3, 3, 3] w, float[3] bias>
{ a = Conv <pads = [1, 1, 1, 1]> (image, w, bias)
  b = Relu (a)
  c = Conv <pads = [1, 1, 1, 1]> (b, w)
  d = Clip (c, zero, six)
  y = Concat <axis = 1> (b, d) }
"""


def test_shared_weights_relu6_and_outputs_that_are_read_again(tmp_path: Path) -> None:
    text = SHARED.replace("{ a", "{ zero = Constant <value_float = 0.0> ()\n six = Constant <value_float = 6.0> ()\n a")
    model = prepare(ir.serde.deserialize_model(build(text)))
    made = to_int8(model, batches())
    onnx.checker.check_model(proto(made.model), full_check=True)
    inputs = {"image": make_images(4).inputs[:, :, :12, :12]}
    for before, after in zip(run(proto(model), inputs), run(proto(made.model), inputs), strict=True):
        assert relative_l2(before, after) < 0.03
    found = kernels(made.model, tmp_path)
    assert found.count("QLinearConv") == 2
    # The Concat only joins what is compared apart, so it stays float.
    assert not {"Clip", "Relu", "Conv"} & set(found)


def test_outputs_keep_their_names() -> None:
    model = ir.serde.deserialize_model(build(OLD))
    made = to_int8(model, batches())
    assert [value.name for value in made.model.graph.outputs] == ["y"]


def test_images_that_tell_nothing_are_refused() -> None:
    model, _ = make_network()
    with pytest.raises(UselessImagesError, match="too few"):
        to_int8(model, in_batches(np.zeros((8, 3, 12, 12), dtype=np.float32)))
    flat = np.ones((32, 3, 12, 12), dtype=np.float32) * np.arange(32, dtype=np.float32).reshape(-1, 1, 1, 1)
    with pytest.raises(UselessImagesError, match="one colour"):
        to_int8(model, in_batches(flat))


def test_a_float16_model_is_refused_with_what_to_start_from() -> None:
    model, _ = make_network()
    with pytest.raises(UnsupportedError, match=r"float16\. Start from the float32 file"):
        to_int8(to_fp16(model), batches())


def test_a_model_without_layers_is_refused() -> None:
    text = '<ir_version: 8, opset_import: ["" : 17]> net (float[N, 3] x) => (float[N, 3] y) { y = Relu (x) }'
    with pytest.raises(UnsupportedError, match="no layer"):
        to_int8(ir.serde.deserialize_model(build(text)), in_batches(np.ones((32, 1), np.float32) * np.arange(3)))


def test_no_more_images_are_used_than_help() -> None:
    parts = shown_and_held_out(in_batches(np.zeros((64, 1, 1, 1), dtype=np.float32)) * 100)
    assert [sum(len(batch) for batch in part) for part in parts] == [module.MOST_IMAGES] * 2


@pytest.mark.parametrize(("count", "size"), [(64, 8), (16, 16), (40, 20), (17, 17)])
def test_every_image_shows_ranges_or_is_held_out(count: int, size: int) -> None:
    given = np.arange(count, dtype=np.float32).reshape(-1, 1, 1, 1)
    parts = shown_and_held_out(in_batches(*(given[start : start + size] for start in range(0, count, size))))
    seen = [set(np.concatenate([batch.arrays["x"] for batch in part]).reshape(-1).tolist()) for part in parts]
    assert not seen[0] & seen[1]
    assert seen[0] | seen[1] == set(range(count))
    assert len(seen[1]) <= count / 3


def test_no_batch_that_shows_ranges_is_empty() -> None:
    """The last batch may hold one image: lines of text have several widths."""
    shown, held_out = shown_and_held_out(in_batches(np.zeros((16, 1, 1, 1)), np.zeros((1, 1, 1, 2))))
    assert [len(batch) for batch in shown] == [12]
    assert [len(batch) for batch in held_out] == [4, 1]


def test_a_value_without_rows_has_no_part_in_its_range() -> None:
    """A detector may find nothing in an image."""
    text = '<ir_version: 8, opset_import: ["" : 17]> net (float[N, 3] x) => (float[N, 3] y) { y = Relu (x) }'
    model, full = ir.serde.deserialize_model(build(text)), np.ones((2, 3), dtype=np.float32)
    spreads = gather_spreads(model, ["x"], in_batches(full, full[:0], 3 * full))
    assert (spreads["x"].low, spreads["x"].high) == (1, 3)
    assert spreads["x"].counts.sum() == 12
    nothing = gather_spreads(model, ["x"], in_batches(full[:0]))["x"]
    assert (nothing.low, nothing.high, nothing.counts.sum()) == (0, 0, 0)
    assert all(np.isfinite(method(nothing).scale) for method in METHODS.values())


def test_fp16_is_half_the_size_and_keeps_its_inputs() -> None:
    model, _ = make_network()
    half = to_fp16(model)
    assert half.graph.inputs[0].dtype == ir.DataType.FLOAT
    inputs = {"x": make_images(8).inputs[:, :, :12, :12]}
    assert relative_l2(run(proto(model), inputs)[0], run(proto(half), inputs)[0]) < 5e-3
    assert len(proto(half).SerializeToString()) < 0.8 * len(proto(model).SerializeToString())


def test_a_clip_of_an_older_opset_is_free() -> None:
    """As in MobileNetV2: the lower end of the grid does its work."""
    text = OLD.replace("y = Relu (a)", "b = Clip <min = 0.0, max = 6.0> (a)  y = Conv (b, head__weight)")
    text = text.replace("conv__bias>", "conv__bias, float[8, 8, 1, 1] head__weight>")
    made = to_int8(prepare(ir.serde.deserialize_model(build(text))), batches())
    rounded = [node.inputs[0].name for node in made.model.graph if node.op_type == "QuantizeLinear"]
    assert rounded == ["image", "b", "y.float"]


def test_sizes_that_a_network_joins_are_no_floats() -> None:
    """What F.interpolate exports for a network of open size."""
    text = """<ir_version: 8, opset_import: ["" : 17]> net (float[N, 3, H, W] image) => (float[N, 4, h, w] y)
    <float[8, 3, 3, 3] v, float[4, 8, 3, 3] w, int64[1] none = {0}, int64[1] two = {2}, int64[1] four = {4}>
    { a = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (image, v)  b = Relu (a)
      s = Shape (b)  front = Slice (s, none, two, none)
      t = Shape (image)  back = Slice (t, two, four, none)
      sizes = Concat <axis = 0> (front, back)
      c = Resize <mode = "nearest"> (b, , , sizes)  y = Conv <pads = [1, 1, 1, 1]> (c, w) }"""
    source = build(text)
    made = to_int8(prepare(ir.serde.deserialize_model(source)), batches())
    images = make_images(8, seed=3).inputs
    assert relative_l2(*(run(each, {"image": images})[0] for each in (source, proto(made.model)))) < 0.1


@settings(max_examples=12)
@given(uses=USES)
def test_a_shared_weight_is_stored_once_in_8_bits(uses: Sequence[SharedUse]) -> None:
    model, x = shared_network(uses), shared_images(24)
    made = round_all(model, x)
    stored = [tensor for tensor in made.graph.initializer if tensor.data_type == onnx.TensorProto.INT8]
    kernels_stored = [tensor for tensor in stored if len(tensor.dims) == 4]
    assert len(kernels_stored) == 1
    assert not any(len(t.dims) == 4 and t.data_type == onnx.TensorProto.FLOAT for t in made.graph.initializer)
    assert relative_l2(*(run(each, {"x": x})[0] for each in (proto(model), made))) < 0.15


def round_all(model: ir.Model, x: np.ndarray) -> onnx.ModelProto:
    copy = model.clone()
    names = sorted(set(rounded_values(copy).values()))
    spreads = gather_spreads(copy, names, in_batches(x))
    round_model(copy, {name: full_range(spread) for name, spread in spreads.items()})
    return proto(copy)


def test_each_use_of_a_shared_weight_has_its_own_ranges() -> None:
    """One use sees values 100 times smaller; with the range of the other it would keep three levels of 255."""
    text = """<ir_version: 8, opset_import: ["": 17]>
    net (float[N, 3, 12, 12] x) => (float[N, 3, 12, 12] large, float[N, 3, 12, 12] small) <float hundredth = {0.01}>
    { large = Conv <pads = [1, 1, 1, 1]> (x, w)  s = Mul (x, hundredth)
      small = Conv <pads = [1, 1, 1, 1]> (s, w) }"""
    model, _ = make_network(text, given={"w": np.random.default_rng(0).standard_normal((3, 3, 3, 3))})
    x = make_images(16).inputs
    made = round_all(model, x)
    for before, after in zip(run(proto(model), {"x": x}), run(made, {"x": x}), strict=True):
        assert relative_l2(before, after) < 0.03
    values = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in made.graph.initializer}
    makers = {name: node for node in made.graph.node for name in node.output}
    convs = [node for node in made.graph.node if node.op_type == "Conv"]
    weights, steps = zip(
        *((makers[conv.input[1]].input[0], values[makers[conv.input[0]].input[1]]) for conv in convs), strict=True
    )
    assert len(set(weights)) == 1
    by_hand = np.ptp([*x.ravel(), 0.0]) / 255
    np.testing.assert_allclose(steps, [by_hand, by_hand / 100], rtol=1e-3)


def test_pairs_of_shared_weights_are_equalised_together() -> None:
    text = """<ir_version: 8, opset_import: ["": 17]>
    net (float[N, 3, 12, 12] x) => (float[N, 3, 12, 12] y)
    { a = Conv <pads = [1, 1, 0, 0]> (x, u, b)  c = Conv <pads = [0, 0, 1, 1]> (a, v)  r = Relu (c)
      d = Conv <pads = [1, 1, 0, 0]> (r, u, b)  e = Conv <pads = [0, 0, 1, 1]> (d, v)  y = Add (e, c) }"""
    rng = np.random.default_rng(0)
    kernels = {"u": rng.standard_normal((4, 3, 2, 2)) * np.array([1, 9, 0.1, 1])[:, None, None, None]}
    kernels |= {"v": rng.standard_normal((3, 4, 2, 2)), "b": rng.standard_normal(4)}
    model, _ = make_network(text, given=kernels)
    x = make_images(16).inputs
    before = run(proto(model), {"x": x})[0]
    assert equalise(model, in_batches(x)) == 1
    after = np.asarray(model.graph.initializers["u"].const_value.numpy())
    assert np.ptp(np.log(np.abs(after).max(axis=(1, 2, 3)))) < np.ptp(np.log([0.1, 9]))
    assert relative_l2(before, run(proto(model), {"x": x})[0]) < 1e-5


def test_a_conv_that_feeds_itself_is_not_equalised() -> None:
    text = """<ir_version: 8, opset_import: ["": 17]>
    net (float[N, 3, 12, 12] x) => (float[N, 3, 12, 12] y)
    { a = Conv <pads = [1, 1, 1, 1]> (x, w)  y = Conv <pads = [1, 1, 1, 1]> (a, w) }"""
    model, _ = make_network(text, given={"w": np.random.default_rng(0).standard_normal((3, 3, 3, 3))})
    assert equalise(model, in_batches(make_images(16).inputs)) == 0
