"""Measure the optimisation gap of a search that trp-search has finished: how well cheap scores rank plans.

    python tools/gap_study -o plan.json [--count 36] [--arch NAME]

Writes gap.json, gap.md and gap.png into plan.search/. A call that was interrupted continues.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from gap import FEWEST_PLANS, measure_gap, summary

from models_zoo import require_repeated
from training.run_folder import restored_options
from training.search.options import SearchOptions
from training.search.run import read_search
from trp_export.errors import TrpError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True, help="the plan of the search")
    parser.add_argument("--count", type=int, default=36, help=f"number of plans, at least {FEWEST_PLANS}")
    parser.add_argument("--arch", help="repeats the architecture of the search where that imports a module")
    arguments = parser.parse_args()
    try:
        folder = arguments.output.with_suffix(".search")
        saved = read_search(folder)
        options = restored_options(SearchOptions, saved.options | {"output": str(arguments.output)}, str(folder))
        if options.arch is not None:
            require_repeated(options.arch, str(folder), arguments.arch)
        gap = measure_gap(Path(saved.model), options, saved, arguments.count, show)
    except TrpError as error:
        sys.exit(f"error: {error}")
    print(f"\n{arguments.count} plans, {gap.measure} after recovery (more in {folder / 'gap.md'}, gap.png)\n")
    print(summary(gap), end="")


def show(step: str, share: float) -> None:
    print(f"\r{step:<40} {share:4.0%}", end="", file=sys.stderr, flush=True)
