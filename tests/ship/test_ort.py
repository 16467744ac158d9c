"""ORT format: written, loaded back and compared; if that fails, the bundle is written without it."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from command import Command
from models import build, noise, relative_l2, run, save
from onnx import helper

from trp_export.bench import Settings
from trp_export.bench.devices.arm import DEFAULT, guest_python, missing_arm, qemu_command
from trp_export.bench.devices.base import cached
from trp_export.options import Target
from trp_export.ship.ort import convert
from trp_export.ship.verify import verify_bundle

from .conftest import Made

SHAPES = {"image": (None, 3, 12, 12)}
NO_ARM = missing_arm(Settings())


@pytest.mark.parametrize("target", ["arm", "x86"])
def test_convert_writes_a_model_with_equal_outputs(target: Target, tmp_path: Path) -> None:
    model = save(build(), tmp_path / "model.onnx")
    ort, notes = convert(model, target, SHAPES)
    assert ort is not None
    assert (ort.target, ort.onnxruntime) == (target, onnxruntime.__version__)
    (wanted,), (got,) = (run(tmp_path / name, noise(build())) for name in ("model.onnx", "model.ort"))
    assert relative_l2(wanted, got) < 1e-5
    assert (tmp_path / "model.ort").read_bytes()[4:8] == b"ORTM"
    operators = (tmp_path / "required_operators.config").read_text()
    assert "Conv" in operators
    assert str(tmp_path) not in operators
    assert "#" not in operators
    assert "other versions may not open it" in notes[0]
    for provider in ("NNAPI", "CoreML"):
        assert provider in notes[1]
    assert {path.name for path in tmp_path.iterdir()} == {"model.onnx", "model.ort", "required_operators.config"}


@pytest.mark.slow
def test_convert_writes_no_x86_layout_for_arm(tmp_path: Path) -> None:
    """An x86 model may hold blocked convs, which no ARM processor runs."""
    made = {}
    for target in ("arm", "x86"):
        folder = tmp_path / target
        folder.mkdir()
        assert convert(save(build(), folder / "model.onnx"), target, SHAPES)[0] is not None  # type: ignore[arg-type]
        made[target] = (folder / "required_operators.config").read_text()
    assert "nchwc" not in made["arm"]


@pytest.mark.skipif(bool(NO_ARM), reason=f"arm is not set up: {NO_ARM}")
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_arm_model_runs_on_arm(resnet20: Made, tmp_path: Path) -> None:
    inputs = np.random.default_rng(0).standard_normal((2, 3, 32, 32)).astype(np.float32)
    np.save(tmp_path / "inputs.npy", inputs)
    program = (
        "import platform, numpy, onnxruntime; assert platform.machine() == 'aarch64'; "
        f"session = onnxruntime.InferenceSession('{resnet20.folder / 'model.ort'}'); "
        f"outputs = session.run(None, {{'input': numpy.load('{tmp_path / 'inputs.npy'}')}}); "
        f"numpy.save('{tmp_path / 'outputs.npy'}', outputs[0])"
    )
    argv = [*qemu_command(cached("arm"), DEFAULT, None), guest_python(cached("arm"), DEFAULT), "-c", program]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    (wanted,) = run(resnet20.folder / "model.onnx", {"input": inputs})
    assert relative_l2(wanted, np.load(tmp_path / "outputs.npy")) < 1e-5


def test_a_bundle_lists_the_ort_model(resnet20: Made) -> None:
    manifest = verify_bundle(resnet20.folder, resnet20.digest).manifest
    assert manifest.ort is not None
    assert {manifest.ort.model, manifest.ort.operators} <= set(manifest.files)
    assert manifest.ort.relative_l2 < 1e-5
    values = json.loads((resnet20.folder / "manifest.json").read_text())
    assert any("mobile use" in note for note in values["evidence"]["notes"])
    near = "equal to those" if manifest.ort.relative_l2 == 0 else f"within {manifest.ort.relative_l2:.1e} relative L2"
    assert any(near in note for note in values["evidence"]["notes"])
    assert "mobile use" in (resnet20.folder / "report.html").read_text()


def test_an_unknown_operator_becomes_a_note_and_the_bundle_is_written(trp: Command, tmp_path: Path) -> None:
    model = build()
    model.opset_import.append(helper.make_opsetid("com.example", 1))
    model.graph.node.append(helper.make_node("Sharpen", ["logits"], ["sharp"], domain="com.example"))
    model.graph.output[0].name = "sharp"
    save(model, tmp_path / "model.onnx")
    outcome = trp("model.onnx", "--rank", "2", "--no-bench", "--bundle", "app", "--ort", "x86")
    assert outcome.code == 0, outcome.err
    assert "no ORT format" in outcome.out
    assert verify_bundle(tmp_path / "app").manifest.ort is None
    assert not (tmp_path / "app" / "model.ort").exists()
    assert str(tmp_path) not in (tmp_path / "app" / "manifest.json").read_text()


def test_convert_stops_a_hanging_converter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trp_export.ship.ort._TIMEOUT_S", 0.01)
    ort, notes = convert(save(build(), tmp_path / "model.onnx"), "arm", SHAPES)
    assert ort is None
    assert "took longer" in notes[0]
    assert np.all([path.name == "model.onnx" for path in tmp_path.iterdir()])
