"""Run the commands of docs/tutorial.md, and put what they print today into the page.

    python tools/tutorial.py

The page keeps what it leaves out: lines between two that are shown stay replaced by `...`. tests/test_tutorial.py runs
the same commands and fails where a line that the page shows is not printed.
"""

from __future__ import annotations

import difflib
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click
from cli_reference import MODULES

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "tutorial.md"
DIGEST = re.compile(r"\b[0-9a-f]{64}\b")
GAP = "..."


@dataclass(frozen=True, slots=True)
class Step:
    """A command and the lines that the page shows for it; `compare` is False where they differ from run to run."""

    command: str
    shown: tuple[str, ...]
    compare: bool


def read_steps(text: str) -> list[Step]:
    """The steps of the page, in order."""
    steps = []
    for note, block in re.findall(r"(<!-- times differ -->\n)?```console\n(.*?)```", text, re.DOTALL):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, *shown = part.splitlines()
            steps.append(Step(command, tuple(shown), compare=not note))
    return steps


def prepare(folder: Path, text: str) -> None:
    """A clone as the tutorial begins in: the networks and images, and the scripts that the page shows."""
    (folder / "models_zoo").symlink_to(ROOT / "models_zoo")
    for name, body in re.findall(r"as `(\w+\.py)`:\n\n```python\n(.*?)```", text, re.DOTALL):
        (folder / name).write_text(body, encoding="utf-8")


def run_command(command: str, folder: Path) -> str:
    """What a command prints, both streams; commands of this project run from this tree."""
    words = command.split(" ")
    if words[0] in MODULES:
        words[:1] = [sys.executable, "-m", MODULES[words[0]]]
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
    if done.returncode:
        raise RuntimeError(f"$ {command}\n{done.stdout}")
    return done.stdout


def shape(line: str) -> str:
    """A line without what differs between machines and versions: digests, numbers, widths, a layer's decomposition."""
    layer = re.match(r"\S+ +\d+x[\dx]+ ", line)
    line = layer[0] if layer else line
    return re.sub(r"[+-]?\d[\d.,]*(e-?#?\d*)?", "#", " ".join(DIGEST.sub("#", line).split()))


def refreshed(shown: Sequence[str], printed: Sequence[str]) -> list[str]:
    """The printed lines for the shown ones: of each part, from the likest of its first line to that of its last."""
    result: list[str] = []
    start = 0
    for part in "\n".join(shown).split(f"\n{GAP}\n"):
        lines = part.split("\n")
        first = _likest(lines[0], printed, start) if result else 0
        last = _likest(lines[-1], printed, first)
        result += ([GAP] if result else []) + [line.rstrip() for line in printed[first : last + 1]]
        start = last + 1
    return result


def _likest(line: str, printed: Sequence[str], start: int) -> int:
    """Where the printed line is whose shape is most like that of `line`, and among equals the line itself."""

    def likeness(index: int) -> tuple[float, float]:
        pairs = ((shape(line), shape(printed[index])), (line, printed[index]))
        alike, equal = (difflib.SequenceMatcher(None, one, other).ratio() for one, other in pairs)
        return alike, equal

    return max(range(start, len(printed)), key=likeness)


@click.command()
def main() -> None:
    """Run the tutorial's commands, and put what they print into the page."""
    text = PAGE.read_text(encoding="utf-8")
    digest = ""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder, text)
        for step in read_steps(text):
            print("$", step.command, flush=True)
            printed = run_command(DIGEST.sub(digest, step.command), folder)
            digest = next(iter(DIGEST.findall(printed)), digest)
            lines = refreshed(step.shown, printed.splitlines()) if step.shown else []
            old = "\n".join([f"$ {step.command}", *step.shown])
            text = text.replace(old, "\n".join([f"$ {step.command}", *lines]), 1)
    PAGE.write_text(DIGEST.sub(digest, text), encoding="utf-8")


if __name__ == "__main__":
    main()
