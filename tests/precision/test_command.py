"""The command with --precision: what is written, and what is delivered when it cannot be had."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from command import Command
from models import build, operators, run, save
from onnx import numpy_helper

from trp_export.errors import ShortfallError
from trp_export.precision import convert

UPSAMPLING = """<ir_version: 8, opset_import: ["" : 17]>
net (float[N, 3, 12, 12] image) => (float[N, 8, 24, 24] y)
<float[3, 8, 2, 2] up__weight>
{ a = ConvTranspose <strides = [2, 2]> (image, up__weight)
  y = Relu (a) }
"""

SQUARING = """<ir_version: 8, opset_import: ["" : 17]>
net (float[N, 3, 12, 12] image) => (float[N, 8, 12, 12] y)
<float[16, 3, 3, 3] one__weight, float[8, 16, 3, 3] two__weight, float up = {1000}>
{ a = Conv <pads = [1, 1, 1, 1]> (image, one__weight)  b = Mul (a, up)  square = Mul (b, b)  c = Sqrt (square)
  y = Conv <pads = [1, 1, 1, 1]> (c, two__weight) }
"""
HALF_WEIGHTS = """<ir_version: 8, opset_import: ["" : 17]>
net (float[N, 3, 12, 12] image) => (float[N, 64, 12, 12] y)
<float16[64, 3, 3, 3] one__weight, float16[64, 64, 3, 3] two__weight>
{ v = Cast <to = 1> (one__weight)  a = Conv <pads = [1, 1, 1, 1]> (image, v)  b = Relu (a)
  w = Cast <to = 1> (two__weight)  y = Conv <pads = [1, 1, 1, 1]> (b, w) }
"""
UNPACKED = """<ir_version: 8, opset_import: ["" : 17]>
net (float[N, 64, 12, 12] image) => (float[N, 64, 12, 12] y)
<int8[64, 64, 3, 3] one__weight, int8[64, 64, 3, 3] two__weight, float scale = {0.01}>
{ v = DequantizeLinear (one__weight, scale)  a = Conv <pads = [1, 1, 1, 1]> (image, v)  b = Relu (a)
  w = DequantizeLinear (two__weight, scale)  y = Conv <pads = [1, 1, 1, 1]> (b, w) }
"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save(build(), tmp_path / "model.onnx")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    path = tmp_path / "images.npy"
    np.save(path, np.random.default_rng(0).standard_normal((64, 3, 12, 12)).astype(np.float32))
    return path


QUIET = ("--rank", "2", "--no-bench", "-o", "small.onnx")


def variants(folder: Path) -> dict[str, dict[str, object]]:
    return {one["name"]: one for one in json.loads((folder / "small.json").read_text())["variants"]}


def test_int8_ships_and_the_report_says_how_it_answers(trp: Command, model: Path, images: Path, tmp_path: Path) -> None:
    outcome = trp(model, *QUIET, "--calib", images, "--precision", "int8")
    assert outcome.code == 0, outcome.err
    assert "QuantizeLinear" in operators(tmp_path / "small.onnx")
    found = variants(tmp_path)
    assert found["low rank, int8"]["shipped"]
    assert found["low rank, int8"]["parity"]["agreement"] > 0.9  # type: ignore[index]
    assert (
        json.loads((tmp_path / "small.json").read_text())["after"]["bytes"] == (tmp_path / "small.onnx").stat().st_size
    )
    inputs = {"image": np.load(images)[:8]}
    before, after = run(model, inputs)[0], run(tmp_path / "small.onnx", inputs)[0]
    assert np.linalg.norm(after - before) < 0.05 * np.linalg.norm(before)


def test_notes_on_the_outputs_of_the_float_model_say_so_where_int8_ships(
    trp: Command, model: Path, images: Path, tmp_path: Path
) -> None:
    command = (model, "--rank", "1", *QUIET[2:], "--calib", images, "--report", "small.html")
    told = {}
    for precision in ("fp32", "int8"):
        outcome = trp(*command, "--precision", precision)
        assert outcome.code == 0, outcome.err
        notes = json.loads((tmp_path / "small.json").read_text())["notes"]
        (told[precision],) = (note for note in notes if "held-out images the outputs differ" in note)
    parity = variants(tmp_path)["low rank, int8"]["parity"]
    moved = f"{100 * parity['divergence']:.2g} % of their variance"  # type: ignore[index]
    assert told["fp32"].endswith(" % of their variance")
    assert told["int8"].endswith(f"; this is before int8, which moves the outputs by {moved}")
    assert moved in (tmp_path / "small.html").read_text()


def test_without_a_rule_the_network_stays_and_is_rounded(
    trp: Command, model: Path, images: Path, tmp_path: Path
) -> None:
    outcome = trp(model, "--no-bench", "-o", "small.onnx", "--calib", images, "--precision", "int8")
    assert outcome.code == 0, outcome.err
    assert operators(tmp_path / "small.onnx").count("Conv") == 2
    assert variants(tmp_path)["int8 alone"]["shipped"]


def test_fp16_ships(trp: Command, model: Path, tmp_path: Path) -> None:
    assert trp(model, *QUIET, "--precision", "fp16").code == 0
    types = {tensor.data_type for tensor in onnx.load(tmp_path / "small.onnx").graph.initializer}
    assert onnx.TensorProto.FLOAT16 in types


@pytest.mark.parametrize("shape", [(), ("--shape", "1,3,32,32")])
def test_fp16_is_judged_at_a_size_at_which_the_network_runs(
    shape: tuple[str, ...], trp: Command, tmp_path: Path
) -> None:
    """The size is open, but what is added after the first conv has one."""
    text = """<ir_version: 8, opset_import: ["" : 17]> net (float[N, 3, H, W] image) => (float[N, 16, A, B] y)
    <float[16, 3, 3, 3] one__weight, float[16, 16, 3, 3] two__weight, float[1, 16, 32, 32] place>
    { a = Conv <pads = [1, 1, 1, 1]> (image, one__weight)  b = Add (a, place)  y = Conv (b, two__weight) }"""
    outcome = trp(save(build(text), tmp_path / "model.onnx"), *QUIET, "--precision", "fp16", *shape)
    assert outcome.code == 0, outcome.err
    assert variants(tmp_path)["low rank, fp16"]["shipped"]


@pytest.mark.parametrize(
    ("pixels", "words"),
    [
        (np.ones((64, 3, 12, 12), dtype=np.float32), "one colour"),
        (np.random.default_rng(0).standard_normal((6, 3, 12, 12)).astype(np.float32), "too few"),
    ],
)
def test_useless_images_leave_the_float_model(
    trp: Command, model: Path, tmp_path: Path, pixels: np.ndarray, words: str
) -> None:
    np.save(tmp_path / "useless.npy", pixels)
    delivers_floats(trp, tmp_path, words, model, *QUIET, "--calib", "useless.npy", "--precision", "int8")


def test_a_variant_that_disagrees_leaves_the_float_model(
    trp: Command, model: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convert, "LARGEST_DIVERGENCE", 1e-12)
    delivers_floats(trp, tmp_path, "diverge", model, *QUIET, "--calib", images, "--precision", "int8")


def test_a_model_that_8_bits_cannot_run_leaves_the_float_model(trp: Command, images: Path, tmp_path: Path) -> None:
    model = save(build(UPSAMPLING), tmp_path / "model.onnx")
    arguments = (model, "--energy", "0.9", "--no-bench", "-o", "small.onnx", "--calib", images, "--precision", "int8")
    delivers_floats(trp, tmp_path, "no layer", *arguments)


def delivers_floats(trp: Command, folder: Path, words: str, *arguments: object) -> None:
    """Exit code 10, a plain line, and a float model that runs, with nothing else beside it."""
    outcome = trp(*arguments)
    assert outcome.code == 10, outcome.err
    assert words in outcome.err
    assert ".." not in outcome.err + outcome.out
    assert "float model was written" in outcome.err
    assert "Traceback" not in outcome.err
    assert not {"QuantizeLinear", "DequantizeLinear"} & set(operators(folder / "small.onnx"))
    assert run(folder / "small.onnx", {"image": np.zeros((2, 3, 12, 12), dtype=np.float32)})
    assert {path.name for path in folder.iterdir() if path.name.startswith((".", "low-rank", "int8"))} == set()


def test_a_value_beyond_the_range_of_fp16_leaves_the_float_model(trp: Command, images: Path, tmp_path: Path) -> None:
    """Which the outputs do not show where onnxruntime computes in float32 between two casts."""
    model = save(build(SQUARING), tmp_path / "model.onnx")
    arguments = (model, *QUIET, "--precision", "fp16")
    delivers_floats(trp, tmp_path, "square reaches", *arguments)
    delivers_floats(trp, tmp_path, "square reaches", *arguments, "--calib", images)


def test_weights_behind_a_cast_run_in_8_bits(trp: Command, images: Path, tmp_path: Path) -> None:
    model = save(build(HALF_WEIGHTS), tmp_path / "model.onnx")
    outcome = trp(model, *QUIET, "--skip", "*", "--calib", images, "--precision", "int8")
    assert outcome.code == 0, outcome.err
    assert "Cast" not in operators(tmp_path / "small.onnx")
    assert variants(tmp_path)["int8 alone"]["shipped"]


def save_unpacked(folder: Path) -> Path:
    """A model that stores its weights as int8 and computes in float32; the second weight has rank 1."""
    proto = build(UNPACKED)
    generator = np.random.default_rng(0)
    kernels = {
        "one.weight": generator.integers(-9, 9, (64, 64, 3, 3), np.int8),
        "two.weight": np.multiply.outer(generator.integers(-9, 9, 64), generator.integers(-9, 9, (64, 3, 3))),
    }
    for tensor in proto.graph.initializer:
        if tensor.name in kernels:
            tensor.CopyFrom(numpy_helper.from_array(kernels[tensor.name].astype(np.int8), tensor.name))
    return save(proto, folder / "model.onnx")


def test_a_kept_int8_weight_does_not_grow(trp: Command, tmp_path: Path) -> None:
    model = save_unpacked(tmp_path)
    outcome = trp(model, "--rank", "2", "--skip", "Conv_0", "--no-bench", "-o", "small.onnx")
    assert outcome.code == 0, outcome.err
    assert operators(tmp_path / "small.onnx").count("DequantizeLinear") == 1
    assert (tmp_path / "small.onnx").stat().st_size < model.stat().st_size
    assert "times smaller" in outcome.out


def test_a_result_that_gains_nothing_says_so(trp: Command, tmp_path: Path) -> None:
    outcome = trp(save_unpacked(tmp_path), "--no-bench", "-o", "small.onnx", "--precision", "fp16")
    assert outcome.code == ShortfallError.exit_code
    assert "the file is larger than the original" in outcome.err
    assert "LARGER than the original" in outcome.out
    assert "Nothing was gained: keep the original." in " ".join(outcome.out.split())


def test_contradictions(refuses: Command, model: Path, images: Path) -> None:
    assert "--calib PATH" in refuses(2, model, "--rank", "2", "--precision", "int8")
    assert "--no-bench" in refuses(2, model, "--rank", "2", "--precision", "best", "--no-bench")
