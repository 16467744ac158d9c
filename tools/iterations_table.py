"""Accuracy, multiply-adds, size and latency of one gated network by its number of iterations.

    python tools/iterations_table.py gated.pt --eval labelled.npz -o runs/iterations
    python tools/iterations_table.py gated.pt --eval labelled.npz -o runs/iterations --iterations 1,2,4 --latency \
        -- --macs 2 --calib photos/ --skip 'gates.*'

What follows -- goes to each trp-export; without it the networks are exported as they are. --latency needs a quiet
machine.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
from common import Listed


def export(network: Path, iterations: int, options: tuple[str, ...], output: Path) -> dict[str, Any]:
    """The report of trp-export. Ends this command where that one fails."""
    arguments = (str(network), "--iterations", str(iterations), *options, "--json", "-o", str(output))
    code = "from trp_export.cli.export import main; main()"
    done = subprocess.run([sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(done.returncode)
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def line(iterations: int, report: dict[str, Any], file: Path) -> str:
    """A row of the table; after a cut, each value before it comes first."""
    before, after, score = report["before"], report["after"], report["deviation"]["score"]
    values = [
        (f"{100 * score['before']:.2f}", f"{100 * score['after']:.2f}"),
        (f"{before['macs'] / 1e6:.1f}", f"{after['macs'] / 1e6:.1f}"),
        (f"{before['params']:,}", f"{after['params']:,}"),
    ]
    latency = report["latency"]
    timed = [f"{model['summary']['p50_ms']:.2f}" for model in latency["models"]] if latency else ["not measured"] * 2
    cells = [first if first == second else f"{first} -> {second}" for first, second in [*values, (timed[0], timed[1])]]
    return f"| {iterations} | {' | '.join(cells)} | {file.stat().st_size:,} |"


@click.command()
@click.argument("network", type=click.Path(path_type=Path))
@click.argument("options", nargs=-1)
@click.option("--eval", "images", required=True, help="Labelled images, as trp-export takes them.")
@click.option("--iterations", type=Listed(int), default=(1, 2, 3), help="Numbers with commas between them.")
@click.option("--latency", is_flag=True, help="Time the exports as well; needs a quiet machine.")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Folder for the files.")
def main(
    network: Path, options: tuple[str, ...], images: str, iterations: tuple[int, ...], latency: bool, output: Path
) -> None:
    """Accuracy, multiply-adds, size and latency of one gated network by its number of iterations."""
    output.mkdir(parents=True, exist_ok=True)
    given = (*options, "--eval", images, *(() if latency else ("--no-bench",)))
    click.echo("| iterations | accuracy, % | million MACs | parameters | ms | bytes |\n|---|---|---|---|---|---|")
    for number in iterations:
        file = output / f"{network.stem}-t{number}.onnx"
        click.echo(line(number, export(network, number, given, file), file))


if __name__ == "__main__":
    main()
