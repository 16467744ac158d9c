"""Layers behind NonZero, as behind proposals of regions: the values decide how many rows they read."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
from command import Command
from models import save

NET = """<ir_version: 8, opset_import: ["": 17]> net (float[N, 3, 16, 16] x) => (float[R, 5] y)
<int64[1] one = {1}, float zero = {0}> {
    a = Conv <pads = [1, 1, 1, 1]> (x, w)  b = Relu (a)
    c = Conv <pads = [1, 1, 1, 1]> (b, v)  d = Relu (c)
    e = Conv (d, u)  f = Squeeze (e, one)  g = Greater (f, zero)  h = NonZero (g)
    i = Transpose (h)  j = Transpose <perm = [0, 2, 3, 1]> (d)  k = GatherND (j, i)
    l = MatMul (k, m)  n = Relu (l)  y = MatMul (n, o)
}"""
SHAPES = {"w": (16, 3, 3, 3), "v": (16, 16, 3, 3), "u": (1, 16, 1, 1), "m": (16, 32), "o": (32, 5)}


def test_the_float_model_is_written_where_answers_have_other_rows(trp: Command, tmp_path: Path) -> None:
    model, rng = onnx.parser.parse_model(NET), np.random.default_rng(0)
    for name, shape in SHAPES.items():
        weight = rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
        model.graph.initializer.append(onnx.numpy_helper.from_array(weight.astype(np.float32), name))
    save(model, tmp_path / "model.onnx")
    np.save(tmp_path / "images.npy", rng.standard_normal((32, 3, 16, 16)).astype(np.float32))
    words = ("model.onnx", "--energy", "0.8", "--no-bench", "--keep-slow-pairs", "--calib", "images.npy")
    outcome = trp(*words, "--precision", "int8")
    assert outcome.code == 10, outcome.err
    assert "other numbers of rows than the float model" in outcome.err
    document = json.loads((tmp_path / "model.trp.json").read_text())
    (variant,) = (one for one in document["variants"] if one["precision"] == "int8")
    assert variant["parity"]["divergence"] is None
    assert not any("nan" in note.split() for note in document["notes"])
