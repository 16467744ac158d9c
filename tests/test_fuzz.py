"""Damaged files of every kind end in a line and a documented exit code: no traceback, no hang, memory bounded."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from models import build, save
from safetensors.torch import save_file

from models_zoo import find_architecture

PROGRAM = Path(__file__).parent / "support" / "fuzz.py"
PLAN = {
    "format": "trp-plan",
    "version": 1,
    "rule": "by hand",
    "layers": [
        {"name": "conv1", "scheme": "spatial-wise", "rank": 2, "reason": "as an example"},
        {"name": "fc", "scheme": None, "rank": None, "reason": "kept"},
    ],
}
DRY = ("--energy", "0.9", "--calib", "none", "--dry-run", "--no-bench", "--quiet")
ARCH = ("--arch", "resnet20")


@pytest.fixture
def folder(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A folder with one sound file of the kind asked for."""
    kind = request.getfixturevalue("kind")
    state = find_architecture("resnet20").build(None).state_dict()
    if kind == "onnx":
        save(build(), tmp_path / "sound.onnx")
    elif kind == "safetensors":
        save_file(state, tmp_path / "sound.safetensors")
    elif kind == "plan":
        save(build(), tmp_path / "model.onnx")
        (tmp_path / "sound.json").write_text(json.dumps(PLAN))
    else:
        torch.save(state, tmp_path / "sound.pt", _use_new_zipfile_serialization=kind == "pt")
    return tmp_path


def attack(kind: str, folder: Path, count: int, *options: str) -> None:
    command = [sys.executable, str(PROGRAM), kind, "0", str(count), str(folder), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1500, cwd=folder)
    assert done.returncode == 0, done.stderr[-2000:]
    left = [path.name for path in folder.iterdir() if path.name.startswith(".")]
    assert left == []


@pytest.mark.parametrize(("kind", "count"), [("onnx", 25), ("plan", 25)])
def test_damaged_files(kind: str, count: int, folder: Path) -> None:
    options = DRY if kind == "onnx" else ("--dry-run", "--quiet")
    attack(kind, folder, count, *options)


@pytest.mark.parametrize("kind", ["pt", "legacy", "safetensors"])
def test_damaged_weights(kind: str, folder: Path) -> None:
    """Read against an architecture whose input does not fit, so that what survives is refused before it is exported."""
    attack(kind, folder, 5, *DRY, *ARCH, "--shape", "1,5,32,32")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["onnx"])
def test_many_damaged_models_through_the_whole_export(kind: str, folder: Path) -> None:
    attack(kind, folder, 150, "--energy", "0.9", "--calib", "none", "--no-bench", "--quiet", "-o", "out.onnx")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["pt", "legacy", "safetensors"])
def test_many_damaged_weights(kind: str, folder: Path) -> None:
    attack(kind, folder, 1000, *DRY, *ARCH, "--shape", "1,5,32,32")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["onnx", "plan"])
def test_many_damaged_files(kind: str, folder: Path) -> None:
    options = DRY if kind == "onnx" else ("--dry-run", "--quiet")
    attack(kind, folder, 3000, *options)
