"""The tutorial's commands run as shown, and print what the tutorial shows."""

from __future__ import annotations

from pathlib import Path

import pytest
from tutorial import DIGEST, GAP, PAGE, Step, prepare, read_steps, refreshed, run_command, shape


def require_shown(step: Step, printed: str) -> None:
    """Every line of the tutorial is printed, in this order."""
    lines = iter([shape(line) for line in printed.splitlines()])
    for line in step.shown:
        if line.strip() not in ("", GAP):
            assert shape(line) in lines, (
                f"$ {step.command}\ndid not print, in this place:\n{line}\n"
                f"python tools/tutorial.py refreshes the page. It printed:\n{printed}"
            )


@pytest.mark.slow
@pytest.mark.timeout(900)  # a dozen commands, one of them a benchmark
def test_tutorial_prints_what_it_shows(tmp_path: Path) -> None:
    text = PAGE.read_text(encoding="utf-8")
    prepare(tmp_path, text)
    digest = ""
    for step in read_steps(text):
        printed = run_command(DIGEST.sub(digest, step.command), tmp_path)
        digest = next(iter(DIGEST.findall(printed)), digest)
        if step.compare:
            require_shown(step, printed)


def test_tutorial_comparison_notices_a_line_that_is_not_printed() -> None:
    step = Step("command", ("layer  rank", "...", "wrote a.onnx"), compare=True)
    require_shown(step, "layer rank\nconv 3\nwrote a.onnx\n")
    with pytest.raises(AssertionError, match="did not print"):
        require_shown(step, "layer rank\nconv 3\n")


def test_tutorial_refresh_keeps_what_is_left_out() -> None:
    shown = ("macs 2x fewer", "conv1  8x3x3x3  kept", "conv2  8x8x3x3  kept", "...", "fc  10x64  kept", "", "wrote a")
    layers = [f"conv{index}  8x{3 if index == 1 else 8}x3x3  cut" for index in range(1, 5)]
    printed = ["macs 3x fewer", *layers, "fc  10x64  cut", "", "wrote b"]
    assert refreshed(shown, printed) == [*printed[:3], "...", *printed[5:]]
