"""Networks that noise, two samples at once or usual sizes do not fit: they are exported all the same."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from command import Command
from models import build, run
from PIL import Image

HEAD = '<ir_version: 8, opset_import: ["" : 17]> net '
RULE = ("--rank", "3", "--no-bench")


def save(tmp_path: Path, text: str) -> None:
    onnx.save(build(HEAD + text), tmp_path / "m.onnx")


GAMMA = """(float[n, 3, 12, 12] x) => (float[n, 8, 12, 12] y) <float gamma = {0.45}, float[8, 3, 3, 3] w> {
  a = Pow (x, gamma)  y = Conv <pads = [1, 1, 1, 1]> (a, w)
}"""
SHIFTED = """(float[n, 3, 12, 12] x) => (float[n, 8, 12, 12] y) <float shift = {100}, float[8, 3, 3, 3] w> {
  a = Sub (x, shift)  b = Log (a)  y = Conv <pads = [1, 1, 1, 1]> (b, w)
}"""


def test_noise_is_positive_where_the_network_wants_that(trp: Command, tmp_path: Path) -> None:
    save(tmp_path, GAMMA)
    outcome = trp("m.onnx", *RULE)
    assert outcome.code == 0, outcome.err
    assert "each layer and the whole model" in outcome.out


def test_arrays_stand_in_where_noise_gives_nan(trp: Command, refuses: Command, tmp_path: Path) -> None:
    save(tmp_path, SHIFTED)
    assert "give some with --input FILE.npz" in refuses(3, "m.onnx", *RULE)
    np.savez(tmp_path / "in.npz", x=np.full((1, 3, 12, 12), 120, np.float32))
    outcome = trp("m.onnx", *RULE, "--input", "in.npz")
    assert outcome.code == 0, outcome.err


FROZEN = """(float[n, 3, 12, 12] x) => (float[m, 4] y) <float[8, 3, 3, 3] w, int64[2] s = {1, 1152}, float[1152, 4] v> {
  a = Conv <pads = [1, 1, 1, 1]> (x, w)  b = Relu (a)  c = Reshape (b, s)  y = MatMul (c, v)
}"""


@pytest.fixture
def photos(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for index in range(5):
        pixels = np.random.default_rng(index).integers(0, 256, (12, 12, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{index}.png")


@pytest.mark.usefixtures("photos")
@pytest.mark.parametrize("option", ["--calib", "--eval"])
def test_batch_size_that_only_the_file_leaves_open_is_one(trp: Command, tmp_path: Path, option: str) -> None:
    save(tmp_path, FROZEN)
    outcome = trp("m.onnx", *RULE, option, "photos")
    assert outcome.code == 0, outcome.err
    assert "the network runs on one sample at a time" in outcome.out


LINES = """(float[n, 3, 8, w] x) => (float[n, 8, 8, w] y) <float[8, 3, 3, 3] v> {
  y = Conv <pads = [1, 1, 1, 1]> (x, v)
}"""


@pytest.mark.usefixtures("photos")
def test_photos_are_resized_to_the_one_extent_that_is_fixed(trp: Command, tmp_path: Path) -> None:
    save(tmp_path, LINES)
    outcome = trp("m.onnx", *RULE, "--calib", "photos")
    assert outcome.code == 0, outcome.err
    assert "resized and cut to 8 x 224; --resize or --shape sets another" in outcome.out


CACHE = """(float[1, t, 8] x, float[1, past, 8] cache) => (float[1, total, 8] y) <float[8, 8] w> {
  a = MatMul (x, w)  y = Concat <axis = 1> (cache, a)
}"""


def test_input_may_be_empty_along_an_axis(trp: Command, tmp_path: Path) -> None:
    save(tmp_path, CACHE)
    feeds = {"x": np.ones((1, 2, 8), np.float32), "cache": np.zeros((1, 0, 8), np.float32)}
    np.savez(tmp_path / "first.npz", **feeds)
    for sizes in (["--input", "first.npz"], ["--shape", "x=1,2,8", "--shape", "cache=1,0,8"]):
        outcome = trp("m.onnx", *RULE, *sizes)
        assert outcome.code == 0, outcome.err
        assert re.search(r"MACs +128 ", outcome.out)
        assert run(tmp_path / "m.trp.onnx", feeds)[0].shape == (1, 2, 8)


PLUGIN = """(float[1, 3, 12, 12] x) => (float[n, 6] y) <float[8, 3, 3, 3] w> {
  a = Conv <pads = [1, 1, 1, 1]> (x, w)  y = plugin.NMS (a)
}"""


@pytest.mark.usefixtures("photos")
def test_operator_that_onnxruntime_lacks_is_refused_with_images_alone(
    trp: Command, refuses: Command, tmp_path: Path
) -> None:
    onnx.save(build(HEAD.replace("17]", '17, "plugin" : 1]') + PLUGIN), tmp_path / "m.onnx")
    assert "Leave --calib and --eval out" in refuses(4, "m.onnx", *RULE, "--calib", "photos")
    assert trp("m.onnx", *RULE).code == 0


BFLOAT16 = """(bfloat16[1, 3, 12, 12] x) => (bfloat16[1, 8, 12, 12] y) {
  a = Conv <pads = [1, 1, 1, 1]> (x, w)  y = Relu (a)
}"""


def test_weights_of_16_bits_that_onnxruntime_does_not_run_are_kept_with_the_reason(
    trp: Command, tmp_path: Path
) -> None:
    model = build(HEAD.replace("17]", "21]") + BFLOAT16)
    weight = onnx.helper.make_tensor("w", onnx.TensorProto.BFLOAT16, [8, 3, 3, 3], [0.5] * 216)
    model.graph.initializer.append(weight)
    onnx.save(model, tmp_path / "m.onnx")
    outcome = trp("m.onnx", *RULE)
    assert outcome.code == 0, outcome.err
    assert "its weight is bfloat16" in outcome.out
    assert "report it" not in outcome.out


PRODUCTS = """(float[1, 6, 8] x) => (float[1, 5, 8] y, float[1, 2, 6, 4] z) <float[5, 6] left, float[1, 2, 8, 4] many, int64[1] one = {1}> {
  y = MatMul (left, x)  b = Unsqueeze (x, one)  z = MatMul (b, many)
}"""  # noqa: E501


def test_products_that_are_kept_say_why_and_count_once(trp: Command, tmp_path: Path) -> None:
    save(tmp_path, PRODUCTS)
    out = trp("m.onnx", *RULE, "-v").out
    assert "its weight is the left factor of the product" in out
    assert "its weight has 4 axes" in out
    assert "kept, 62% of MACs" in out  # 2 x 6 x 8 x 4 of 624


DRAWS = """(float[n, 3, 12, 12] x) => (float[n, 64, 12, 12] y)
  <float[32, 3, 3, 3] v, float[64, 32, 3, 3] w, float half = {0.5}, bool on = {1}> {
  a = Conv <pads = [1, 1, 1, 1]> (x, v)  d = Dropout (a, half, on)  y = Conv <pads = [1, 1, 1, 1]> (d, w)
}"""


def test_draws_of_a_network_do_not_hide_what_a_layer_does(trp: Command, tmp_path: Path) -> None:
    """With dropout in training mode every rank seems to do the same damage; the budget still is all that is taken."""
    model = build(HEAD + DRAWS)
    for index, tensor in enumerate(model.graph.initializer):
        if tensor.name in "vw":
            array = np.random.default_rng(index).standard_normal(tuple(tensor.dims)).astype(np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    onnx.save(model, tmp_path / "m.onnx")
    np.savez(tmp_path / "images.npz", x=np.random.default_rng(0).standard_normal((24, 3, 12, 12)).astype(np.float32))
    outcome = trp("m.onnx", "--macs", "1.5", "--calib", "images.npz", "--no-bench", "-o", "out.onnx")
    assert outcome.code == 0, outcome.err
    report = json.loads((tmp_path / "out.json").read_text())
    assert 1.5 <= report["before"]["macs"] / report["after"]["macs"] < 1.8
