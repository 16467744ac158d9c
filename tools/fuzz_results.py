"""How many files, damaged at random, each reader has read or refused: writes docs/results/fuzzing.md.

    python tools/fuzz_results.py [--seconds 30] [--kinds onnx,npz] [--write]

Each kind of file has a process of its own, with a limit on memory. The damage is the same in every run; the time says
how many files are tried. Fails where a reader raises anything but an error with a message for the user.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import click
from common import Listed

ROOT = Path(__file__).parents[1]
PROGRAM = ROOT / "tests" / "support" / "fuzz_readers.py"
PAGE = ROOT / "docs" / "results" / "fuzzing.md"
KINDS = (
    *("onnx", "pt", "legacy", "safetensors", "checkpoint", "last.pt", "npz", "npy", "moments"),
    *("png", "jpg", "gif", "bmp", "tiff", "webp"),
    *("plan", "latency table", "samples", "manifest", "config", "reply"),
    *("boxes", "COCO boxes", "labels", "alphabet"),
)


@click.command()
@click.option("--seconds", default=30.0, show_default=True, help="Time for each kind.")
@click.option("--kinds", type=Listed(str, KINDS), default=",".join(KINDS), help="Kinds of files. Default: all.")
@click.option("--write", is_flag=True, help="Write the table to docs/results/fuzzing.md.")
def main(seconds: float, kinds: tuple[str, ...], write: bool) -> None:
    """Damage files at random and count how the readers end."""
    outcomes: dict[str, dict[str, Any]] = {}
    for kind in kinds:
        outcomes[kind] = fuzz(kind, seconds)
        print(row(kind, outcomes[kind]), *outcomes[kind]["crashes"], sep="\n", flush=True)
    if write:
        PAGE.write_text(page(outcomes, seconds), encoding="utf-8")
    sys.exit(any(outcome["crashes"] for outcome in outcomes.values()))


def fuzz(kind: str, seconds: float) -> dict[str, Any]:
    """What the fuzzing program prints for a kind; where it ends otherwise, that counts as a crash."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-W", "ignore", str(PROGRAM), kind, str(seconds), folder]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment, check=False)
    if done.returncode:
        crash = f"ended with {done.returncode}: {done.stderr[-1000:]}"
        return {"runs": 0, "accepted": 0, "messages": 0, "crashes": [crash]}
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def row(kind: str, outcome: dict[str, Any]) -> str:
    counts = [outcome["runs"], outcome["accepted"], outcome["messages"], len(outcome["crashes"])]
    return f"| {kind} | {' | '.join(f'{count:,}' for count in counts)} |"


def page(outcomes: dict[str, dict[str, Any]], seconds: float) -> str:
    runs, crashes = (
        sum(outcome["runs"] for outcome in outcomes.values()),
        sum(len(outcome["crashes"]) for outcome in outcomes.values()),
    )
    lines = [
        "# Files damaged at random",
        "",
        f"**{runs:,} damaged files of {len(outcomes)} kinds were read or refused; {crashes:,} ended otherwise.**",
        "",
        "Bytes are changed, removed, repeated and added; values of documents, fields of messages and arrays of an",
        f"archive become odd ones. Each kind had {seconds:g} s, 8 GB of memory, and 20 s for one file. Refusals are",
        "different where their messages differ in more than names and numbers.",
        "",
        "| kind of file | tried | read | different refusals | anything else |",
        "|---|---|---|---|---|",
        *(row(kind, outcome) for kind, outcome in outcomes.items()),
        "",
        "## Repeat it",
        "",
        "    python tools/fuzz_results.py --write",
        "",
        "`make test-slow` runs the same as tests; `TRP_FUZZ_SECONDS` sets their time.",
        "",
        "## Caveats",
        "",
        "Damage is blind: it does not look at which code it reaches, and no run is exhaustive. The readers run by",
        "themselves, without the commands around them.",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
