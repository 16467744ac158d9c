"""Inputs of networks: what is read from the graph, and what the user's options and data add."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st
from models import build, save

from trp_export import Benchmark, Options, Rank, compress
from trp_export.errors import LoadError, OptionError, UnsupportedError
from trp_export.inputs.description import NetworkInputs, describe_inputs
from trp_export.inputs.options import InputOptions, parse_shape, show_shape
from trp_export.inputs.spec import InputSpec
from trp_export.options import Calibration

WEIGHT = "<float[8, 3, 3, 3] w>"


def model(inputs: str, body: str, weights: str = WEIGHT, opset: int = 17) -> ir.Model:
    """A model whose output y is made by `body`."""
    text = f'<ir_version: 8, opset_import: ["": {opset}]> g ({inputs}) => (float[a, b, c, d] y) {weights} {{ {body} }}'
    return ir.serde.deserialize_model(build(text))


def describe(inputs: str, body: str, options: InputOptions = InputOptions(), weights: str = WEIGHT) -> NetworkInputs:
    return describe_inputs(model(inputs, body, weights), options)


CONV = "y = Conv (x, w)"
TO_NCHW = "t = Transpose <perm=[0, 3, 1, 2]> (x)"


@pytest.mark.parametrize(
    ("declared", "body", "layout"),
    [
        ("float[n, 3, h, w1] x", CONV, "NCHW"),
        ("float[n, h, w1, 3] x", f"{TO_NCHW} y = Conv (t, w)", "NHWC"),
        ("float[n, h, w1, c] x", f"{TO_NCHW} y = Conv (t, w)", "NHWC"),
        ("uint8[n, h, w1, 3] x", "f = Cast <to=1> (x) t = Transpose <perm=[0, 3, 1, 2]> (f) y = Conv (t, w)", "NHWC"),
        ("float[n, 3, h, w1] x", "s = Mul (x, x) p = Pad <mode=\"reflect\"> (s, pads) y = Conv (p, w)", "NCHW"),
        ("float[h, w1, 3] x", "t = Transpose <perm=[2, 0, 1]> (x) u = Unsqueeze (t, zero) y = Conv (u, w)", "HWC"),
        ("float[3, h, w1] x", "u = Unsqueeze (x, zero) y = Conv (u, w)", "CHW"),
        ("float[h, w1, 3] x", "u = Unsqueeze (x, zero) t = Transpose <perm=[0, 3, 1, 2]> (u) y = Conv (t, w)", "HWC"),
        ("float[n, 3, h, w1] x", "g = Gather <axis=1> (x, reverse) y = Conv (g, w)", "NCHW"),
        ("float[n, 3, h, w1] x", "y = MaxPool <kernel_shape=[2, 2]> (x)", "NCHW"),
        ("float[1, 3, 96, 96] x", "y = Identity (x)", "NCHW"),
        ("float[1, 96, 96, 3] x", "y = Identity (x)", "NHWC"),
        ("float[n, 3, h, w1] x", "y = Identity (x)", "NCHW"),
        ("float[n, h, w1, 3] x", "y = Identity (x)", "NHWC"),
        ("float[n, 3, 96, c] x", "y = Identity (x)", "NCHW"),
        ("float[n, h, w1, c] x", "y = Identity (x)", "unknown"),
        ("float[1, 3, 3, 3] x", "y = Identity (x)", "unknown"),
    ],
)  # fmt: skip
def test_layout_is_read_from_the_graph(declared: str, body: str, layout: str) -> None:
    weights = "<float[8, 3, 3, 3] w, int64[1] zero = {0}, int64[3] reverse = {2, 1, 0}, " \
              "int64[8] pads = {0, 0, 1, 1, 0, 0, 1, 1}>"  # fmt: skip
    spec = describe(declared, body, weights=weights).only
    assert spec.layout == layout
    if layout != "unknown":
        assert spec.channels == 3


def test_grey_images_may_be_reshaped_instead_of_transposed() -> None:
    body = "t = Reshape (x, to) y = Conv (t, w)"
    spec = describe("float[n, 28, 28, 1] x", body, weights="<float[8, 1, 3, 3] w, int64[4] to = {-1, 1, 28, 28}>").only
    assert (spec.layout, spec.channels, spec.size) == ("NHWC", 1, (28, 28))


@pytest.mark.parametrize(
    ("arithmetic", "takes_pixels"),
    [
        ("f = Div (x, c255) y = Conv (f, w)", True),
        ("f = Mul (x, small) y = Conv (f, w)", True),
        ("f = Sub (x, mean) y = Conv (f, w)", True),
        ("f = Sub (x, half) g = Div (f, half) y = Conv (g, w)", False),
        ("f = Mul (x, c255) y = Conv (f, w)", False),
        ("y = Conv (x, w)", False),
    ],
)
def test_scaling_inside_the_network_is_recognised(arithmetic: str, takes_pixels: bool) -> None:
    weights = "<float[8, 3, 3, 3] w, float c255 = {255.0}, float small = {0.00392}, float half = {0.5}, " \
              "float[3] mean = {123.7, 116.3, 103.5}>"  # fmt: skip
    assert describe("float[n, 3, h, w1] x", arithmetic, weights=weights).only.takes_pixels is takes_pixels


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_result_takes_pixels_as_its_original_does(precision: Literal["fp32", "fp16"], tmp_path: Path) -> None:
    """The division is gone: its scale is in the conv."""
    text = """<ir_version: 8, opset_import: ["": 17]> g (float[n, 9, 9, 3] image) => (float[n, 8, h, w1] y)
    <float[8, 3, 3, 3] w, float c255 = {255.0}>
    { t = Transpose <perm = [0, 3, 1, 2]> (image)  f = Div (t, c255)  y = Conv (f, w) }"""
    source, result = save(build(text), tmp_path / "model.onnx"), tmp_path / "small.onnx"
    bench, calibration = Benchmark(run=False), Calibration("none")
    for model, output in ((source, result), (result, tmp_path / "again.onnx")):
        compress(model, Options(Rank(2), precision=precision, calibration=calibration, benchmark=bench, output=output))
        made = ir.load(output)
        assert "Div" not in {node.op_type for node in made.graph}
        assert describe_inputs(made).only.takes_pixels


def test_unknown_layout_is_refused_by_name_with_both_readings() -> None:
    inputs = describe("float[n, h, w1, c] x", "y = Identity (x)")
    with pytest.raises(OptionError, match=r"h, w1, c\).*--layout nchw.*--layout nhwc"):
        _ = inputs.image
    chosen = describe("float[n, h, w1, c] x", "y = Identity (x)", InputOptions(layout="nhwc"))
    assert chosen.only.require_image().layout == "NHWC"


def test_networks_of_several_inputs_or_without_images_are_refused_with_the_remedy() -> None:
    two = describe("float[n, 3, h, w1] x, float[n, 3, h, w1] z", "s = Add (x, z) y = Conv (s, w)")
    with pytest.raises(OptionError, match=r"one input; the inputs of this one are x, z"):
        _ = two.only
    with pytest.raises(OptionError, match=r"input x \(n, t\) is not an image"):
        describe("float[n, t] x", "y = Identity (x)").only.require_image()


@pytest.mark.parametrize("text", ["1,3,224,224", "x=1,3,480,640", "a=b=1,2", "images:0=1,3,8,8"])
def test_shape_text_leads_back_to_the_value(text: str) -> None:
    assert show_shape(parse_shape(text)) == text


@given(st.text(max_size=12))
def test_any_shape_text_is_read_or_refused(text: str) -> None:
    try:
        shape = parse_shape(text)
    except ValueError:
        return
    assert parse_shape(show_shape(shape)) == shape


@pytest.mark.parametrize("text", ["", "x=", "=1,2", "1,,2", "a", "1,-2", "1.5", "x=1,b"])
def test_other_text_is_not_a_shape(text: str) -> None:
    with pytest.raises(ValueError, match="not a shape"):
        parse_shape(text)


def test_shape_options_are_checked() -> None:
    with pytest.raises(OptionError, match="no size is below 0"):
        InputOptions.of(1, -1)
    with pytest.raises(OptionError, match="elements"):
        InputOptions.of(1, 3, 100_000, 100_000)
    with pytest.raises(OptionError, match="twice"):
        InputOptions(shapes=(("x", (1,)), ("x", (2,))))


TWO = "float[b, 3, h, w1] left, float[b, 3, h, w1] right"
SUM = "s = Add (left, right) y = Conv (s, w)"


def test_one_symbol_has_one_size_in_all_inputs() -> None:
    for name in (None, "left", "right"):
        inputs = describe(TWO, SUM, InputOptions(shapes=((name, (2, 3, 96, 64)),)))
        assert inputs.completed().shapes == {"left": (2, 3, 96, 64), "right": (2, 3, 96, 64)}
        assert inputs.completed().notes == ()


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (("middle", (1, 3, 8, 8)), "there is no input middle; there are left, right"),
        (("left", (1, 4, 8, 8)), r"does not fit input left, which is \(b, 3, h, w1\)"),
        ((None, (1, 3, 8)), "does not fit input left"),
        ((None, (0, 3, 8, 8)), r"input left \(b, 3, h, w1\) holds no value at such a size"),
        ((None, (1, 3, 0, 8)), "holds no value at such a size"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(shape: tuple[str | None, tuple[int, ...]], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        describe(TWO, SUM, InputOptions(shapes=(shape,)))


def test_open_sizes_are_the_users_then_those_of_the_data_then_224_with_a_note() -> None:
    inputs = describe("float[n, h, w1, 3] x", f"{TO_NCHW} y = Conv (t, w)")
    assumed = inputs.completed()
    assert assumed.shapes == {"x": (1, 224, 224, 3)}
    assert "--shape x=1,224,224,3" in assumed.notes[0]
    assert "?" not in assumed.notes[0]
    by_data = inputs.completed({"x": np.zeros((5, 48, 64, 3), np.float32)})
    assert by_data.shapes == {"x": (1, 48, 64, 3)}
    assert by_data.notes == ()
    user = describe("float[n, h, w1, 3] x", f"{TO_NCHW} y = Conv (t, w)", InputOptions.of(2, 32, 32, 3))
    assert user.completed({"x": np.zeros((5, 32, 32, 3), np.float32)}).shapes == {"x": (2, 32, 32, 3)}


def test_sizes_called_by_a_question_mark_differ() -> None:
    """Paddle calls all open sizes so."""
    open_sizes = model("float[n, 3, h, w1] x", CONV)
    open_sizes.graph.inputs[0].shape = ir.Shape([-1, 3, "?", "?"])
    assert describe_inputs(open_sizes, InputOptions.of(1, 3, 48, 192)).shapes == {"x": (1, 3, 48, 192)}


WAVE = "d = Constant <value_float = 1.0> () y = Mul (x, d)"


@pytest.mark.parametrize(
    ("inputs", "shapes"),
    [
        ("float[n, t] x", {"x": (1, 16_384)}),
        ("float[n, 1, t] x", {"x": (1, 1, 16_384)}),
        ("float16[n, t, 2] x", {"x": (1, 16_384, 2)}),
        ("float[n, 80, t] x", {"x": (1, 80, 224)}),
        ("int64[n, t] x", {"x": (1, 224)}),
        ("float[n, 8, d, h, w1] x", {"x": (1, 8, 32, 32, 32)}),
        ("float[n, t] mask, float[n, 80, t] x", {"mask": (1, 224), "x": (1, 80, 224)}),
    ],
)
def test_open_sizes_are_those_of_what_the_input_looks_like(inputs: str, shapes: dict[str, tuple[int, ...]]) -> None:
    assumed = describe(inputs, WAVE).completed()
    assert assumed.shapes == shapes
    assert str(max(shapes["x"])) in assumed.notes[0]
    assert max(max(shape) for shape in describe(inputs, WAVE).completed(extent=64).shapes.values()) <= 80


@pytest.mark.parametrize("name", ["unk__6", "s0", "dynamic_axes_1", "dim_2"])
def test_names_that_an_exporter_counts_up_are_not_shown(name: str) -> None:
    assert describe(f"float[{name}, 3, h, w1] x", CONV).only.show() == "(any, 3, h, w1)"


def test_open_channels_are_those_of_the_conv() -> None:
    assert describe("float[n, c, h, w1] x", CONV).completed(extent=32).shapes == {"x": (1, 3, 32, 32)}


def test_weights_listed_as_inputs_are_not_fed() -> None:
    listed = model("float[1, 3, 8, 8] x", CONV)
    listed.graph.inputs.append(listed.graph.initializers["w"])
    assert [spec.name for spec in describe_inputs(listed).specs] == ["x"]


MIXED = "float[b, 3, h, w1] x, uint8[4] pixels, int64[2] size, bool[2] mask, float16[2] half"


def test_noise_fits_the_type_of_each_input() -> None:
    feeds = describe(MIXED, CONV).completed(extent=16).feeds()
    assert {name: (array.dtype.name, array.shape) for name, array in feeds.items()} == {
        "x": ("float32", (1, 3, 16, 16)), "pixels": ("uint8", (4,)), "size": ("int64", (2,)), "mask": ("bool", (2,)),
        "half": ("float16", (2,)),
    }  # fmt: skip
    again = describe(MIXED, CONV).completed(extent=16).feeds()
    assert all(np.array_equal(feeds[name], again[name]) for name in feeds)


def test_noise_for_pixels_covers_their_whole_range() -> None:
    body = "f = Cast <to=1> (x) y = Conv (f, w)"
    for dtype, low, high in (("uint8", 0, 255), ("int32", -128, 255), ("int8", -128, 127)):
        values = describe(f"{dtype}[n, 3, h, w1] x", body).completed(extent=64).feeds()["x"]
        assert (values.min(), values.max()) == (low, high)


def test_noise_cannot_stand_for_text_or_unknown_sizes() -> None:
    with pytest.raises(UnsupportedError, match=r"is string, which noise cannot stand for: give real data with --input"):
        describe("float[n, 3, h, w1] x, string[1] name", CONV).completed().feeds()
    with pytest.raises(UnsupportedError, match="is not known"):
        describe("float[n, 3, h, w1] x", CONV).feeds()


def test_file_of_inputs_gives_values_and_sizes(tmp_path: Path) -> None:
    size, left = np.array([64, 64]), np.ones((1, 3, 48, 64), np.float64)
    np.savez(tmp_path / "in.npz", size=size, left=left)
    inputs = describe(f"{TWO}, int64[2] size", SUM, InputOptions(file=tmp_path / "in.npz"))
    feeds = inputs.completed().feeds()
    assert feeds["size"].tolist() == [64, 64]
    assert feeds["left"].dtype == np.float32
    assert feeds["right"].shape == (1, 3, 48, 64)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"middle": np.zeros(2)}, "there is no input middle"),
        ({"size": np.zeros((2, 2))}, r"array size has shape \(2, 2\); the input is \(2\)"),
        ({"size": np.array([0.5, 1])}, "the input is int64, which cannot hold them"),
        ({"size": np.array(["a", "b"])}, "array size is <U1; the input is int64"),
        ({"size": np.array([np.nan, 1])}, "cannot hold them"),
        ({"size": np.array([1e30, 1])}, "cannot hold them"),
    ],
)
def test_file_of_inputs_that_does_not_fit_is_refused(
    tmp_path: Path, arrays: dict[str, np.ndarray], message: str
) -> None:
    np.savez(tmp_path / "in.npz", **arrays)
    with pytest.raises(LoadError, match=message):
        describe(f"{TWO}, int64[2] size", SUM, InputOptions(file=tmp_path / "in.npz"))


def test_single_array_serves_the_only_input(tmp_path: Path) -> None:
    np.save(tmp_path / "in.npy", np.zeros((1, 3, 8, 8), np.float32))
    options = InputOptions(file=tmp_path / "in.npy")
    assert describe("float[n, 3, h, w1] x", CONV, options).shapes == {"x": (1, 3, 8, 8)}
    with pytest.raises(LoadError, match="holds one array; the inputs are left, right"):
        describe(TWO, SUM, options)


def test_sequence_inputs_are_unsupported_by_name() -> None:
    text = '<ir_version: 8, opset_import: ["": 17]> g (seq(float[n]) x) => (int64 y) { y = SequenceLength (x) }'
    with pytest.raises(UnsupportedError, match="input x is a sequence"):
        describe_inputs(ir.serde.deserialize_model(build(text)))


def test_image_spec_of_a_module_is_nchw() -> None:
    spec = InputSpec.of_images((None, 3, 8, 6))
    assert (spec.layout, spec.channels, spec.size, spec.show()) == ("NCHW", 3, (8, 6), "(any, 3, 8, 6)")


@pytest.mark.parametrize(
    ("inputs", "outputs", "shapes"),
    [
        ("float[n, t] x, float[2, m, 128] h", "float[a, b, c] y", [(1, 16_384), (2, 1, 128)]),
        ("float[2, n, 128] h, float[n, t] x", "float[a, b, c] y", [(2, 1, 128), (1, 16_384)]),
        ("float[n, t] x, float[1, m, 64] h", "float[1, b, 64] y", [(1, 16_384), (1, 1, 64)]),
        ("float[n, t] x, float[1, m, 64] h", "float[1, b, 10] y", [(1, 224), (1, 224, 64)]),
        ("int64[n] count, float[1, t, 80] x", "float[a, b, c] y", [(1,), (1, 224, 80)]),
    ],
)
def test_state_of_a_recurrent_layer_has_as_many_samples_as_the_input(
    inputs: str, outputs: str, shapes: list[tuple[int, ...]]
) -> None:
    text = f'<ir_version: 8, opset_import: ["" : 17]> g ({inputs}) => ({outputs}) {{ y = Identity (x) }}'
    sized = describe_inputs(ir.serde.deserialize_model(build(text))).completed()
    assert list(sized.shapes.values()) == shapes
