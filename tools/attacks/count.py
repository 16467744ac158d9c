"""Try what hostile files, devices and bad days do to the commands, and count what held.

    python tools/attacks [--only FAMILY] [--name TEXT] [--missing] [--write]

Each attempt runs in a process of its own, with limits on memory, time and the size of files, in a temporary folder
with an empty home. Nothing outside that folder is changed. The outcome of each attempt is recorded in build/ at once,
where an attempt that is repeated replaces the earlier outcome, and --write puts all of them into
docs/results/attacks.md. Linux only.
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
from all_families import FAMILIES
from attempt import Attempt, judge
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
BEGIN, END = "<!-- counts: begin -->", "<!-- counts: end -->"
PAGE, RECORD = ROOT / "docs" / "results" / "attacks.md", ROOT / "build" / "attacks.json"


@click.command()
@click.option("--only", multiple=True, metavar="FAMILY", help="Only this family; may be repeated.")
@click.option("--name", default="", help="Only attempts whose name contains this.")
@click.option("--missing", is_flag=True, help="Only attempts without a recorded outcome.")
@click.option("--write", is_flag=True, help="Write the table of all recorded families to docs/results/attacks.md.")
def main(only: tuple[str, ...], name: str, missing: bool, write: bool) -> None:
    """Count which attempts held."""
    unknown = set(only) - set(FAMILIES)
    if unknown:
        raise click.UsageError(f"no family {unknown.pop()}; there are {', '.join(FAMILIES)}")
    with tempfile.TemporaryDirectory(prefix="attacks.") as folder:
        kit = make_kit(Path(folder, "kit"))
        for family in only or FAMILIES:
            known = recorded().get(family, {"attempts": {}})["attempts"] if missing else {}
            attempts = [own for own in FAMILIES[family](kit) if name in own.name and own.name not in known]
            if not (name or missing):
                forget(family)
            for attempt in attempts:
                run_attempt(attempt, Path(folder, "place"))
            print(f"{family}: {len(attempts)} tried", flush=True)
    outcomes = recorded()
    print(*table(outcomes), sep="\n")
    if write:
        PAGE.write_text(page(outcomes, PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    sys.exit(any(failures(outcome) for outcome in outcomes.values()))


def run_attempt(attempt: Attempt, place: Path) -> None:
    """Try it, and record what was wrong, None where it held, and the time it took."""
    started = time.monotonic()
    complaint = judge(attempt, place)
    if complaint is not None:
        print(f"FAILED {attempt.family}: {attempt.name}: {complaint}", flush=True)
    outcomes = recorded()
    outcome = outcomes.setdefault(attempt.family, {"attempts": {}, "seconds": 0.0})
    outcome["attempts"][attempt.name] = complaint
    outcome["seconds"] += time.monotonic() - started
    save(outcomes)


def failures(outcome: Outcome) -> dict[str, str]:
    return {name: complaint for name, complaint in outcome["attempts"].items() if complaint is not None}


def recorded() -> dict[str, Outcome]:
    outcomes = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    return {family: outcomes[family] for family in FAMILIES if family in outcomes}


def forget(family: str) -> None:
    """What an earlier run recorded of a family that is tried again as a whole."""
    save({name: outcome for name, outcome in recorded().items() if name != family})


def save(outcomes: dict[str, Outcome]) -> None:
    RECORD.parent.mkdir(exist_ok=True)
    part = RECORD.with_suffix(".part")
    part.write_text(json.dumps(outcomes, indent=1))
    part.replace(RECORD)


def table(outcomes: dict[str, Outcome]) -> list[str]:
    counts = {family: (len(outcome["attempts"]), len(failures(outcome))) for family, outcome in outcomes.items()}
    tried, failed = (sum(count[place] for count in counts.values()) for place in (0, 1))
    counts["**together**"] = tried, failed
    rows = [f"| {family} | {tried} | {tried - failed} | {failed} |" for family, (tried, failed) in counts.items()]
    return ["| what is attacked | tried | held | failed |", "|---|---|---|---|", *rows]


def page(outcomes: dict[str, Outcome], before: str) -> str:
    """The page with the counts, between its marks, of these outcomes."""
    tried = sum(len(outcome["attempts"]) for outcome in outcomes.values())
    notes = [
        f"- {family}: {name}: {complaint[:200]}"
        for family, outcome in outcomes.items()
        for name, complaint in failures(outcome).items()
    ]
    minutes = sum(outcome["seconds"] for outcome in outcomes.values()) / 60
    counts = "\n".join([
        f"**{tried - len(notes)} of {tried} attempts held.**",
        "",
        *table(outcomes),
        "",
        *(["What failed:", "", *notes, ""] if notes else []),
        f"{platform.platform()}, Python {platform.python_version()}, {minutes:.0f} minutes beside other work.",
    ])  # fmt: skip
    head, rest = before.split(BEGIN)
    return f"{head}{BEGIN}\n{counts}\n{END}{rest.split(END)[1]}"
