"""Print the table of docs/results/energy.md: ResNet-20 on CIFAR-10, cut by plain SVD at several energies, with MACs,
measured speed-up and accuracy.

    python tools/energy_table.py [--test test_half] [--budget 10]

Run it on a quiet machine. tools/data.py fetches data and network.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import click
import data
from common import IMAGENET, machine, macs_ratio

from trp_export import Benchmark, Calibration, Energy, Images, Options, Selection, compress
from trp_export.options import LoadOptions
from trp_export.report.document import Report

ENERGIES = (0.999, 0.995, 0.99, 0.98, 0.95, 0.90)
SCHEMES = ("channel", "spatial")


@click.command()
@click.option("--test", default="test_half", show_default=True, help="The file of CIFAR-10 that accuracy is of.")
@click.option("--budget", default=10.0, help="Seconds for each measurement.")
def main(test: str, budget: float) -> None:
    """ResNet-20 at several energies."""
    weights, images = data.network("resnet20"), data.cifar10() / f"{test}.npz"
    rows = {
        (scheme, energy): _export(weights, images, scheme, energy, budget) for energy in ENERGIES for scheme in SCHEMES
    }
    first = next(iter(rows.values()))
    score = first.deviation.score if first.deviation else None
    if score is None or not score.labelled:
        raise click.ClickException(f"{images} has no labels.")
    print(f"\nuncut: {score.before:.2%} of {score.images} images, {first.before.macs:,} MACs\n")
    print("| energy |" + "".join(f" {scheme}: layers cut | MACs | measured | accuracy |" for scheme in SCHEMES))
    print("|---|" + "---|---|---|---|" * len(SCHEMES))
    for energy in ENERGIES:
        print(f"| {energy:g} |" + "".join(_cells(rows[scheme, energy]) for scheme in SCHEMES))
    measured = next(report.latency for report in rows.values() if report.latency)
    print(f"\n{machine(measured)}")


def _export(weights: Path, images: Path, scheme: str, energy: float, budget: float) -> Report:
    with tempfile.TemporaryDirectory() as folder:
        options = Options(
            rule=Energy(energy),
            calibration=Calibration("none"),
            load=LoadOptions(arch="resnet20"),
            selection=Selection(scheme),
            images=Images(images),
            preprocessing=IMAGENET,
            benchmark=Benchmark(budget_s=budget, keep_slow_pairs=True),
            output=Path(folder, "out.onnx"),
        )
        report = compress(weights, options)
    click.echo(f"{scheme} {energy}: {_cells(report)}", err=True)
    return report


def _cells(report: Report) -> str:
    score = report.deviation.score if report.deviation else None
    if report.after is None or score is None or not score.labelled:
        raise click.ClickException("the export gave no result.")
    cut = f"{len(report.plan.changed)} of {len(report.plan.decisions)}"
    macs = f"{macs_ratio(report):.2f}x"
    measured = str(report.low_rank_ratio) if report.low_rank_ratio else "-"
    return f" {cut} | {macs} | {measured} | {score.after:.2%} |"


if __name__ == "__main__":
    main()
