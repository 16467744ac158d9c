"""What an export must refuse or get right although the file is valid: cases that once went wrong."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from models import build, save

from trp_export import Benchmark, Energy, Macs, Options, Rank, Selection, compress
from trp_export.errors import OptionError
from trp_export.inputs.preprocessing import Preprocessing, parse_resize
from trp_export.load import load
from trp_export.network import analyse, measured_macs
from trp_export.options import Calibration, Images, LoadOptions, Tuning
from trp_export.planning.rules import LayerRule

TWICE = """<ir_version: 8, opset_import: ["" : 17]>
    net (float[1, 4, 12, 12] x) => (float[1, 8, 12, 12] y)
    <float[8, 4, 3, 3] w, float[8] g, float[8] s, float[8] m, float[8] v, float[8] h>
    { k = Identity (w)
      a = Conv <pads = [1, 1, 1, 1]> (x, k)  b = Conv <pads = [1, 1, 1, 1]> (x, k)
      c = BatchNormalization (a, g, s, m, v)  d = BatchNormalization (b, h, s, m, v)
      y = Add (c, d) }"""
CLIP = """<ir_version: 8, opset_import: ["" : 17]>
    net (float[1, 4, 12, 12] x) => (float[1, 8, 12, 12] y)
    <float[8, 4, 3, 3] w, float low = {0.0}>
    { a = Conv <pads = [1, 1, 1, 1]> (x, w)  high = Constant <value_float = inf> ()  y = Clip (a, low, high) }"""
OPEN = """<ir_version: 8, opset_import: ["" : 17]>
    net (float[N, 4, H, W] x) => (float[N, 8, P, Q] y)
    <float[8, 4, 3, 3] w>
    { y = Conv (x, w) }"""


def run(folder: Path, source: str | onnx.ModelProto, rule: LayerRule | None = None, **given: object) -> object:
    path = save(build(source) if isinstance(source, str) else source, folder / "model.onnx")
    given = {"calibration": Calibration("none"), **given}
    options = Options(rule or Rank(2), benchmark=Benchmark(run=False))
    return compress(path, replace(options, output=folder / "small.onnx", **given))  # type: ignore[arg-type]


VECTOR = """<ir_version: 8, opset_import: ["" : 17]>
    net (float[1, 3, 12, 12] x) => (float[5] y)
    <float[8, 3, 3, 3] w, float[8, 5] m>
    { a = Conv (x, w)  b = GlobalAveragePool (a)  c = Squeeze (b)  y = MatMul (c, m) }"""
ROWS = """<ir_version: 8, opset_import: ["" : 17]>
    net (float[1, 3, 6, 6] x) => (float[M, 40] y)
    <float[32, 3, 3, 3] w, float[32, 40] m, float[40] o, float limit = {9.0}>
    { a = Conv <pads = [1, 1, 1, 1]> (x, w)  b = Transpose <perm = [0, 2, 3, 1]> (a)
      s = Constant <value_ints = [36, 32]> ()  c = Reshape (b, s)
      t = Constant <value_ints = [36, 3]> ()  d = Reshape (x, t)  e = ReduceMax <axes = [1], keepdims = 0> (d)
      f = Greater (e, limit)  g = NonZero (f)  h = Squeeze (g)  i = Gather <axis = 0> (c, h)
      y = Gemm (i, m, o) }"""


TWO_LEVELS = """<ir_version: 8, opset_import: ["" : 17]>
    net (float[1, 3, 16, 16] x) => (float[1, 6, 16, 16] y, float[1, 6, 8, 8] z)
    <float[16, 3, 3, 3] w, float[6, 16, 1, 1] one, float[16, 16, 3, 3] v, float[6, 16, 1, 1] two,
     int64[2] parts = {2, 4}>
    { a = Conv <pads = [1, 1, 1, 1]> (x, w)  r = Relu (a)  c = Conv (r, one)
      d, e = Split <axis = 1> (c, parts)  s = Sigmoid (e)  y = Concat <axis = 1> (d, s)
      b = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (r, v)  q = Relu (b)  f = Conv (q, two)
      g, h = Split <axis = 1> (f, parts)  t = Sigmoid (h)  z = Concat <axis = 1> (g, t) }"""


def test_boxes_and_scores_of_one_conv_are_planned_and_tuned(tmp_path: Path) -> None:
    """An answer is a part of a value that the walk over the layers has passed."""
    images = np.random.default_rng(0).standard_normal((32, 3, 16, 16)).astype(np.float32)
    np.savez(tmp_path / "images.npz", images=images)
    calibration = Calibration(tmp_path / "images.npz", tune=Tuning(steps=3))
    report = run(tmp_path, TWO_LEVELS, Macs(1.2), calibration=calibration)
    assert report.deviation.rewrite.relative_l2 < 1e-5  # type: ignore[attr-defined]
    assert any("divergence" in note for note in report.notes)  # type: ignore[attr-defined]


SILENT_ON_NOISE = """<ir_version: 8, opset_import: ["" : 17]>
    net (float[1, 3, 12, 12] x) => (float[1, 8, 12, 12] y)
    <float[16, 3, 3, 3] w, float[8, 16, 3, 3] v, float[8] low>
    { a = Conv <pads = [1, 1, 1, 1]> (x, w)  r = Relu (a)  b = Conv <pads = [1, 1, 1, 1]> (r, v, low)
      y = Sigmoid (b) }"""


def test_damage_on_images_is_told_where_noise_shows_none(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = 200 * rng.standard_normal((16, 3, 12, 12)).astype(np.float32)
    np.savez(tmp_path / "images.npz", images=images)
    model = build(SILENT_ON_NOISE)
    for tensor in model.graph.initializer:
        array = np.full(8, -200.0) if tensor.name == "low" else 0.1 * rng.standard_normal(tensor.dims)
        tensor.CopyFrom(onnx.numpy_helper.from_array(array.astype(np.float32), tensor.name))
    given = Calibration(tmp_path / "images.npz"), Images(tmp_path / "images.npz")
    report = run(tmp_path, model, Macs(2), calibration=given[0], images=given[1])
    assert report.deviation.is_within_rounding  # type: ignore[attr-defined]
    assert any("held-out images the outputs differ" in note for note in report.notes)  # type: ignore[attr-defined]


DECIDES = """<ir_version: 8, opset_import: ["" : 17]>
    net (float[1, 4, 12, 12] x) => (float[1, 4, 12, 12] y)
    <float[4, 4, 3, 3] w, float[4, 4, 3, 3] v, float gain = {GAIN}, bool go = {1}>
    { a = Conv <pads = [1, 1, 1, 1]> (x, w)  b = Mul (a, gain)  m = ReduceMax <keepdims = 0> (b)
      times = Cast <to = 7> (m)
      y = Loop (times, go, a) <body = step (int64 i, bool on, float[1, 4, 12, 12] s) => (still, t) {
        still = Identity (on)  p = Conv <pads = [1, 1, 1, 1]> (s, v)  t = Tanh (p) }> }"""


def test_a_loop_counts_as_often_as_in_the_original(tmp_path: Path) -> None:
    """How often it runs follows from what the network answers, and a result answers otherwise."""
    networks = []
    for gain in ("2.0", "5.0"):
        (tmp_path / gain).mkdir()
        file = save(build(DECIDES.replace("GAIN", gain)), tmp_path / gain / "model.onnx")
        networks.append(analyse(load(file, LoadOptions()), tmp_path / gain))
    original, other = networks
    assert other.macs > original.macs  # type: ignore[operator]
    counted = measured_macs(other.model, other.described, tmp_path / "counted.onnx", original.shapes)
    assert counted == original.macs


def test_an_array_of_another_size_is_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "images.npz", images=np.ones((8, 12, 12, 3), np.uint8))
    preprocessing = Preprocessing(resize=parse_resize("12x16"))
    with pytest.raises(OptionError, match=r"an array of \(1, 3, 16, 12\) does not fit input x"):
        run(tmp_path, VECTOR, Macs(1.1), calibration=Calibration(tmp_path / "images.npz"), preprocessing=preprocessing)


def test_a_product_of_a_single_vector_is_calibrated(tmp_path: Path) -> None:
    images = np.random.default_rng(0).standard_normal((8, 3, 12, 12)).astype(np.float32)
    np.savez(tmp_path / "images.npz", images=images)
    report = run(tmp_path, VECTOR, Macs(1.1), calibration=Calibration(tmp_path / "images.npz"))
    assert report.deviation.rewrite.relative_l2 < 1e-5  # type: ignore[attr-defined]


def test_a_layer_without_rows_on_held_out_images_is_planned(tmp_path: Path) -> None:
    """Its rows are of objects that are found; two of eight images, which are held out, hold none."""
    images = np.random.default_rng(0).standard_normal((8, 3, 6, 6)).astype(np.float32)
    images[[0, 1, 2, 4, 5, 6], 0, :4] += 20
    np.savez(tmp_path / "images.npz", images=images)
    report = run(tmp_path, ROWS, Macs(1.1), calibration=Calibration(tmp_path / "images.npz"))
    assert report.deviation.rewrite.relative_l2 < 1e-5  # type: ignore[attr-defined]


def test_a_weight_read_twice_through_identity_is_not_folded_twice(tmp_path: Path) -> None:
    report = run(tmp_path, TWICE, Energy(1))
    assert report.deviation.rewrite.relative_l2 < 1e-5  # type: ignore[attr-defined]


def test_infinity_as_a_bound_is_accepted(tmp_path: Path) -> None:
    proto = build(CLIP.replace("value_float = inf", "value_float = 1.0"))
    for node in proto.graph.node:
        if node.op_type == "Constant":
            node.attribute[0].f = np.inf
    path = save(proto, tmp_path / "model.onnx")
    compress(
        path,
        Options(
            rule=Rank(2),
            benchmark=Benchmark(run=False),
            output=tmp_path / "small.onnx",
            calibration=Calibration("none"),
        ),
    )


def test_open_extents_are_verified_at_a_real_size(tmp_path: Path) -> None:
    report = run(tmp_path, OPEN)
    assert report.deviation.how == "each layer and the whole model"  # type: ignore[attr-defined]
    assert any("224 is used" in note for note in report.notes)  # type: ignore[attr-defined]


def test_a_report_over_the_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="would be written over"):
        run(tmp_path, OPEN, report=tmp_path / "model.onnx")


@pytest.mark.parametrize(
    ("text", "file"),
    [
        ("FOLDER/batches.py:make", "batches.py"),
        ("sequences:FOLDER/alphabet.txt", "alphabet.txt"),
        ("package.batches:make", "package/batches.py"),
    ],
)
def test_a_report_over_a_file_that_an_option_names_within_a_text_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, file: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text("read")
    text = text.replace("FOLDER", str(tmp_path))
    images = Images(tmp_path / "images", metric=text)
    calibration = Calibration("none" if text.startswith("sequences") else Path(text))
    for given in ({"images": images}, {"calibration": calibration}):
        if given != {"calibration": Calibration("none")}:
            with pytest.raises(OptionError, match="would be written over"):
                run(tmp_path, OPEN, report=tmp_path / file, **given)
    assert (tmp_path / file).read_text() == "read"


@pytest.mark.parametrize("selection", [Selection(skip=("convv*",)), Selection(only=("typo",))])
def test_a_pattern_that_matches_no_layer_is_refused(selection: Selection, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="matches no layer"):
        run(tmp_path, OPEN, selection=selection)
    assert not (tmp_path / "small.onnx").exists()
