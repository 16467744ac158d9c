"""Layers in bodies are verified on the values that reach them, also in a Scan and in bodies inside bodies."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from models import build, save

from trp_export import Benchmark, Options, Rank, compress
from trp_export.options import Calibration
from trp_export.verify.evidence import NOISE
from trp_export.verify.layers import ALONE

HEAD = """<ir_version: 8, opset_import: ["" : 17]>
net (float[1, 8, 12, 12] x) => (float[{out}] y)
<float[8, 8, 3, 3] stem, float[8, 8, 3, 3] inner, float[8, 8, 3, 3] other{more}>
"""
STEM = "s = Conv <pads = [1, 1, 1, 1]> (x, stem)\n"

SCAN = (
    HEAD.replace("{out}", "3, 1, 8, 12, 12").replace("{more}", "")
    + "{"
    + STEM
    + """
    b = Relu (s)
    three = Concat <axis = 0> (b, s, b)
    axis = Constant <value = int64[1] {1}> ()
    scanned = Unsqueeze (three, axis)
    last, y = Scan <num_scan_inputs = 1, scan_input_directions = [1], body = step
      (float[1, 8, 12, 12] state, float[1, 8, 12, 12] one) => (float[1, 8, 12, 12] next, float[1, 8, 12, 12] made) {
        sum = Add (state, one)
        c = Conv <pads = [1, 1, 1, 1]> (sum, inner)
        d = Relu (c)
        e = Conv <pads = [1, 1, 1, 1]> (d, other)
        next = Identity (one)
        made = Identity (e)
      }> (s, scanned)
}
"""
)
BODY_OF_LOOP = """
    t = Constant <value = bool {1}> ()
    n = Constant <value = int64 {2}> ()
    zero = Constant <value = int64 {0}> ()
    y = Loop <body = step
      (int64 i, bool go, float[1, 8, 12, 12] state) => (bool on, float[1, 8, 12, 12] next) {
        on = Identity (go)
        is_first = Equal (i, zero)
        r = Relu (state)
        q = Mul (r, s)
        next = If (is_first) <
          then_branch = a () => (float[1, 8, 12, 12] p) {
            u = Conv <pads = [1, 1, 1, 1]> (q, inner)
            p = Relu (u)
          },
          else_branch = b () => (float[1, 8, 12, 12] v) {
            w = Conv <pads = [1, 1, 1, 1]> (r, other)
            v = Relu (w)
          }>
      }> (n, t, s)
}
"""
IF_IN_LOOP = HEAD.replace("{out}", "1, 8, 12, 12").replace("{more}", "") + "{" + STEM + BODY_OF_LOOP


@pytest.mark.parametrize(
    ("text", "reached", "alone"),
    [
        (SCAN, {"Conv_0", "Conv_6", "Conv_8"}, set()),
        (IF_IN_LOOP, {"Conv_0", "Conv_7", "Conv_9"}, set()),
        (IF_IN_LOOP.replace("int64 {2}", "int64 {1}"), {"Conv_0", "Conv_7"}, {"Conv_9"}),
    ],
    ids=["Scan", "If in Loop", "If in Loop of one iteration"],
)
def test_layers_in_bodies_are_verified_on_what_reaches_them(
    text: str, reached: set[str], alone: set[str], tmp_path: Path
) -> None:
    model = build(text)
    onnx.checker.check_model(model)
    report = compress(
        save(model, tmp_path / "model.onnx"),
        Options(
            rule=Rank(2),
            benchmark=Benchmark(run=False),
            output=tmp_path / "small.onnx",
            calibration=Calibration("none"),
        ),
    )
    assert report.deviation is not None
    by_inputs = {
        word: {layer.name for layer in report.deviation.layers if layer.inputs == (word,)} for word in (NOISE, ALONE)
    }
    assert by_inputs == {NOISE: reached, ALONE: alone}
    assert all(layer.excess < 0.5 for layer in report.deviation.layers)
