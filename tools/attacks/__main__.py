"""Try what hostile files, devices and bad days do to the commands, and count what held.

    python tools/attacks [--only FAMILY] [--name TEXT] [--write]

Each attempt runs in a process of its own, with limits on memory, time and the size of files, in a temporary folder
with an empty home. Nothing outside that folder is changed. The outcome of each attempt is recorded in build/, where an
attempt that is repeated replaces the earlier outcome, and --write puts all of them into docs/results/attacks.md. Linux
only.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

# This process starts no threads: it is copied for each attempt.
os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "ORT_DISABLE_TELEMETRY": "1"}

import click
from attempt import Attempt, judge
from families import FAMILIES
from kit import make_kit

import training.loop
import training.search.run  # noqa: F401
import trp_export.bench.session
import trp_export.load.torch_file
import trp_export.pipeline
import trp_export.report.page.page
import trp_export.ship.bundle
import trp_export.ship.bundle_stage  # noqa: F401

ROOT = Path(__file__).parents[2]
# "attempts": what was wrong with each, by its name, or None; "seconds" that they took.
Outcome = dict[str, Any]
PAGE, RECORD = ROOT / "docs" / "results" / "attacks.md", ROOT / "build" / "attacks.json"


@click.command()
@click.option("--only", multiple=True, metavar="FAMILY", help="Only this family; may be repeated.")
@click.option("--name", default="", help="Only attempts whose name contains this.")
@click.option("--write", is_flag=True, help="Write the table of all recorded families to docs/results/attacks.md.")
def main(only: tuple[str, ...], name: str, write: bool) -> None:
    """Count which attempts held."""
    unknown = set(only) - set(FAMILIES)
    if unknown:
        raise click.UsageError(f"no family {unknown.pop()}; there are {', '.join(FAMILIES)}")
    with tempfile.TemporaryDirectory(prefix="attacks.") as folder:
        kit = make_kit(Path(folder, "kit"))
        for family in only or FAMILIES:
            attempts = [attempt for attempt in FAMILIES[family](kit) if name in attempt.name]
            outcome = run_attempts(attempts, Path(folder, "place"))
            record(family, outcome, is_whole=not name)
            print(f"{family}: {len(outcome['attempts'])} tried, {len(failures(outcome))} failed", flush=True)
    outcomes = recorded()
    print(*table(outcomes), sep="\n")
    if write:
        PAGE.write_text(page(outcomes), encoding="utf-8")
    sys.exit(any(failures(outcome) for outcome in outcomes.values()))


def run_attempts(attempts: list[Attempt], place: Path) -> Outcome:
    """What was wrong with each attempt, None where it held, and the time that all took."""
    started, complaints = time.monotonic(), {}
    for attempt in attempts:
        complaint = complaints[attempt.name] = judge(attempt, place)
        if complaint is not None:
            print(f"FAILED {attempt.family}: {attempt.name}: {complaint}", flush=True)
    return {"attempts": complaints, "seconds": time.monotonic() - started}


def failures(outcome: Outcome) -> dict[str, str]:
    return {name: complaint for name, complaint in outcome["attempts"].items() if complaint is not None}


def recorded() -> dict[str, Outcome]:
    outcomes = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    return {family: outcomes[family] for family in FAMILIES if family in outcomes}


def record(family: str, outcome: Outcome, *, is_whole: bool) -> None:
    """Add the outcome of attempts to that of their family, or take its place where the whole family was tried."""
    outcomes = recorded()
    before = outcomes.get(family)
    if before is not None and not is_whole:
        attempts = {**before["attempts"], **outcome["attempts"]}
        outcome = {"attempts": attempts, "seconds": before["seconds"] + outcome["seconds"]}
    RECORD.parent.mkdir(exist_ok=True)
    RECORD.write_text(json.dumps({**outcomes, family: outcome}, indent=1))


def table(outcomes: dict[str, Outcome]) -> list[str]:
    counts = {family: (len(outcome["attempts"]), len(failures(outcome))) for family, outcome in outcomes.items()}
    counts["**together**"] = tuple(map(sum, zip(*counts.values(), strict=True))) if counts else (0, 0)
    rows = [f"| {family} | {tried} | {tried - failed} | {failed} |" for family, (tried, failed) in counts.items()]
    return ["| what is attacked | tried | held | failed |", "|---|---|---|---|", *rows]


def page(outcomes: dict[str, Outcome]) -> str:
    tried = sum(len(outcome["attempts"]) for outcome in outcomes.values())
    notes = [
        f"- {family}: {name}: {complaint[:200]}"
        for family, outcome in outcomes.items()
        for name, complaint in failures(outcome).items()
    ]
    minutes = sum(outcome["seconds"] for outcome in outcomes.values()) / 60
    return "\n".join([
        "# Hostile files, devices and bad days",
        "",
        f"**{tried - len(notes)} of {tried} attempts held.**",
        "",
        "Held is a documented exit code with a line or two and without a traceback, a minute of computing, and 3 GB.",
        "Inputs are unchanged, and nothing is left in the folder, in the temporary folder or at home. No text from a",
        "file or a device reaches the terminal as control characters, or a page or a card as elements.",
        "",
        *table(outcomes),
        "",
        *(["What failed:", "", *notes, ""] if notes else []),
        f"{platform.platform()}, Python {platform.python_version()}, {minutes:.0f} minutes beside other work.",
        "",
        "## Repeat it",
        "",
        "    python tools/attacks --write",
        "",
        "## Caveats",
        "",
        "The attempts are those of `tools/attacks`; another attacker has other ideas. Boards and phones are scripts in",
        "the place of `ssh` and `adb`. What a signal meets depends on the machine. `make test-slow` damages files at",
        "random.",
        "",
    ])  # fmt: skip


if __name__ == "__main__":
    main()
