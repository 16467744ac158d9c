"""Photos of unlike sizes calibrate and judge a network whose sizes are open, each in its own size."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from command import Command
from models import build, run, save
from PIL import Image

from trp_export.calibration.answers import Answer, run_answers
from trp_export.inputs.calibration import open_calibration
from trp_export.inputs.description import NetworkInputs
from trp_export.inputs.preprocessing import Preprocessing, parse_resize
from trp_export.inputs.spec import InputSpec

ENLARGES = """<ir_version: 8, opset_import: ["" : 17]>
net (float[N, 3, H, W] x) => (float[N, 3, H2, W2] y)
<float[24, 3, 3, 3] one, float[24, 24, 3, 3] two, float[12, 24, 3, 3] three>
{
    a = Conv <pads = [1, 1, 1, 1]> (x, one)
    b = Relu (a)
    c = Conv <pads = [1, 1, 1, 1]> (b, two)
    d = Relu (c)
    e = Conv <pads = [1, 1, 1, 1]> (d, three)
    y = DepthToSpace <blocksize = 2> (e)
}
"""
OPEN = NetworkInputs((InputSpec.of_images((None, 3, None, None), "x"),))
SIZES = ((40, 52), (40, 52), (40, 52), (64, 48), (33, 70), (33, 70), *((30 + step, 41) for step in range(18)))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number, (height, width) in enumerate(SIZES):
        rough = rng.integers(0, 256, (height // 4, width // 4, 3), dtype=np.uint8)
        Image.fromarray(rough).resize((width, height)).save(folder / f"{number:02}.png")
    return folder


def test_batch_holds_samples_of_one_size(photos: Path) -> None:
    samples = open_calibration(photos, OPEN, Preprocessing(resize=parse_resize("multiple:1")))
    shapes = [batch.arrays["x"].shape for batch in samples.batches()]
    assert shapes[:3] == [(3, 3, 40, 52), (1, 3, 64, 48), (2, 3, 33, 70)]
    assert sum(shape[0] for shape in shapes) == len(SIZES)
    assert samples.largest.arrays["x"].shape == (1, 3, 64, 48)


def test_answers_of_unlike_sizes_are_rows_of_positions(photos: Path) -> None:
    samples = open_calibration(photos, OPEN, Preprocessing(resize=parse_resize("multiple:1")))
    model = build(ENLARGES)
    answers = run_answers(onnx_ir(model), [Answer("e")], list(samples.batches()))
    assert answers["e"].shape == (sum(height * width for height, width in SIZES), 12)


def onnx_ir(model: onnx.ModelProto) -> object:
    import onnx_ir as ir

    return ir.serde.deserialize_model(model)


@pytest.mark.parametrize("resize", ["multiple:1", "multiple:8", "32"])
def test_photos_of_unlike_sizes_calibrate_in_their_own_sizes(
    trp: Command, tmp_path: Path, photos: Path, resize: str
) -> None:
    model = build(ENLARGES)
    for tensor in model.graph.initializer:  # Weights of full rank, so that something is lost.
        weight = onnx.numpy_helper.to_array(tensor)
        noise = np.random.default_rng(0).standard_normal(weight.shape).astype(np.float32)
        tensor.CopyFrom(onnx.numpy_helper.from_array(weight + 0.1 * noise, tensor.name))
    save(model, tmp_path / "model.onnx")
    outcome = trp(
        "model.onnx", "--macs", "1.3", "--calib", "photos", "--resize", resize, "--eval", "photos", "--no-bench",
        "-o", "small.onnx",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    report = json.loads((tmp_path / "small.json").read_text())
    assert report["deviation"]["score"]["images"] == len(SIZES)
    assert "held-out images the outputs differ" in " ".join(report["notes"])
    assert "on 6 held-out" in " ".join(report["notes"])
    probe = {"x": np.random.default_rng(0).standard_normal((1, 3, 37, 51)).astype(np.float32)}
    wanted, made = run(model, probe)[0], run(onnx.load(tmp_path / "small.onnx"), probe)[0]
    assert wanted.shape == made.shape


@pytest.mark.slow
def test_default_for_unlike_sizes_says_what_it_does(trp: Command, tmp_path: Path, photos: Path) -> None:
    save(build(ENLARGES), tmp_path / "model.onnx")
    outcome = trp("model.onnx", "--macs", "1.3", "--calib", "photos", "--no-recover", "--no-bench", "-o", "small.onnx")
    assert outcome.code == 0, outcome.err
    assert "cut to 224 x 224; --resize multiple:1 keeps their sizes" in outcome.out.replace("\n", " ")


def test_tuning_asks_for_one_size(refuses: Command, tmp_path: Path, photos: Path) -> None:
    save(build(ENLARGES), tmp_path / "model.onnx")
    arguments = ("model.onnx", "--macs", "1.3", "--calib", "photos", "--resize", "32", "--tune", "2steps", "--no-bench")
    assert "--tune needs images of one size" in refuses(2, *arguments)
