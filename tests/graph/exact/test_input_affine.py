"""Scales and shifts are folded into the convs that read them, held against onnxruntime; or stay where they must."""

from __future__ import annotations

import onnx_ir as ir
import pytest
from models import build, noise, relative_l2, run

from trp_export.graph.exact.input_affine import fold_input_affine
from trp_export.graph.prepare import prepare, remove_unused

W = "float[8, 4, 3, 3] w, float[6, 4, 1, 1] u, float[8, 2, 3, 3] halves, float[4, 1, 3, 3] each, float[4, 8, 3, 3] t"
CONSTANTS = "float[4, 1, 1] c, float[1, 4, 1, 1] mean, float[1, 1, 1, 1] four, float one = {2.5}, float none = {0.0}"
CONV = "Conv <pads = [1, 1, 1, 1]>"
FOLDS = {
    "one number": f"a = Mul (x, one)  y = {CONV} (a, w)",
    "a number for each channel": f"a = Mul (c, x)  y = {CONV} (a, w)",
    "divided by channels": f"a = Div (x, c)  y = {CONV} (a, w)",
    "two groups": "a = Mul (x, c)  y = Conv <group = 2, pads = [1, 1, 1, 1]> (a, halves)",
    "each channel alone": "a = Mul (x, c)  y = Conv <group = 4, pads = [1, 1, 1, 1]> (a, each)",
    "a shift before a conv without padding": "a = Add (x, c)  y = Conv (a, w)",
    "a shift for all channels": "a = Sub (x, one)  y = Conv <group = 2, strides = [2, 2]> (a, halves, bias)",
    "subtracted from a number": "a = Sub (one, x)  y = Conv <group = 4> (a, each)",
    "two readers": f"a = Mul (x, c)  d = {CONV} (a, w)  e = Conv (a, u)  f = Conv (d, back)  g = Conv (e, forth)"
    "  y = Add (f, g)",
}
STAYS = {
    "a shift before a conv with padding": f"a = Add (x, c)  y = {CONV} (a, w)",
    "a shift before a conv that pads by itself": 'a = Add (x, c)  y = Conv <auto_pad = "SAME_UPPER"> (a, w)',
    "another reader": f"a = Mul (x, c)  d = Relu (a)  e = {CONV} (d, w)  f = {CONV} (a, w)  y = Add (e, f)",
    "an output": f"a = Mul (x, c)  y = {CONV} (a, w)",
    "divided by nothing": f"a = Div (x, none)  b = Abs (a)  d = Clip (b, none, one)  y = {CONV} (d, w)",
    "the weight serves two convs": f"a = Mul (x, c)  d = {CONV} (a, w)  e = {CONV} (x, w)  y = Add (d, e)",
    "grey spread over channels": f"g = ReduceMean <axes = [1]> (x)  a = Div (g, c)  y = {CONV} (a, w)",
    "grey spread, without padding": "g = ReduceMean <axes = [1]> (x)  a = Sub (g, c)  y = Conv (a, w)",
    "an axis more": "g = ReduceMean <axes = [0], keepdims = 0> (x)  a = Sub (g, mean)  y = Conv (a, w)",
    "an axis more for a number": "g = ReduceMean <axes = [0], keepdims = 0> (x)  a = Mul (g, four)  y = Conv (a, w)",
    "a transposed conv": "a = Mul (x, c)  y = ConvTranspose (a, t)",
}


def fold(body: str, outputs: str) -> tuple[int, list[str], float]:
    more = "float[5, 8, 1, 1] back, float[5, 6, 1, 1] forth, float[8] bias"
    proto = build(
        f'<ir_version: 8, opset_import: ["" : 17]>\nnet (float[N, 4, 9, 9] x) => ({outputs}) '
        f"<{W}, {CONSTANTS}, {more}> {{ {body} }}"
    )
    model = prepare(ir.serde.deserialize_model(proto))
    count = fold_input_affine(model)
    remove_unused(model)
    made = ir.serde.serialize_model(model)
    answers = zip(run(proto, noise(proto)), run(made, noise(proto)), strict=True)
    return count, [node.op_type for node in made.graph.node], max(relative_l2(*pair) for pair in answers)


@pytest.mark.parametrize("body", FOLDS.values(), ids=FOLDS)
def test_the_scale_goes_into_the_kernels(body: str) -> None:
    count, operators, distance = fold(body, "float[N, M, H, W] y")
    assert count == 1
    assert operators.count("Add") == (1 if "Add (f, g)" in body else 0)
    assert not {"Mul", "Div", "Sub"} & {*operators}
    assert distance < 1e-5


@pytest.mark.parametrize(("name", "body"), STAYS.items(), ids=STAYS)
def test_a_scale_that_others_need_stays(name: str, body: str) -> None:
    outputs = "float[N, M, H, W] y" + (", float[N, 4, 9, 9] a" if name == "an output" else "")
    count, _, distance = fold(body, outputs)
    assert count == 0
    assert distance < 1e-6
