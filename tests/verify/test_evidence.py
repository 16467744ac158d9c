"""A wrong rewrite is an error of the whole command, and then nothing is written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from command import Command, files
from models import build, save

import trp_export.steps.build as building
from trp_export import Benchmark, Options, Rank, compress
from trp_export.errors import VerifyError
from trp_export.graph import rewrite as rewriter
from trp_export.graph.weights import set_value
from trp_export.options import Calibration
from trp_export.verify.parts import find_differences

Fault = Callable[[ir.Model], None]


def conv(model: ir.Model, part: str) -> ir.Node:
    """The first or second conv of the pair that `conv2` became."""
    return next(iter(model.graph.initializers[f"conv2.{part}.weight"].consumers()))


def shift_pads(model: ir.Model) -> None:
    node = next(n for n in (conv(model, "reduce"), conv(model, "expand")) if any(n.attributes.get_ints("pads", [])))
    pads = list(node.attributes.get_ints("pads", []))
    half = len(pads) // 2
    first = next(index for index in range(half) if pads[index])
    pads[first], pads[first + half] = pads[first] - 1, pads[first + half] + 1
    node.attributes["pads"] = ir.AttrInt64s("pads", pads)


def swap_ranks(model: ir.Model) -> None:
    weight = conv(model, "reduce").inputs[1]
    set_value(weight, weight.const_value.numpy()[::-1])


def scale_factor(model: ir.Model) -> None:
    weight = conv(model, "expand").inputs[1]
    set_value(weight, weight.const_value.numpy() * 1.01)


def lose_bias(model: ir.Model) -> None:
    conv(model, "expand").resize_inputs(2)


def bias_on_both(model: ir.Model) -> None:
    reduce = conv(model, "reduce")
    bias = ir.Value(
        name="extra", const_value=ir.tensor(np.full(reduce.inputs[1].shape[0], 0.1, np.float32), name="extra")
    )
    model.graph.register_initializer(bias)
    reduce.resize_inputs(3)
    reduce.replace_input_with(2, bias)


@pytest.mark.parametrize("fault", [shift_pads, swap_ranks, scale_factor, lose_bias, bias_on_both])
@pytest.mark.parametrize("whole", [True, False], ids=["whole model", "layer by layer"])
def test_a_wrong_rewrite_is_caught(fault: Fault, whole: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(model: ir.Model, *rest: Any) -> rewriter.WeightNames:
        names = rewriter.rewrite(model, *rest)
        fault(model)
        return names

    monkeypatch.setattr(building, "rewrite", broken)
    proto = build()
    if not whole:
        proto.graph.node[-1].domain = "far"
        proto.opset_import.add(domain="far", version=1)
    save(proto, tmp_path / "model.onnx")
    options = Options(
        rule=Rank(2), benchmark=Benchmark(run=False), output=tmp_path / "small.onnx", calibration=Calibration("none")
    )
    with pytest.raises(VerifyError, match="Nothing was written"):
        compress(tmp_path / "model.onnx", options)
    assert files(tmp_path) == {"model.onnx"}


def test_batch_norm_folded_wrongly_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forget(model: ir.Model) -> dict[str, int]:
        norms = [node for node in model.graph.all_nodes() if node.op_type == "BatchNormalization"]
        for norm in norms:
            norm.outputs[0].replace_all_uses_with(norm.inputs[0])
        return {}

    monkeypatch.setattr(building, "fold_all", forget)
    save(build(), tmp_path / "model.onnx")
    options = Options(
        rule=Rank(2), benchmark=Benchmark(run=False), output=tmp_path / "small.onnx", calibration=Calibration("none")
    )
    with pytest.raises(VerifyError, match="conv1: its output in the result"):
        compress(tmp_path / "model.onnx", options)
    assert files(tmp_path) == {"model.onnx"}


def test_truncation_is_told_apart_from_a_wrong_rewrite(tmp_path: Path) -> None:
    save(build(), tmp_path / "model.onnx")
    options = Options(
        rule=Rank(1), benchmark=Benchmark(run=False), output=tmp_path / "small.onnx", calibration=Calibration("none")
    )
    deviation = compress(tmp_path / "model.onnx", options).deviation
    assert deviation is not None
    assert deviation.truncation is not None
    assert deviation.rewrite.relative_l2 < 1e-5 < 1e-2 < deviation.truncation.relative_l2
    assert deviation.how == "each layer and the whole model"
    assert deviation.score is None


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ("net (float[N, 4, H, W] x) => (float[N, 8, H, W] y) { a = Conv (x, w)  y = Reshape (a, s) }", "--shape"),
        ("n (float[1, 4, 9, 9] x, int64[4] z) => (float[N, 8, 5, 5] y) { a = Conv (x, w)  y = Reshape (a, z) }", None),
    ],
    ids=["sizes left open", "whole numbers that steer"],
)  # fmt: skip
def test_a_model_that_does_not_run_on_noise_names_the_remedy(
    text: str, remedy: str | None, tmp_path: Path, refuses: Command
) -> None:
    """Shapes are blamed only where the file leaves them open and onnxruntime's message is about them."""
    weights = " <float[8, 4, 3, 3] w, int64[4] s = {1, 8, 5, 5}>"
    head, _, body = text.partition(" {")
    path = save(build(f'<ir_version: 8, opset_import: ["" : 17]> {head}{weights} {{{body}'), tmp_path / "model.onnx")
    message = refuses(2, path, "--rank", "2", "--no-bench", "-o", "small.onnx")
    assert "onnxruntime does not run the original on noise" in message
    assert "--input FILE.npz" in message
    assert ("--shape" in message) == (remedy is not None)


@pytest.mark.parametrize("steps", ["s = Mul (b, b)", "s = Relu (b)"])
def test_scales_that_simplification_moves_into_either_neighbour_are_no_fault(tmp_path: Path, steps: str) -> None:
    """onnxsim fuses the first product into the conv before it, and the second into the conv after it."""
    text = f"""<ir_version: 8, opset_import: ["" : 17]> net (float[1, 3, 12, 12] x) => (float[1, 8, 12, 12] y)
    <float up = {{1000}}, float down = {{0.001}}, float[16, 3, 3, 3] w, float[8, 16, 3, 3] v> {{
      a = Conv <pads = [1, 1, 1, 1]> (x, w)  b = Mul (a, up)  {steps}  c = Mul (s, down)
      y = Conv <pads = [1, 1, 1, 1]> (c, v) }}"""
    model = save(build(text), tmp_path / "model.onnx")
    report = compress(
        model,
        Options(
            Rank(2), benchmark=Benchmark(run=False), output=tmp_path / "small.onnx", calibration=Calibration("none")
        ),
    )
    assert report.deviation is not None
    assert report.deviation.rewrite.relative_l2 < 1e-5


def test_scale_that_goes_into_the_layer_after_it_leaves_the_shift_before_it_alone(tmp_path: Path) -> None:
    """Normalisation inside a network: the shift stays, since the conv pads, and the scale goes into the conv."""
    text = """<ir_version: 8, opset_import: ["" : 17]> net (float[1, 3, 12, 12] x) => (float[1, 8, 12, 12] y)
    <float[3, 1, 1] mean, float[3, 1, 1] std = {58, 57, 56}, float[8, 3, 3, 3] w> {
      a = Sub (x, mean)  b = Div (a, std)  y = Conv <pads = [1, 1, 1, 1]> (b, w) }"""
    model = save(build(text), tmp_path / "model.onnx")
    report = compress(
        model,
        Options(
            Rank(2), calibration=Calibration("none"), benchmark=Benchmark(run=False), output=tmp_path / "small.onnx"
        ),
    )
    assert report.deviation is not None
    assert report.deviation.rewrite.relative_l2 < 1e-5


def test_output_of_a_layer_stands_for_the_last_of_what_was_fused_into_it() -> None:
    """Also where the exporter wrote an Identity behind each, and the name of the layer's output stays."""
    head = '<ir_version: 8, opset_import: ["" : 17]> net (float[1, 3, 8, 8] x) => (float[1, 4, 8, 8] y)\n'
    weights = "<float[4, 3, 1, 1] w, float[4, 4, 1, 1] v, float[1, 4, 1, 1] b, float[1] s, float[1] t> {\n"
    before = "c = Conv (x, w)  a = Add (c, b)  i = Identity (a)  m = Mul (s, i)  j = Identity (m)  "
    wanted, got = (
        ir.serde.deserialize_model(build(head + weights + body))
        for body in (
            before + "d = Add (j, t)  k = Identity (d)  h = Relu (k)  y = Conv (h, v) }",
            "c = Conv (x, w)  d = Add (c, t)  h = Relu (d)  y = Conv (h, v) }",
        )
    )
    got.graph.initializers["w"].const_value = ir.tensor(np.full((4, 3, 1, 1), 2, np.float32), name="w")
    names = {value.name: other.name for value, other in find_differences(wanted, got).shared.items()}
    assert names == {"x": "x", "m": "c", "d": "d", "h": "h", "y": "y"}


def test_sums_are_not_taken_for_fused_into_nodes_that_hold_no_weights() -> None:
    """Index arithmetic that simplification rewrites stays one part: the sum does not become the value before it."""
    head = '<ir_version: 8, opset_import: ["" : 17]> net (int64[1] k, int64[1, 4] x) => (int64[1, 4] y)\n'
    constants = "<int64[1] axis = {0}, int64[4] steps = {0, 1, 2, 3}, int64[1, 4] row = {0, 1, 2, 3}> {\n"
    before = "i = Unsqueeze (k, axis)  m = Add (i, steps)  y = Add (m, x) }"
    after = "i = Unsqueeze (k, axis)  a = Sub (x, i)  n = Neg (a)  y = Where (n, x, row) }"
    wanted, got = (
        ir.serde.deserialize_model(onnx.parser.parse_model(head + constants + body)) for body in (before, after)
    )
    names = {value.name: other.name for value, other in find_differences(wanted, got).shared.items()}
    assert names["i"] == "i"
    assert "m" not in names
