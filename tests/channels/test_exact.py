"""Channels that are equal or constant go, and the network answers as before: by construction, operator by operator.

Random channels of a random network are copied, emptied or made constant, in all that makes them. The thinner network
must answer as the wide one does in onnxruntime, and must have lost those channels.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from models import build, noise, relative_l2, run
from networks import input_shapes
from onnx import numpy_helper

from trp_export.channels.analysis import analyse_channels
from trp_export.channels.equal import equal_rows
from trp_export.channels.removal import remove_channels
from trp_export.channels.thin import ChannelChoice, choose_channels
from trp_export.graph.prepare import prepare, remove_unused
from trp_export.graph.shapes import infer_value_shapes
from trp_export.planning.channels import ChannelDecision
from trp_export.runtime.sessions import open_session, run_session
from trp_export.verify.rounding import LAMBDA, nudge, nudge_weights

FIND = ChannelChoice(None, lambda name: None)
HEAD = '<ir_version: 8, opset_import: ["" : 17]> net (float[N, 3, 12, 12] x) => (float[N, K, H, W] y) '

# Each makes y of a, which has 8 channels, and names the weights that make them: all have their channels on axis 0.
# Gates get small values: a closed one is exact to 1e-7 only absolutely, which may be more than all of a small output.
BODIES = {
    "conv": "<float[5, 8, 3, 3] w> { y = Conv <pads = [1, 1, 1, 1]> (a, w) }",
    "strided": "<float[5, 8, 3, 3] w> { y = Conv <strides = [2, 3], dilations = [2, 1], pads = [0, 2, 1, 0]> (a, w) }",
    "transposed": "<float[8, 5, 3, 3] w> { y = ConvTranspose <strides = [2, 2], pads = [1, 0, 1, 0]> (a, w) }",
    "prelu": "<float[8, 1, 1] slope, float[5, 8, 1, 1] w> { p = PRelu (a, slope)\n y = Conv (p, w) }",
    "leaky": "<float[5, 8, 1, 1] w> { p = LeakyRelu (a)\n y = Conv (p, w) }",
    "pool": "<float[5, 8, 1, 1] w> { p = MaxPool <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (a)\n "
    "q = AveragePool <kernel_shape = [2, 2]> (p)\n y = Conv (q, w) }",
    "depthwise": "<float[8, 1, 3, 3] d, float[8] e, float[5, 8, 1, 1] w> { p = Conv <group = 8, pads = [1, 1, 1, 1]> "
    "(a, d, e)\n y = Conv (p, w) }",
    "multiplied": "<float[16, 1, 3, 3] d, float[5, 16, 1, 1] w> { p = Conv <group = 8> (a, d)\n y = Conv (p, w) }",
    "residual": "<float[8, 8, 3, 3] v, float[5, 8, 1, 1] w> { r = Relu (a)\n p = Conv <pads = [1, 1, 1, 1]> (r, v)\n "
    "s = Add (p, a)\n y = Conv (s, w) }",
    "gate": "<float small = {0.05}, float[4, 8, 1, 1] v, float[8, 4, 1, 1] u, float[5, 8, 1, 1] w> "
    "{ f = GlobalAveragePool (a)\n g = Mul (f, small)\n h = Conv (g, v)\n i = Relu (h)\n "
    "j = Conv (i, u)\n k = Sigmoid (j)\n m = Mul (a, k)\n y = Conv (m, w) }",
    "concat": "<float[6, 8, 3, 3] v, float[5, 17, 1, 1] w> { p = Conv <pads = [1, 1, 1, 1]> "
    "(a, v)\n c = Concat <axis = 1> (x, p, a)\n y = Conv (c, w) }",
    "split": "<float[5, 4, 1, 1] w> { p, q = Split <axis = 1> (a)\n "
    "s = Mul (p, p)\n t = Add (s, q)\n y = Conv (t, w) }",
    "shuffle": "<int64[5] s = {-1, 2, 4, 12, 12}, int64[4] t = {-1, 8, 12, 12}, float[5, 8, 1, 1] w> "
    "{ p = Reshape (a, s)\n q = Transpose <perm = [0, 2, 1, 3, 4]> (p)\n r = Reshape (q, t)\n y = Conv (r, w) }",
    "flatten": "<float[1152, 5] w, int64[4] t = {-1, 5, 1, 1}> { f = Flatten (a)\n m = MatMul (f, w)\n "
    "y = Reshape (m, t) }",
    "gemm": "<float[6, 8] v, float[6] u, float[5, 6] w, int64[2] s = {0, -1}, int64[4] t = {-1, 5, 1, 1}> "
    "{ g = GlobalAveragePool (a)\n f = Reshape (g, s)\n h = Gemm <transB = 1, alpha = 0.5> (f, v, u)\n i = Relu (h)\n "
    "m = Gemm <transB = 1> (i, w)\n y = Reshape (m, t) }",
    "resize": "<float[4] z = {1, 1, 2, 2}, int64[8] p = {0, 0, 1, 1, 0, 0, 2, 0}, float[5, 8, 3, 3] w> "
    '{ q = Pad (a, p)\n r = Resize <mode = "nearest"> (q, , z)\n y = Conv (r, w) }',
    "depth": "<float[5, 2, 1, 1] w> { d = DepthToSpace <blocksize = 2> (a)\n y = Conv (d, w) }",
    "space": "<float[5, 32, 1, 1] w> { d = SpaceToDepth <blocksize = 2> (a)\n y = Conv (d, w) }",
    "grouped": "<float[6, 4, 3, 3] v, float[5, 6, 1, 1] w> { p = Conv <group = 2> (a, v)\n y = Conv (p, w) }",
    "grouped transposed": "<float[8, 3, 3, 3] v, float[5, 6, 1, 1] w> { p = ConvTranspose <group = 2> (a, v)\n "
    "y = Conv (p, w) }",
    "shared": "<float[8, 8, 3, 3] v, float[5, 8, 1, 1] w> { p = Conv <pads = [1, 1, 1, 1]> (a, v)\n r = Relu (p)\n "
    "q = Conv <pads = [1, 1, 1, 1]> (r, v)\n s = Add (q, a)\n t = Add (s, r)\n y = Conv (t, w) }",
    "slice": "<int64[1] b = {2}, int64[1] e = {9223372036854775807}, int64[1] i = {1}, float[5, 6, 1, 1] w> "
    "{ p = Slice (a, b, e, i)\n y = Conv (p, w) }",
    "gather": "<int64[5] i = {7, 0, 0, 3, 2}, float[5, 5, 1, 1] w> { p = Gather <axis = 1> (a, i)\n y = Conv (p, w) }",
    "computed flatten": "<int64[1] b = {0}, int64[1] e = {1}, int32[1] n = {8}, float[8, 5] w, "
    "int64[4] t = {-1, 5, 1, 1}> { g = GlobalAveragePool (a)\n s = Shape (g)\n i = Cast <to = 6> (s)\n "
    "f = Slice (i, b, e, b, e)\n l = Cast <to = 7> (f)\n k = Cast <to = 7> (n)\n h = Concat <axis = 0> (l, k)\n "
    "r = Reshape (g, h)\n m = MatMul (r, w)\n y = Reshape (m, t) }",
    "computed sizes": "<int64[1] b = {0}, int64[1] e = {1}, int64[3] n = {8, 24, 24}, float[5, 8, 1, 1] w> "
    "{ s = Shape (a)\n l = Slice (s, b, e)\n t = Concat <axis = 0> (l, n)\n "
    'r = Resize <mode = "nearest"> (a, , , t)\n y = Conv (r, w) }',
    "sizes that follow": "<int64[1] b = {0}, int64[1] e = {2}, int64[2] n = {24, 24}, float[5, 8, 1, 1] w> "
    "{ s = Shape (a)\n l = Slice (s, b, e)\n t = Concat <axis = 0> (l, n)\n "
    'r = Resize <mode = "nearest"> (a, , , t)\n y = Conv (r, w) }',
    "shuffled twice": "<int64[5] s = {-1, 2, 4, 12, 12}, int64[5] v = {-1, 4, 2, 12, 12}, "
    "int64[4] t = {-1, 8, 12, 12}, float[5, 8, 1, 1] w> "
    "{ p = Reshape (a, s)\n q = Transpose <perm = [0, 2, 1, 3, 4]> (p)\n r = Reshape (q, t)\n i = Reshape (r, v)\n "
    "j = Transpose <perm = [0, 2, 1, 3, 4]> (i)\n k = Reshape (j, t)\n y = Conv (k, w) }",
    "shifted": "<float[8] u, int64[4] s = {1, 8, 1, 1}, float[5, 8, 1, 1] w> { c = Reshape (u, s)\n p = Add (a, c)\n "
    "q = Relu (p)\n y = Conv (q, w) }",
    "lstm": "<float small = {0.05}, float[1, 8, 8] w, float[1, 8, 2] r, int64[3] s = {1, -1, 8}, "
    "int64[4] t = {-1, 2, 1, 1}> { p = GlobalAveragePool (a)\n m = Mul (p, small)\n q = Reshape (m, s)\n "
    "o, y0, c = LSTM <hidden_size = 2> (q, w, r)\n "
    "y = Reshape (o, t) }",
}
STEM = (
    "float[8, 3, 3, 3] stem__weight, float[8] stem__b, float[8] bn__s, float[8] bn__b, float[8] bn__m, float[8] bn__v",
    "c0 = Conv <pads = [1, 1, 1, 1]> (x, stem__weight, stem__b)\n "
    "b0 = BatchNormalization (c0, bn__s, bn__b, bn__m, bn__v)\n "
    "a = Relu (b0)\n",
)
# What has one entry for each of the 8 channels, beside the stem, and must agree for them to be equal.
TIED = {
    "prelu": ("slope",),
    "depthwise": ("d", "e"),
    "residual": ("v",),
    "gate": ("u",),
    "shared": ("v",),
    "shifted": ("u",),
}
LIVES = {"split", "gather", "depth"}  # Copies need not be equal where they are read.


def network(kind: str, seed: int) -> onnx.ModelProto:
    return build(_text(kind), seed)


def _text(kind: str) -> str:
    return _behind_stem(BODIES[kind])


def _behind_stem(body: str) -> str:
    declared, nodes = STEM
    own, _, rest = body.partition("> {")
    return f"{HEAD}<{declared}, {own.removeprefix('<')}> {{ {nodes} {rest}"


def edit(model: onnx.ModelProto, name: str, change: object) -> None:
    (tensor,) = [one for one in model.graph.initializer if one.name == name]
    array = numpy_helper.to_array(tensor).copy()
    change(array)  # type: ignore[operator]
    tensor.CopyFrom(numpy_helper.from_array(array, name))


def randomise(model: onnx.ModelProto, seed: int) -> None:
    """Weights of full rank: those of low rank may be equal by chance."""
    rng = np.random.default_rng(seed)
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.dtype == np.float32 and array.size > 4:
            drawn = rng.uniform(0.5, 1.5, array.shape) * rng.choice([-1, 1], array.shape)
            drawn = np.abs(drawn) if tensor.name == "bn.v" else drawn
            tensor.CopyFrom(numpy_helper.from_array(drawn.astype(np.float32), tensor.name))


def thin(model: onnx.ModelProto) -> tuple[onnx.ModelProto, tuple[ChannelDecision, ...]]:
    graph = prepare(ir.from_proto(model))
    shapes = infer_value_shapes(graph, input_shapes(graph))
    analysis, gone, decisions = choose_channels(graph, shapes, FIND)
    remove_channels(analysis, gone)
    remove_unused(graph)
    return ir.to_proto(graph), decisions


def require_same(wide: onnx.ModelProto, thinner: onnx.ModelProto) -> None:
    """Where large numbers leave a small difference, rounding moves the wide network itself by more than 1e-5."""
    inputs = noise(wide)
    for wanted, got, moved in zip(run(wide, inputs), run(thinner, inputs), run_moved(wide, inputs), strict=True):
        assert relative_l2(wanted, got) < max(1e-5, LAMBDA * relative_l2(wanted, moved))


def run_moved(model: onnx.ModelProto, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Weights and inputs are moved by one unit in the last place, and onnxruntime optimises nothing."""
    moved = ir.from_proto(model)
    nudge_weights(moved)
    return run_session(open_session(ir.to_proto(moved).SerializeToString(), optimise=False), nudge(inputs))


def copy_channel(model: onnx.ModelProto, kind: str, first: int, second: int) -> None:
    for name in ("stem.weight", "stem.b", "bn.s", "bn.b", "bn.m", "bn.v", *TIED.get(kind, ())):
        edit(model, name, lambda array: array.__setitem__(second, array[first]))
    if kind == "multiplied":
        edit(
            model,
            "d",
            lambda array: array.__setitem__(slice(2 * second, 2 * second + 2), array[2 * first : 2 * first + 2]),
        )


def empty_channel(model: onnx.ModelProto, kind: str, channel: int) -> None:
    for name in ("bn.s", "bn.b", *(name for name in TIED.get(kind, ()) if name in ("v", "e"))):
        edit(model, name, lambda array: array.__setitem__(channel, 0))


def make_constant(model: onnx.ModelProto, kind: str, channel: int, value: float) -> None:
    """Give a channel of the stem this value everywhere; what is tied to it makes nothing of its own."""
    empty_channel(model, kind, channel)
    edit(model, "bn.b", lambda array: array.__setitem__(channel, value))


VALUES = st.lists(st.sampled_from([0.0, -0.5, 0.75, 1.5]), max_size=2)


@settings(max_examples=60)
@given(st.sampled_from(sorted(BODIES)), st.integers(0, 2**31), st.permutations(range(8)), st.integers(1, 4), VALUES)
@example("lstm", 238, [5, 1, 2, 3, 4, 0, 6, 7], 2, [])
@example("lstm", 391, [5, 1, 2, 3, 4, 0, 6, 7], 2, [])
def test_thinner_network_answers_as_the_wide_one(
    kind: str, seed: int, channels: list[int], copies: int, values: list[float]
) -> None:
    model = network(kind, seed % 7)
    randomise(model, seed)
    for second in channels[1:copies]:
        copy_channel(model, kind, channels[0], second)
    for channel, value in zip(channels[6:], values, strict=False):
        make_constant(model, kind, channel, value)
    thinner, _ = thin(model)
    require_same(model, thinner)


@pytest.mark.parametrize(("kind", "seed"), [("lstm", 238), ("conv", 0), ("gate", 1)])
def test_one_wrong_weight_is_beyond_rounding(kind: str, seed: int) -> None:
    model = network(kind, seed % 7)
    randomise(model, seed)
    copy_channel(model, kind, 5, 1)
    thinner, _ = thin(model)
    edit(thinner, "w", lambda array: array.__setitem__((0, 0, 0), array[0, 0, 0] * (1 + 1e-3)))
    with pytest.raises(AssertionError):
        require_same(model, thinner)


@pytest.mark.parametrize("kind", sorted(set(BODIES) - LIVES - {"grouped", "grouped transposed"}))
def test_equal_and_empty_channels_go(kind: str) -> None:
    model = network(kind, 0)
    randomise(model, 1)
    copy_channel(model, kind, 3, 5)
    empty_channel(model, kind, 6)
    thinner, decisions = thin(model)
    require_same(model, thinner)
    (stem,) = [decision for decision in decisions if decision.name == "stem"]
    assert stem.kept == 6, stem


@pytest.mark.parametrize("kind", ["grouped", "grouped transposed"])
def test_groups_of_a_conv_stay_of_equal_size(kind: str) -> None:
    model = network(kind, 0)
    randomise(model, 1)
    for channel in (0, 1, 6):  # Two of the first group, one of the second: one of each can go.
        empty_channel(model, kind, channel)
    thinner, decisions = thin(model)
    require_same(model, thinner)
    assert next(decision for decision in decisions if decision.name == "stem").kept == 6


def test_a_resize_may_count_its_axes_from_the_last() -> None:
    body = (
        "<int64[3] n = {8, 24, 24}, float[5, 8, 1, 1] w> "
        '{ r = Resize <axes = [-3, -2, -1], mode = "nearest"> (a, , , n)\n y = Conv (r, w) }'
    )
    model = build(_behind_stem(body).replace('"" : 17', '"" : 18'))
    randomise(model, 1)
    copy_channel(model, "resize", 3, 5)
    thinner, decisions = thin(model)
    require_same(model, thinner)
    assert decisions[0].kept == 7


def test_channels_that_say_where_another_value_is_read_stay() -> None:
    body = (
        "<float[16] table, float lo = {0}, float hi = {15}, float[5, 8, 1, 1] v, float[5, 8, 1, 1] w> "
        "{ g = GlobalMaxPool (a)\n h = Clip (g, lo, hi)\n i = Cast <to = 7> (h)\n p = Gather (table, i)\n "
        "q = Conv (p, v)\n r = Conv (g, w)\n y = Add (q, r) }"
    )
    model = build(_behind_stem(body))
    randomise(model, 1)
    copy_channel(model, "conv", 3, 5)
    thinner, decisions = thin(model)
    require_same(model, thinner)
    assert decisions[0].reason.endswith("reads it: it may mix channels")


def test_channels_that_a_constant_condition_chooses_go() -> None:
    body = (
        "<bool[8, 1, 1] c = {0, 1, 0, 1, 0, 1, 1, 0}, float z = {0.5}, float[5, 8, 1, 1] w> "
        "{ p = Where (c, a, z)\n y = Conv (p, w) }"
    )
    model = build(_behind_stem(body))
    randomise(model, 1)
    copy_channel(model, "conv", 3, 5)  # Both are chosen.
    copy_channel(model, "conv", 4, 6)  # One of two.
    thinner, decisions = thin(model)
    require_same(model, thinner)
    assert [cluster.merged for cluster in decisions[0].clusters] == [(5,)]


def test_two_recurrent_layers_with_one_weight_lose_the_same_channels() -> None:
    body = (
        "<float[8, 8] v, float[1, 8, 8] w, float[1, 8, 2] r, int64[2] f = {-1, 8}, int64[3] s = {1, -1, 8}, "
        "int64[4] t = {-1, 2, 1, 1}> { g = GlobalAveragePool (a)\n h = Reshape (g, f)\n m = MatMul (h, v)\n "
        "i = Reshape (h, s)\n j = Reshape (m, s)\n o, o1, o2 = LSTM <hidden_size = 2> (i, w, r)\n "
        "p, p1, p2 = LSTM <hidden_size = 2> (j, w, r)\n q = Add (o, p)\n y = Reshape (q, t) }"
    )
    for also, kept in ((), 8), (("v",), 7):
        model = build(_behind_stem(body))
        randomise(model, 1)
        edit(model, "v", lambda array: array.__imul__(0.05))
        copy_channel(model, "lstm", 3, 5)
        for name in also:
            edit(model, name, lambda array: array.__setitem__((slice(None), 5), array[:, 3]))
        thinner, decisions = thin(model)
        require_same(model, thinner)
        assert decisions[0].kept == kept


def test_a_weight_that_is_also_read_transposed_stays() -> None:
    body = (
        "<float[8, 8] v, float[5, 8, 1, 1] w, int64[2] f = {-1, 8}, int64[4] t = {-1, 8, 1, 1}> "
        "{ g = GlobalAveragePool (a)\n h = Reshape (g, f)\n m = Gemm (h, v)\n i = Relu (m)\n "
        "p = Gemm <transB = 1> (i, v)\n q = Reshape (p, t)\n y = Conv (q, w) }"
    )
    model = build(_behind_stem(body))
    randomise(model, 1)
    copy_channel(model, "conv", 3, 5)
    edit(model, "v", lambda array: array.__setitem__(5, array[3]))
    edit(model, "v", lambda array: array.__setitem__((slice(None), 5), array[:, 3]))
    thinner, decisions = thin(model)
    require_same(model, thinner)
    assert decisions[0].reason == "its weight is read elsewhere, too"


def test_planes_that_a_reshape_strings_together_are_not_followed_one_by_one() -> None:
    """As a group norm over all channels is exported at batch 1."""
    text = """<ir_version: 8, opset_import: ["" : 17]> net (float[1, 3, 64, 64] x) => (float[1, 5, 64, 64] y)
    <float[64, 3, 1, 1] v, float[5, 64, 1, 1] w, float[1] one, float[1] zero, int64[3] s = {0, 1, -1},
     int64[4] t = {1, 64, 64, 64}> {
        a = Conv (x, v)  r = Reshape (a, s)  n = InstanceNormalization (r, one, zero)  b = Reshape (n, t)
        y = Conv (b, w)
    }"""
    graph = prepare(ir.from_proto(build(text)))
    analysis = analyse_channels(graph, infer_value_shapes(graph, input_shapes(graph)))
    assert sum(len(labels.ids) for labels in analysis.labels.values()) < 64 * 64
    (reason,) = {analysis.ties.reason(channel) for channel in analysis.labels[graph.graph[0].outputs[0]].ids}
    assert reason is not None
    assert reason.endswith("it makes more than 65536 channels")


def test_constants_of_a_network_in_double_precision_are_as_precise() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]> net (double[2, 6] x) => (double[2, 5] y)
    <double[8, 6] v, double[8] b, double[5, 8] w, double[5] c> {
        a = Gemm <transB = 1> (x, v, b)  s = Sigmoid (a)  y = Gemm <transB = 1> (s, w, c)
    }"""
    model = build(text)
    edit(model, "v", lambda array: array.__setitem__(slice(4), 0))
    thinner, decisions = thin(model)
    assert decisions[0].dropped == (0, 1, 2, 3)
    inputs = {"x": np.random.default_rng(1).standard_normal((2, 6))}
    assert relative_l2(*run(model, inputs), *run(thinner, inputs)) < 1e-14


ROWS = hnp.arrays(np.float16, (12, 5), elements=st.sampled_from([-1.0, -0.5, 0.0, 0.001, 0.5, 0.502, 1.0]))


@given(ROWS)
def test_rows_of_one_class_are_near_its_first_and_those_of_two_are_not(rows: np.ndarray) -> None:
    classes = equal_rows(rows, 1.0, 2.0**-8)
    apart = np.abs(rows[:, None].astype(np.float64) - rows[None]).max(axis=2)
    firsts = np.unique(classes)
    np.testing.assert_array_equal(classes[firsts], firsts)
    assert (apart[np.arange(len(rows)), classes] <= 2.0**-8).all()
    assert (apart[np.ix_(firsts, firsts)] + np.eye(len(firsts)) > 2.0**-8).all()


def test_many_rows_in_half_precision_take_no_longer_than_others() -> None:
    """Their sums tell nothing: equal rows may differ by more than unequal ones do."""
    rows = np.random.default_rng(0).standard_normal((1024, 1536)).astype(np.float16)
    rows[100:200] = rows[:100]
    started = time.process_time()
    classes = equal_rows(rows, float(np.abs(rows).max()), 4 * float(np.finfo(np.float16).eps))
    assert time.process_time() - started < 2
    assert len(np.unique(classes)) == 924


def test_channels_of_an_output_stay() -> None:
    model = network("conv", 0)
    randomise(model, 0)
    edit(model, "w", lambda array: array.__setitem__(slice(None), array[0]))
    _, decisions = thin(model)
    assert [decision.removed for decision in decisions] == [0, 0]
    assert decisions[1].reason == "an output of the model"


def test_channels_behind_an_unknown_operator_stay_with_the_reason() -> None:
    text = _text("conv").replace("y = Conv <pads = [1, 1, 1, 1]> (a, w)", "l = LRN <size = 3> (a)\n y = Conv (l, w)")
    model = build(text)
    randomise(model, 0)
    copy_channel(model, "conv", 0, 1)
    _, decisions = thin(model)
    assert decisions[0].removed == 0
    assert decisions[0].reason.startswith("LRN ")
    assert decisions[0].reason.endswith("reads it: it may mix channels")


def test_nearly_equal_channels_stay() -> None:
    model = network("conv", 0)
    randomise(model, 0)
    copy_channel(model, "conv", 0, 1)
    edit(model, "stem.weight", lambda array: array.__setitem__(1, array[1] * (1 + 1e-5)))
    assert thin(model)[1][0].removed == 0


def test_channel_that_no_filter_uses_goes_and_what_it_is_made_of() -> None:
    text = _text("conv").replace("y = Conv <pads = [1, 1, 1, 1]> (a, w)", "h = Conv (a, u)\n y = Conv (h, w)")
    model = build(text.replace("float[5, 8, 3, 3] w", "float[4, 8, 1, 1] u, float[5, 4, 1, 1] w"))
    randomise(model, 0)
    edit(model, "w", lambda array: array.__setitem__((slice(None), 2), 0))
    edit(model, "u", lambda array: array.__setitem__(([0, 1, 3], 7), 0))  # Only filter 2 uses channel 7.
    thinner, decisions = thin(model)
    require_same(model, thinner)
    assert [decision.dropped for decision in decisions] == [(7,), (2,), ()]


def test_one_channel_is_left_of_a_dead_layer() -> None:
    model = network("conv", 0)
    randomise(model, 0)
    for channel in range(8):
        empty_channel(model, "conv", channel)
    thinner, decisions = thin(model)
    require_same(model, thinner)
    assert decisions[0].kept == 1


def test_a_thin_network_loses_nothing_more(tmp_path: Path) -> None:
    model = network("gate", 0)
    randomise(model, 0)
    copy_channel(model, "gate", 0, 1)
    _, decisions = thin(thin(model)[0])
    assert not any(decision.removed for decision in decisions)


# What makes of a constant another constant, with what it needs, and whether a padded conv reads it.
OF_CONSTANTS = {
    "relu": "p = Relu (b0)",
    "leaky": "p = LeakyRelu <alpha = 0.3> (b0)",
    "clip": "p = Clip (b0, lo, hi)",
    "elu": "p = Elu <alpha = 0.7> (b0)",
    "sigmoid": "p = Sigmoid (b0)",
    "hard sigmoid": "p = HardSigmoid <alpha = 0.3> (b0)",
    "hard swish": "p = HardSwish (b0)",
    "tanh": "p = Tanh (b0)",
    "softplus": "p = Softplus (b0)",
    "mish": "q = Softplus (b0)\n t = Tanh (q)\n p = Mul (b0, t)",
    "erf": "p = Erf (b0)",
    "swish": "q = Sigmoid (b0)\n p = Mul (b0, q)",
    "affine": "q = Mul (b0, c)\n p = Add (q, e)",
    "reversed": "q = Sub (c, b0)\n p = Div (q, hi)",
    "prelu": "p = PRelu (b0, c)",
    "max": "q = Max (b0, lo)\n p = Min (q, hi)",
    "average": "p = AveragePool <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (b0)",
    "maximum": "p = MaxPool <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (b0)",
    "linear": 'p = Resize <mode = "linear"> (b0, , z)',
    "depthwise": "p = Conv <group = 8> (b0, d, e1)",
    "edges": 'p = Pad <mode = "edge"> (b0, pads)',
    "layers": "q = Conv (b0, v, e1)\n p = Relu (q)",
}
_GIVEN = (
    "float lo = {-0.2}, float hi = {0.6}, float[8, 1, 1] c, float[8, 1, 1] e, float[8] e1, float[8, 1, 3, 3] d, "
    "float[8, 8, 1, 1] v, float[4] z = {1, 1, 2, 2}, int64[8] pads = {0, 0, 1, 1, 0, 0, 2, 0}"
)


def network_of_constants(nodes: str, reader: str, values: tuple[float, ...]) -> onnx.ModelProto:
    """The stem's first channels have these values everywhere; `reader` makes y of p."""
    declared, stem = STEM
    stem = stem.partition("a = Relu")[0]
    head = HEAD.replace('"" : 17', '"" : 18')
    model = build(f"{head}<{declared}, {_GIVEN}, float[5, 8, 3, 3] w, float[5] u> {{ {stem} {nodes}\n {reader} }}", 0)
    for name in ("stem.weight", "stem.b", "bn.s", "bn.b", "bn.m", "bn.v", "c", "e", "e1", "d", "v", "w", "u"):
        drawn = np.random.default_rng(len(name) + ord(name[0])).uniform(0.5, 1.5, 4096)
        edit(model, name, lambda array, drawn=drawn: array.__setitem__(..., drawn[: array.size].reshape(array.shape)))
    for channel, value in enumerate(values):
        make_constant(model, "conv", channel, value)
    return model


@pytest.mark.parametrize("nodes", OF_CONSTANTS.values(), ids=OF_CONSTANTS.keys())
def test_constant_channels_go_into_the_next_bias(nodes: str) -> None:
    for reader in ("y = Conv (p, w, u)", "y = Conv <strides = [2, 1], dilations = [1, 2]> (p, w)"):
        model = network_of_constants(nodes, reader, (-1.4, 0.4, 2.5))
        thinner, decisions = thin(model)
        require_same(model, thinner)
        assert decisions[0].dropped == (0, 1, 2), decisions


@pytest.mark.parametrize(
    "reader",
    [
        "y = Conv <pads = [0, 0, 1, 0]> (p, w, u)",
        'y = Conv <auto_pad = "SAME_UPPER"> (p, w)',
        "t = Transpose <perm = [1, 0, 2, 3]> (w)\n y = ConvTranspose (p, t)",
        "q = Pad (p, pads)\n y = Conv (q, w)",
    ],
)
def test_constant_channels_stay_where_zeros_are_padded(reader: str) -> None:
    model = network_of_constants("p = Relu (b0)", reader, (-1.4, 0.4, 2.5))
    thinner, decisions = thin(model)
    require_same(model, thinner)
    assert decisions[0].dropped == (0,)  # It is zero behind the ReLU.


def test_constant_channels_stay_where_one_of_two_readers_pads() -> None:
    reader = "q = Conv <pads = [1, 1, 1, 1]> (p, w)\n r = Conv <pads = [1, 1, 1, 1]> (b0, w)\n y = Add (q, r)"
    model = network_of_constants("p = Relu (b0)", reader, (-1.4, 0.4))
    thinner, decisions = thin(model)
    require_same(model, thinner)
    assert decisions[0].removed == 0


@pytest.mark.parametrize("bias", ["float[6] u", "float[1] u", "float[1, 6] u", "float[1, 1] u"])
def test_gemm_takes_constants_times_its_alpha_and_keeps_its_beta(bias: str) -> None:
    text = _text("gemm").replace("float[6] u", bias).replace("alpha = 0.5", "alpha = 0.5, beta = 0.25")
    model = build(text)
    randomise(model, 3)
    make_constant(model, "gemm", 2, 0.75)
    make_constant(model, "gemm", 5, 1.5)
    thinner, decisions = thin(model)
    require_same(model, thinner)
    assert decisions[0].dropped == (2, 5)
