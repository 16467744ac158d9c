"""What thinner and low-rank networks cost on each device, in fp32 and int8: tables of channels.md and wide.md.

    python tools/device_costs.py make                    # the ONNX files: some minutes
    python tools/device_costs.py time                    # side by side, on a quiet machine
    python tools/device_costs.py time --device web       # WebAssembly in a headless Chromium
    python tools/device_costs.py time --device arm       # instructions on an emulated ARM processor
    python tools/device_costs.py write

Costs follow from the structure of a network, so networks that have no shipped weights are trained for one epoch.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import click
import data
import numpy as np
from common import draw_images, machine, put_into_page
from reproduce_trp import run

from models_zoo.registry import WEIGHTS
from trp_export.bench import compare, median, ratio

RESULTS = Path(__file__).parents[1] / "docs" / "results"
PRECISIONS = ("fp32", "int8")
UNITS = {"local": "ms", "web": "ms", "arm": "1e6 instructions"}
# The page of vgg8 has ARM already.
DEVICES = {"channels": ("local", "web", "arm"), "wide": ("local", "web")}
CALIBRATION, SEED = 256, 0
AS_IT_IS = ("--skip", "*", "--energy", "1")


@dataclass(frozen=True, slots=True)
class Form:
    """One form of a network: shipped `weights`, or options of trp-train for one epoch; and options of trp-export."""

    name: str
    weights: str = ""
    train: tuple[str, ...] = ()
    export: tuple[str, ...] = ()


# The first form of each is the reference.
FORMS = {
    "channels": (
        Form("ResNet-20, dense", "resnet20-cifar10.pt", export=AS_IT_IS),
        Form("5/8 of every width, 2.54x fewer MACs", train=("--method", "magnitude", "--widths", "0.625")),
        Form("low rank by TRP, 2.84x fewer MACs", "resnet20-trp-spatial-2.84x.pt"),
    ),
    "wide": (
        Form("vgg8, dense", train=("--arch", "vgg8"), export=AS_IT_IS),
        Form("low rank, trained, 2.5x fewer MACs", "vgg8-factors-2.5x.pt"),
    ),
}


@click.group()
@click.option("--runs", type=click.Path(path_type=Path), default=Path("runs/devices"), show_default=True)
@click.pass_context
def main(context: click.Context, runs: Path) -> None:
    """What networks cost on each device."""
    runs.mkdir(parents=True, exist_ok=True)
    context.obj = runs


@main.command()
@click.pass_obj
def make(runs: Path) -> None:
    """Make the ONNX files that are missing."""
    images = runs / "calibration.npz"
    if not images.exists():
        np.savez(images, images=draw_images(data.cifar10(), CALIBRATION, SEED))
    for page, forms in FORMS.items():
        for index, form in enumerate(forms):
            model = WEIGHTS / form.weights if form.weights else _trained(form, runs / f"{page}-{index}")
            for precision in PRECISIONS:
                file = _file(runs, page, index, precision)
                if not file.exists():
                    options = ("--calib", str(images), "--precision", precision, "--no-bench", "--quiet")
                    run("trp_export.cli.export", str(model), *form.export, *options, "-o", str(file))


def _trained(form: Form, folder: Path) -> Path:
    """The network of a form after one epoch."""
    if not (folder / "model.pt").exists():
        start = () if "--arch" in form.train else ("--init", str(WEIGHTS / "resnet20-cifar10.pt"), "--lr", "0.01")
        images = ("--data", f"npz:{data.cifar10()}", "--epochs", "1", "--amp")
        run("training.cli", *images, *start, *form.train, "-o", str(folder))
    return folder / "model.pt"


@main.command()
@click.option("--budget", default=60.0, show_default=True, help="Seconds of each comparison.")
@click.option("--device", type=click.Choice(list(UNITS)), default="local", show_default=True)
@click.pass_obj
def time(runs: Path, budget: float, device: str) -> None:
    """Time the files of each table in one comparison, or count their instructions."""
    for page, forms in FORMS.items():
        if device not in DEVICES[page]:
            continue
        names = [(index, precision) for precision in PRECISIONS for index in range(len(forms))]
        found = compare([_file(runs, page, *name) for name in names], device=device, budget_s=budget)
        reference = {name: each for name, each in zip(names, found.measurements, strict=True) if name[0] == 0}
        lines = [
            f"| {forms[index].name} | {precision} | {median(each) / 1e6:.3f} "
            f"| {ratio(reference[0, 'fp32'], each)} | {ratio(reference[0, 'int8'], each)} |"
            for (index, precision), each in zip(names, found.measurements, strict=True)
        ]
        header = f"| network | precision | {UNITS[device]} | over dense fp32 | over dense int8 |\n|---|---|---|---|---|"
        text = "\n".join(
            [header, *lines, "", f"{device}: {machine(found)}; n = {len(found.measurements[0].processes)} processes."]
        )
        (runs / f"{page}-{device}.md").write_text(text + "\n")
        print(text)


@main.command()
@click.pass_obj
def write(runs: Path) -> None:
    """Put the tables into the pages."""
    for page in FORMS:
        tables = [file.read_text() for device in DEVICES[page] if (file := runs / f"{page}-{device}.md").exists()]
        put_into_page(RESULTS / f"{page}.md", "devices", "\n".join(tables).rstrip())


def _file(runs: Path, page: str, index: int, precision: str) -> Path:
    return runs / f"{page}-{index}-{precision}.onnx"


if __name__ == "__main__":
    main()
