"""No process of ours reports to anybody: onnxruntime's telemetry would write files into HOME and TMPDIR."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from models import build, save

from trp_export.bench.runners import python_runner


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """An empty home that holds the temporary folder, beside a model."""
    save(build(), tmp_path / "model.onnx")
    (tmp_path / "home" / "tmp").mkdir(parents=True)
    return tmp_path / "home"


def run(home: Path, *arguments: str) -> None:
    """Run Python at home, without the setting that this process has."""
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    for name in [name for name in environment if name.startswith("XDG_")]:
        del environment[name]
    environment |= {"HOME": str(home), "TMPDIR": str(home / "tmp")}
    done = subprocess.run(
        [sys.executable, *arguments],
        env=environment,
        cwd=home.parent,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr


def written(home: Path) -> list[str]:
    return [str(path.relative_to(home)) for path in home.rglob("*") if path.is_file()]


def test_onnxruntime_alone_would_write_files(home: Path) -> None:
    run(home, "-c", "import onnxruntime; onnxruntime.InferenceSession('model.onnx')")
    if not written(home):
        pytest.skip("this onnxruntime has no telemetry")


@pytest.mark.parametrize(
    "arguments",
    [
        (
            "-m",
            "trp_export.cli.export",
            "model.onnx",
            "--rank",
            "2",
            "--calib",
            "none",
            "--no-bench",
            "--bundle",
            "app",
            "--ort",
            "arm",
        ),
        ("-m", "trp_export.cli.bench", "model.onnx", "--processes", "1", "--budget", "0.1"),
        (
            "-c",
            "from trp_export.runtime.sessions import open_session as o; import pathlib as p; o(p.Path('model.onnx'))",
        ),
        (python_runner.__file__, "probe"),
    ],
    ids=["export", "bench", "library", "runner"],
)
def test_nothing_is_left_at_home(home: Path, arguments: tuple[str, ...]) -> None:
    run(home, *arguments)
    assert written(home) == []
