"""What calibration images show of a result where nobody else judges it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from command import Command
from models import CONV_NET, build, run, save
from networks import as_samples, in_batches, make_images

from trp_export.calibration.held_out import split_samples
from trp_export.calibration.moments import load_moments
from trp_export.inputs.image_set import ImageSet
from trp_export.inputs.preprocessing import Preprocessing
from trp_export.inputs.samples import Batch
from trp_export.verify import compare_on_calibration_images
from trp_export.verify.calibration_images import Kind

IMAGES = make_images(40).inputs


@pytest.fixture
def model(tmp_path: Path) -> Path:
    np.save(tmp_path / "images.npy", IMAGES)
    return save(build(), tmp_path / "model.onnx")


def answers(model: Path, images: np.ndarray = IMAGES) -> np.ndarray:
    return run(onnx.load(model), {"image": images})[0].astype(np.float64)


def test_the_result_is_judged_on_held_out_images(trp: Command, model: Path, tmp_path: Path) -> None:
    images = ImageSet("made", IMAGES, None, Preprocessing(), 3, None, ())
    held_out = split_samples(as_samples(images)).held_out
    assert held_out is not None
    outcome = trp("model.onnx", "--rank", "1", "--calib", "images.npy", "--no-bench", "-o", "small.onnx")
    assert outcome.code == 0, outcome.err
    seen = json.loads((tmp_path / "small.json").read_text())["deviation"]["seen"]
    judged = held_out.batch(0, len(held_out)).arrays["x"]
    before, after = answers(model, judged), answers(tmp_path / "small.onnx", judged)
    same = float(np.mean(before.argmax(1) == after.argmax(1)))
    assert (seen["images"], seen["kind"], seen["top1"]) == (10, "held-out", pytest.approx(same))
    moved = np.linalg.norm(before - after) / np.linalg.norm(before)
    assert seen["distance"]["relative_l2"] == pytest.approx(moved, rel=1e-4)
    share = "all" if same == 1 else f"{same:.2%} of"
    assert f"its predicted class stays the same on {share} 10 held-out images." in outcome.out
    assert "relative L2 (10 held-out images)" in outcome.out
    assert "noise" not in outcome.out


@pytest.mark.parametrize(("kind", "moved"), [("held-out synthetic", 0.5), ("held-out", 1e-3)])
def test_each_synthetic_image_counts_alike_whatever_its_scale(kind: Kind, moved: float, tmp_path: Path) -> None:
    """The result adds 1 to an output that is 1 in one half of the images and 1,000 in the other."""
    text = '<ir_version: 8, opset_import: ["": 17]> net (float[N, 1, 2, 2] x) => (float[N, 1, 2, 2] y) {BODY}'
    for name, body in (("a", "y = Identity (x)"), ("b", "one = Constant <value_float = 1.0> () y = Add (x, one)")):
        onnx.save(onnx.parser.parse_model(text.replace("BODY", body)), tmp_path / name)
    images = np.ones((8, 1, 2, 2), np.float32) * np.where(np.arange(8) % 2, 1, 1000).reshape(8, 1, 1, 1)
    seen = compare_on_calibration_images(
        tmp_path / "a", tmp_path / "b", [Batch({"x": images.astype(np.float32)})], kind
    )
    assert seen is not None
    assert seen.distance.relative_l2 == pytest.approx(moved**0.5 if "synthetic" in kind else moved * 2**0.5, rel=0.01)
    assert seen.distance.max_abs == 1


def test_outputs_that_are_no_classes_move(trp: Command, tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", IMAGES)
    text = CONV_NET.replace("logits = Gemm <transB = 1> (g, fc__weight, fc__bias)", "logits = Relu (e)")
    text = text.replace("=> (float[N, 10] logits)", "=> (float[N, 16, 6, 6] logits)")
    text = text.replace(", float[10, 16] fc__weight, float[10] fc__bias", "")
    save(build(text), tmp_path / "model.onnx")
    outcome = trp("model.onnx", "--rank", "1", "--calib", "images.npy", "--no-bench", "-o", "small.onnx")
    assert outcome.code == 0, outcome.err
    assert "its outputs on 10 held-out images moved by" in outcome.out
    assert json.loads((tmp_path / "small.json").read_text())["deviation"]["seen"]["top1"] is None


def test_evaluation_images_replace_calibration_images_in_the_report(trp: Command, model: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "other.npy", make_images(16, seed=5).inputs)
    arguments = ("--rank", "1", "--calib", "images.npy", "--eval", "other.npy", "--no-bench", "--json")
    deviation = json.loads(trp("model.onnx", *arguments).out)["deviation"]
    assert deviation["seen"] is None
    assert deviation["score"]["images"] == 16


def test_of_many_images_some_from_all_over_are_taken(model: Path) -> None:
    images = make_images(1200).inputs
    seen = compare_on_calibration_images(
        model,
        model,
        in_batches(*(images[start : start + 50] for start in range(0, 1200, 50)), name="image"),
        "synthetic",
    )
    assert seen is not None
    assert (seen.images, seen.top1, seen.distance.relative_l2) == (250, 1.0, 0.0)
    assert seen.name == "250 synthetic images"
    assert seen.fitted == "the 250 synthetic images it was fitted to"
    one = compare_on_calibration_images(model, model, in_batches(images[:1], name="image"), "calibration")
    assert one is not None
    assert one.fitted == "the 1 image it was fitted to"


def test_a_network_that_takes_no_such_batch_is_not_judged(tmp_path: Path) -> None:
    text = CONV_NET.replace("g = Flatten (f)", "g = Reshape (f, one)").replace(
        "<float[16, 3", "<int64[2] one = {1, 16}, float[16, 3"
    )
    model = save(build(text), tmp_path / "model.onnx")
    assert compare_on_calibration_images(model, model, in_batches(IMAGES[:1], name="image"), "calibration") is not None
    assert compare_on_calibration_images(model, model, in_batches(IMAGES, name="image"), "calibration") is None


def test_moments_are_kept_of_a_dry_run_too(trp: Command, model: Path, tmp_path: Path) -> None:
    usual = ("model.onnx", "--rank", "1", "--calib", "images.npy", "--calib-stats")
    assert trp(*usual, "dry.npz", "--dry-run").code == 0
    assert trp(*usual, "whole.npz", "--no-bench").code == 0
    assert (tmp_path / "dry.npz").read_bytes() == (tmp_path / "whole.npz").read_bytes()
    assert load_moments(tmp_path / "dry.npz").keys() == {"conv1", "conv2", "fc"}


def test_where_moments_cannot_be_kept_nothing_is_written(refuses: Command, model: Path) -> None:
    error = refuses(7, "model.onnx", "--rank", "1", "--calib", "images.npy", "--no-bench", "--calib-stats", "/dev/full")
    assert "/dev/full cannot be written" in error


def test_outputs_that_vary_by_rounding_alone_are_not_measured_by_their_variance(trp: Command, tmp_path: Path) -> None:
    """What a layer gives for x and for -x cancels: the output is twice the bias of 1, whatever the factors are."""
    text = """<ir_version: 8, opset_import: ["": 17]> net (float[N, 3, 12, 12] image) => (float[N, 16, 12, 12] y)
    <float[16, 3, 3, 3] w> {
      minus = Neg (image)  a = Conv <pads = [1, 1, 1, 1]> (image, w)  b = Conv <pads = [1, 1, 1, 1]> (minus, w)
      one = Constant <value_float = 1.0> ()  c = Add (a, one)  d = Add (b, one)  y = Add (c, d)
    }"""
    save(build(text), tmp_path / "model.onnx")
    np.save(tmp_path / "images.npy", IMAGES)
    outcome = trp("model.onnx", "--rank", "1", "--calib", "images.npy", "--no-bench", "-o", "small.onnx")
    assert outcome.code == 0, outcome.err
    assert "moved by less than 0.01%" in outcome.out
    assert "of their variance" not in outcome.out + outcome.err
