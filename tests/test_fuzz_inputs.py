"""Inputs of every kind, sound or not, end in an export or in a line and a documented exit code."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parent / "support" / "fuzz_inputs.py"


def feed(first: int, count: int, folder: Path) -> None:
    command = [sys.executable, "-W", "ignore", str(PROGRAM), str(first), str(count), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1500, cwd=folder)
    assert done.returncode == 0, done.stderr[-2000:]
    assert [path.name for path in folder.iterdir() if path.name.startswith(".")] == []


def test_inputs_at_random(tmp_path: Path) -> None:
    feed(0, 4, tmp_path)


@pytest.mark.slow
def test_many_inputs_at_random(tmp_path: Path) -> None:
    feed(4, 400, tmp_path)
