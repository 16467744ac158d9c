"""`--bundle DIR`: what it contains, that it is reproducible, and that it is written completely or not at all."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from command import Command, files
from models import build, noise, relative_l2, run, save
from PIL import Image

from trp_export.ship.verify import verify_bundle

from .conftest import Made, make_resnet20

RULE = ("--rank", "2", "--no-bench")
PARTS = {"manifest.json", "model.onnx", "report.html", "README.md", "load.py", "load.mjs", "Load.kt"}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    made = build()
    made.metadata_props.add(key="license", value="Apache-2.0")
    return save(made, tmp_path / "model.onnx")


def test_export_writes_only_the_bundle_and_prints_its_digest(trp: Command, model: Path, tmp_path: Path) -> None:
    outcome = trp("model.onnx", *RULE, "--bundle", "app")
    assert outcome.code == 0, outcome.err
    assert files(tmp_path) == {"model.onnx", "app", *(f"app/{name}" for name in PARTS)}
    digest = verify_bundle(tmp_path / "app").digest
    assert f"digest {digest}" in outcome.out.splitlines()
    assert outcome.err.splitlines() == ["wrote app"]
    (wanted,), (got,) = run(model, noise(build())), run(tmp_path / "app" / "model.onnx", noise(build()))
    assert relative_l2(wanted, got) < 1e-5


def test_the_manifest_describes_the_model(trp: Command, model: Path, tmp_path: Path) -> None:
    mean = ("--mean", "0.1,0.2,0.3", "--std", "0.5")
    assert trp("model.onnx", *RULE, *mean, "--bundle", "app").code == 0
    values = json.loads((tmp_path / "app" / "manifest.json").read_text())
    assert values["inputs"] == [{"name": "image", "shape": [None, 3, 12, 12], "type": "float32"}]
    assert values["outputs"] == [{"name": "logits", "shape": [None, 10], "type": "float32"}]
    assert (values["precision"], values["opset"], values["classes"]) == ("fp32", {"": 17}, None)
    steps = values["preprocessing"]
    assert (steps["mean"], steps["std"]) == ([0.1, 0.2, 0.3], [0.5, 0.5, 0.5])
    assert (steps["resize"], steps["crop"]) == ("cover", [12, 12])
    assert values["provenance"]["licence"] == "Apache-2.0"
    assert values["provenance"]["source"]["files"]["model.onnx"]["bytes"] == model.stat().st_size
    assert values["evidence"]["parity"]["rewrite"]["relative_l2"] < 1e-5
    assert values["evidence"]["latency"] is None


def test_the_manifest_takes_classes_from_the_images(trp: Command, model: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for number in range(10):
        folder = tmp_path / "photos" / f"class{number}"
        folder.mkdir(parents=True)
        Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(folder / "one.png")
    given = ("--eval", "photos", "--resize", "14", "--crop", "12")
    assert trp("model.onnx", *RULE, *given, "--bundle", "app").code == 0
    values = json.loads((tmp_path / "app" / "manifest.json").read_text())
    assert values["classes"] == [f"class{number}" for number in range(10)]
    assert (values["preprocessing"]["resize"], values["preprocessing"]["crop"]) == (14, [12, 12])
    assert values["preprocessing"]["mean"] == [0.0, 0.0, 0.0]
    assert values["evidence"]["accuracy"]["images"] == 10


def test_the_plan_in_a_manifest_can_be_replayed(trp: Command, model: Path, tmp_path: Path) -> None:
    assert trp("model.onnx", "--macs", "1.5", "--no-bench", "--bundle", "app").code == 0
    assert trp("model.onnx", "--plan", "app/manifest.json", "--no-bench", "--bundle", "again").code == 0
    first, second = (tmp_path / name / "model.onnx" for name in ("app", "again"))
    for one, two in zip(onnx.load(first).graph.initializer, onnx.load(second).graph.initializer, strict=True):
        assert one == two


def test_the_same_input_gives_the_same_bundle(trp: Command, model: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    assert trp("model.onnx", *RULE, "--bundle", "app").code == 0
    assert trp(model, *RULE, "--bundle", tmp_path / "elsewhere" / "other").code == 0
    for name in PARTS:
        assert (tmp_path / "app" / name).read_bytes() == (tmp_path / "elsewhere" / "other" / name).read_bytes(), name


def test_the_same_images_give_the_same_bundle_in_int8(trp: Command, model: Path, tmp_path: Path) -> None:
    images = np.random.default_rng(0).standard_normal((64, 3, 12, 12)).astype(np.float32)
    np.save(tmp_path / "images.npy", images)
    shown = ("--macs", "1.5", "--calib", "images.npy", "--precision", "int8", "--no-bench")
    for name in ("app", "again"):
        outcome = trp("model.onnx", *shown, "--bundle", name)
        assert outcome.code == 0, outcome.err
    assert json.loads((tmp_path / "app" / "manifest.json").read_text())["precision"] == "int8"
    assert differing(tmp_path / "app", tmp_path / "again") == []


@pytest.mark.slow
def test_the_same_checkpoint_gives_the_same_bundle(resnet20: Made, tmp_path: Path) -> None:
    """All but the ORT file: onnxruntime lists the operators in it in an order of its own."""
    again = make_resnet20(tmp_path / "elsewhere")
    assert set(differing(again.folder, resnet20.folder)) <= {"model.ort", "manifest.json"}
    one, other = (json.loads((made.folder / "manifest.json").read_text()) for made in (again, resnet20))
    assert one["files"].pop("model.ort")["bytes"] == other["files"].pop("model.ort")["bytes"]
    assert one == other


def test_the_manifest_takes_the_licence_from_the_checkpoint(resnet20: Made) -> None:
    values = json.loads((resnet20.folder / "manifest.json").read_text())
    assert values["provenance"]["licence"] == "BSD-2-Clause, Copyright (c) 2018, Yerlan Idelbayev"
    named = {entry.key: entry.value for entry in onnx.load(resnet20.folder / "model.onnx").metadata_props}
    assert named["licence"] == values["provenance"]["licence"]
    assert "- licence: BSD-2-Clause" in (resnet20.folder / "README.md").read_text()


def test_a_long_licence_is_shortened(trp: Command, tmp_path: Path) -> None:
    """Texts in a manifest are bounded, and some models hold the whole text of a licence."""
    made = build()
    made.metadata_props.add(key="licence", value="Permission is hereby granted. " * 1000)
    save(made, tmp_path / "model.onnx")
    assert trp("model.onnx", *RULE, "--bundle", "app").code == 0
    assert verify_bundle(tmp_path / "app").manifest.provenance["licence"].startswith("Permission")


@pytest.mark.parametrize("kind", ["foreign", "spoilt", "file", "link", "cwd"])
def test_export_replaces_only_an_intact_bundle(
    refuses: Command, trp: Command, model: Path, tmp_path: Path, kind: str
) -> None:
    place = tmp_path / "app"
    if kind == "foreign":
        place.mkdir()
        (place / "thesis.txt").write_text("years of work")
    elif kind == "spoilt":
        assert trp("model.onnx", *RULE, "--bundle", "app").code == 0
        (place / "notes.txt").write_text("added by hand")
    elif kind == "file":
        place.write_text("a file")
    elif kind == "link":
        (tmp_path / "folder").mkdir()
        place.symlink_to(tmp_path / "folder")
    before = content(tmp_path)
    assert "--bundle" in refuses(7, "model.onnx", *RULE, "--bundle", "." if kind == "cwd" else "app")
    assert content(tmp_path) == before


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def differing(one: Path, other: Path) -> list[str]:
    """The files that the two folders do not share."""
    left, right = content(one), content(other)
    return sorted(name for name in left | right if left.get(name) != right.get(name))


def test_export_replaces_an_older_bundle_and_an_empty_folder(trp: Command, model: Path, tmp_path: Path) -> None:
    (tmp_path / "app").mkdir()
    assert trp("model.onnx", *RULE, "--bundle", "app").code == 0
    first = verify_bundle(tmp_path / "app").digest
    assert trp("model.onnx", "--rank", "1", "--no-bench", "--bundle", "app").code == 0
    assert verify_bundle(tmp_path / "app").digest != first
    assert files(tmp_path) == {"model.onnx", "app", *(f"app/{name}" for name in PARTS)}


def test_a_failed_export_keeps_the_older_bundle(trp: Command, model: Path, tmp_path: Path) -> None:
    assert trp("model.onnx", *RULE, "--bundle", "app").code == 0
    before = content(tmp_path)
    assert trp("model.onnx", "--energy", "2", "--bundle", "app").code == 2
    assert trp("model.onnx", "--macs", "1e9", "--no-bench", "--bundle", "app").code == 2
    assert content(tmp_path) == before


def test_a_failed_last_rename_restores_the_older_bundle(
    trp: Command, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert trp("model.onnx", *RULE, "--bundle", "app").code == 0
    before, rename = content(tmp_path), Path.rename

    def fail(self: Path, target: Path) -> Path:
        if self.name == "bundle":
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    assert trp("model.onnx", *RULE, "--bundle", "app").code == 7
    monkeypatch.undo()
    assert content(tmp_path) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["model.onnx", *RULE, "--bundle", "app", "-o", "small.onnx"], "leave --output and --report out"),
        (["model.onnx", *RULE, "--bundle", "app", "--report", "page.html"], "leave --output and --report out"),
        (["model.onnx", *RULE, "--ort", "arm"], "--bundle"),
        (["model.onnx", *RULE, "--bundle", "app", "--ort", "mips"], "is not one of"),
    ],
)
def test_contradicting_options_are_refused(refuses: Command, model: Path, arguments: list[str], message: str) -> None:
    assert message in refuses(2, *arguments)


def test_export_never_overwrites_its_input(refuses: Command, trp: Command, model: Path, tmp_path: Path) -> None:
    assert trp("model.onnx", *RULE, "--bundle", "app").code == 0
    assert "lies in the bundle" in refuses(2, "app/model.onnx", *RULE, "--bundle", "app")


def test_a_missing_parent_folder_is_refused(refuses: Command, model: Path) -> None:
    assert "there is no folder nowhere; make it" in refuses(7, "model.onnx", *RULE, "--bundle", "nowhere/app")


def test_a_full_disk_is_reported(refuses: Command, model: Path, small_disk: Path) -> None:
    assert "No space left" in refuses(7, "model.onnx", *RULE, "--bundle", "small/app")


def test_an_interrupted_export_leaves_nothing(tmp_path: Path) -> None:
    save(build(), tmp_path / "model.onnx")
    command = [
        sys.executable,
        "-m",
        "trp_export.cli.export",
        "model.onnx",
        "--rank",
        "2",
        "--calib",
        "none",
        "--budget",
        "60",
        "--bundle",
        "app",
    ]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and files(tmp_path) == {"model.onnx"}:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.splitlines()[-1] == "interrupted; nothing was written."
    assert files(tmp_path) == {"model.onnx"}


def test_the_manifest_describes_inputs_with_channels_last(trp: Command, tmp_path: Path) -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]> g (float[n, 16, 16, 3] image) => (float[n, 4] y) {
        x = Transpose <perm=[0,3,1,2]> (image)  a = Conv <pads=[1,1,1,1]> (x, w)  b = GlobalAveragePool (a)
        y = Flatten (b) }"""
    )
    kernel = np.random.default_rng(0).standard_normal((4, 3, 3, 3)).astype(np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(kernel, "w"))
    save(model, tmp_path / "model.onnx")
    outcome = trp("model.onnx", *RULE, "--colour", "bgr", "--resize", "letterbox:16x16:114", "--bundle", "app")
    assert outcome.code == 0, outcome.err
    steps = json.loads((tmp_path / "app" / "manifest.json").read_text())["preprocessing"]
    assert (steps["layout"], steps["channels"], steps["resize"]) == ("NHWC", "BGR", "letterbox:16x16:114")
    assert "blue, green, red" in (tmp_path / "app" / "README.md").read_text()
