"""PSNR and SSIM against their definitions, and through the command with and without targets."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from command import Command
from hypothesis import given
from hypothesis import strategies as st
from models import build, run, save
from onnx import numpy_helper
from PIL import Image

from trp_export.errors import LoadError
from trp_export.inputs.images import load_images
from trp_export.inputs.preprocessing import Preprocessing
from trp_export.metrics.pictures import LARGEST_PSNR, likeness, open_pictures, ssim
from trp_export.metrics.sample import Sample, Span

UPSCALER = """<ir_version: 8, opset_import: ["" : 17]>
net (float[N, 3, H, W] image) => (float[N, 3, HH, WW] large)
<float[12, 3, 3, 3] one__weight, float[12, 12, 3, 3] two__weight>
{
    a = Conv <pads = [1, 1, 1, 1]> (image, one__weight)
    b = Relu (a)
    c = Conv <pads = [PAD, PAD, PAD, PAD]> (b, two__weight)
    large = DepthToSpace <blocksize = 2> (c)
}
"""
ARGUMENTS = ("--rank", "1", "--no-bench", "--eval", "images", "--json")


@given(st.integers(0, 1000), st.floats(0.001, 0.2))
def test_psnr_is_that_of_the_mean_squared_error(seed: int, size: float) -> None:
    rng = np.random.default_rng(seed)
    truth = rng.random((20, 24, 3)).astype(np.float32)
    own = (truth + size * rng.standard_normal(truth.shape)).astype(np.float32)
    error = np.mean((own.astype(np.float64) - truth.astype(np.float64)) ** 2)
    assert likeness(own, truth)[0] == pytest.approx(10 * np.log10(1 / error))


def test_equal_pictures_are_perfect() -> None:
    picture = np.random.default_rng(0).random((20, 24, 3)).astype(np.float32)
    assert likeness(picture, picture) == (LARGEST_PSNR, pytest.approx(1))


def test_pictures_that_are_not_finite_are_worth_nothing() -> None:
    picture = np.zeros((20, 24, 3), dtype=np.float32)
    assert likeness(np.full_like(picture, np.nan), picture) == (0, 0)


def test_ssim_is_that_of_a_plain_loop() -> None:
    rng = np.random.default_rng(3)
    first, second = rng.random((15, 14, 1)), rng.random((15, 14, 1))
    line = np.exp(-((np.arange(11) - 5.0) ** 2) / (2 * 1.5**2))
    weights = np.outer(line, line) / line.sum() ** 2
    values = []
    for row in range(5):
        for column in range(4):
            a, b = (one[row : row + 11, column : column + 11, 0] for one in (first, second))
            mean_a, mean_b = (weights * a).sum(), (weights * b).sum()
            var_a, var_b = (weights * (a - mean_a) ** 2).sum(), (weights * (b - mean_b) ** 2).sum()
            both = (weights * (a - mean_a) * (b - mean_b)).sum()
            above = (2 * mean_a * mean_b + 1e-4) * (2 * both + 9e-4)
            values.append(above / ((mean_a**2 + mean_b**2 + 1e-4) * (var_a + var_b + 9e-4)))
    assert ssim(first, second) == pytest.approx(np.mean(values))


@given(st.integers(0, 1000))
def test_more_noise_is_less_like(seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth, noise = rng.random((16, 16, 1)), rng.standard_normal((16, 16, 1))
    few, many = (likeness(truth + times * noise, truth) for times in (0.02, 0.2))
    assert few[0] > many[0]
    assert few[1] > many[1]


def prepare(tmp_path: Path, pad: int) -> None:
    """Pictures of 12 x 10 pixels and targets of twice the size."""
    proto = build(UPSCALER.replace("PAD", str(pad)))
    last = next(tensor for tensor in proto.graph.initializer if tensor.name == "two.weight")
    last.CopyFrom(numpy_helper.from_array(0.1 * numpy_helper.to_array(last), last.name))  # White is at 1.
    save(proto, tmp_path / "model.onnx")
    rng = np.random.default_rng(1)
    for name, size in (("images", (10, 12, 3)), ("targets", (20, 24, 3))):
        (tmp_path / name).mkdir()
        for index in range(4):
            Image.fromarray(rng.integers(0, 256, size, dtype=np.uint8)).save(tmp_path / name / f"{index}.png")


def test_without_targets_the_originals_pictures_count(trp: Command, tmp_path: Path) -> None:
    prepare(tmp_path, pad=1)
    score = json.loads(trp("model.onnx", *ARGUMENTS).out)["deviation"]["score"]
    assert (score["metric"], score["unit"], score["before"], score["labelled"]) == ("psnr", "dB", LARGEST_PSNR, False)
    assert 0 < score["after"] < 99
    assert score["images"] == 4
    assert score["details"][0]["what"] == "SSIM to the original's output"


@pytest.mark.parametrize("metric", ["psnr", "outputs"])
def test_pictures_that_memory_does_not_hold_are_left_out(
    trp: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, metric: str
) -> None:
    prepare(tmp_path, pad=1)
    monkeypatch.setattr("trp_export.metrics.evaluator._MOST_IMAGES", 1)
    monkeypatch.setattr("trp_export.metrics.evaluator._KEPT_BYTES", 2 * 20 * 24 * 3 * 4)
    report = json.loads(trp("model.onnx", *ARGUMENTS, "--metric", metric).out)
    assert report["deviation"]["score"]["images"] == 2
    assert "images: 2 of 4 images are compared, for memory's sake" in report["notes"]
    labelled = json.loads(trp("model.onnx", *ARGUMENTS, "--labels", "targets").out)
    assert labelled["deviation"]["score"]["images"] == 4


@pytest.mark.parametrize("pad", [1, 0], ids=["of the same size", "with a border"])
@pytest.mark.parametrize("metric", ["auto", "ssim"])
def test_targets_lie_in_a_folder(trp: Command, tmp_path: Path, pad: int, metric: str) -> None:
    prepare(tmp_path, pad)
    outcome = trp("model.onnx", *ARGUMENTS, "--labels", "targets", "--metric", metric)
    assert outcome.code == 0, outcome.err
    score = json.loads(outcome.out)["deviation"]["score"]
    assert score["what"] == {"auto": "PSNR", "ssim": "SSIM"}[metric]
    assert score["labelled"]


def test_psnr_to_targets_is_that_of_the_files(trp: Command, tmp_path: Path) -> None:
    prepare(tmp_path, pad=1)
    worth = []
    for index in range(4):
        fed = np.asarray(Image.open(tmp_path / f"images/{index}.png"), dtype=np.float32).transpose(2, 0, 1) / 255
        own = np.clip(run(tmp_path / "model.onnx", {"image": fed[None]})[0][0], 0, 1)
        target = np.asarray(Image.open(tmp_path / f"targets/{index}.png"), dtype=np.float64).transpose(2, 0, 1) / 255
        worth.append(-10 * np.log10(np.mean((own - target) ** 2)))
    score = json.loads(trp("model.onnx", *ARGUMENTS, "--labels", "targets").out)["deviation"]["score"]
    assert score["before"] == pytest.approx(np.mean(worth), abs=1e-4)


def test_targets_of_another_scale_are_refused(refuses: Command, tmp_path: Path) -> None:
    prepare(tmp_path, pad=1)
    Image.fromarray(np.zeros((30, 36, 3), dtype=np.uint8)).save(tmp_path / "targets/2.png")
    message = refuses(3, "model.onnx", *ARGUMENTS, "--labels", "targets")
    assert "2.png has 36 x 30 pixels, and the network gives 24 x 20" in message
    (tmp_path / "targets/2.png").unlink()
    assert "1 of 4 images have no picture of that name" in refuses(3, "model.onnx", *ARGUMENTS, "--labels", "targets")


@pytest.fixture
def pictures(tmp_path: Path) -> np.ndarray:
    """Two photos in a folder, as a network takes them (2, 3, H, W) within 0..1."""
    (tmp_path / "images").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    for index, one in enumerate(pixels):
        Image.fromarray(one).save(tmp_path / f"images/{index}.png")
    return np.asarray(pixels.transpose(0, 3, 1, 2) / 255, dtype=np.float32)


@pytest.mark.parametrize("signed", [False, True])
def test_black_is_where_the_networks_values_begin(pictures: np.ndarray, tmp_path: Path, signed: bool) -> None:
    output = 2 * pictures - 1 if signed else pictures
    images = load_images(tmp_path / "images", Preprocessing())
    metric = open_pictures("psnr", images, Sample(("y",), (output,), 2, (16, 16), 3), tmp_path / "images")
    found = metric.predict([output], Span(0, (16, 16)))
    assert metric.score(found, found).before > 90


def test_targets_of_other_channels_are_refused(pictures: np.ndarray, tmp_path: Path) -> None:
    output = np.concatenate([pictures, pictures[:, :1]], axis=1)
    images = load_images(tmp_path / "images", Preprocessing())
    metric = open_pictures("psnr", images, Sample(("y",), (output,), 2, (16, 16), 3), tmp_path / "images")
    with pytest.raises(LoadError, match="has 3 channels, and the network's pictures have 4"):
        metric.predict([output], Span(0, (16, 16)))
