"""The tutorial's commands run as shown, and print what the tutorial shows."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tools"))
import cli_reference  # noqa: E402 - a script of tools/

sys.path.pop(0)

TUTORIAL = ROOT / "docs" / "tutorial.md"
DIGEST = re.compile(r"\b[0-9a-f]{64}\b")


@dataclass(frozen=True, slots=True)
class Step:
    """A command and the lines that the tutorial shows for it; `compare` is False where they differ from run to run."""

    command: str
    shown: tuple[str, ...]
    compare: bool


def read_steps(text: str) -> list[Step]:
    steps = []
    for note, block in re.findall(r"(<!-- times differ -->\n)?```console\n(.*?)```", text, re.DOTALL):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, *shown = part.splitlines()
            steps.append(Step(command, tuple(shown), compare=not note))
    return steps


def shape(line: str) -> str:
    """A line without what differs between machines and versions: digests, numbers, widths, a layer's decomposition."""
    layer = re.match(r"\S+ +\d+x[\dx]+ ", line)
    line = layer[0] if layer else line
    return re.sub(r"[+-]?\d[\d.,]*(e-?#?\d*)?", "#", " ".join(DIGEST.sub("#", line).split()))


def require_shown(step: Step, printed: str) -> None:
    """Every line of the tutorial is printed, in this order."""
    lines = iter([shape(line) for line in printed.splitlines()])
    for line in step.shown:
        if line.strip() not in ("", "..."):
            assert shape(line) in lines, f"$ {step.command}\ndid not print, in this place:\n{line}\nbut:\n{printed}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A clone as the tutorial begins in, with the scripts that it shows and the commands on the path."""
    (tmp_path / "models_zoo").symlink_to(ROOT / "models_zoo")
    for name, body in re.findall(
        r"as `(\w+\.py)`:\n\n```python\n(.*?)```", TUTORIAL.read_text(encoding="utf-8"), re.DOTALL
    ):
        (tmp_path / name).write_text(body, encoding="utf-8")
    return tmp_path


def run_command(command: str, folder: Path) -> str:
    """What a command prints, both streams; commands of this project run from this tree."""
    words = command.split(" ")
    if words[0].startswith("trp-"):
        words[:1] = [sys.executable, "-m", cli_reference.MODULES[words[0]]]
    elif words[0] == "python":
        words[0] = sys.executable
    done = subprocess.run(
        words,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, f"$ {command}\n{done.stdout}"
    return done.stdout


@pytest.mark.timeout(900)  # a dozen commands, one of them a benchmark
def test_tutorial_prints_what_it_shows(folder: Path) -> None:
    digest = ""
    for step in read_steps(TUTORIAL.read_text(encoding="utf-8")):
        printed = run_command(DIGEST.sub(digest, step.command), folder)
        digest = next(iter(DIGEST.findall(printed)), digest)
        if step.compare:
            require_shown(step, printed)


def test_tutorial_comparison_notices_a_line_that_is_not_printed() -> None:
    step = Step("command", ("layer  rank", "...", "wrote a.onnx"), compare=True)
    require_shown(step, "layer rank\nconv 3\nwrote a.onnx\n")
    with pytest.raises(AssertionError, match="did not print"):
        require_shown(step, "layer rank\nconv 3\n")
