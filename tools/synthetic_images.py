"""Fill the second table of docs/results/synthetic-images.md: what makes synthetic images good for calibration.

    python tools/synthetic_images.py [--network resnet20] [--ratio 3] [--trials "as it is" --trials "256 images"]

Starts, steps and counts are compared by the accuracy on 2,500 images of training file 5. Each result is a line of the
file --out, written as soon as it is known; a second call continues. All results so far are printed as a table.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import click
import data
import numpy as np
from common import CIFAR_RESNETS, IMAGENET, Workshop, accuracy, append, draw_images, missing, read

from trp_export import Benchmark, Calibration, LoadOptions, Macs, Options, Preprocessing
from trp_export.inputs.drawn import draw_shapes
from trp_export.inputs.images import load_images
from trp_export.load import load
from trp_export.network import analyse
from trp_export.recover import synthetic

VALIDATION = 2500


@dataclass(frozen=True, slots=True)
class Trial:
    """How images are made, as far as it differs from what the command does."""

    count: int = 1024
    real: bool = False
    seed: int = 0
    steps: int = synthetic.STEPS
    white_noise: bool = False


TRIALS = {
    "real images": Trial(real=True),
    "512 real images": Trial(512, real=True),
    "as it is": Trial(),
    "another seed": Trial(seed=1),
    "the start alone": Trial(steps=0),
    "8 steps": Trial(steps=8),
    "40 steps": Trial(steps=40),
    "512 images": Trial(512),
    "256 images": Trial(256),
    "from white noise": Trial(white_noise=True),
    "from white noise, 40 steps": Trial(steps=40, white_noise=True),
}


@click.command()
@click.option("--network", type=click.Choice(CIFAR_RESNETS), default="resnet20", show_default=True)
@click.option("--ratio", default=3.0, show_default=True, help="Times fewer multiply-adds.")
@click.option("--trials", multiple=True, type=click.Choice(list(TRIALS)), default=list(TRIALS), help="repeatable")
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/synthetic.jsonl"), show_default=True)
def main(network: str, ratio: float, trials: tuple[str, ...], out: Path) -> None:
    """Accuracy with synthetic images that are made in different ways."""
    out.parent.mkdir(parents=True, exist_ok=True)
    validation = load_images(data.cifar10() / "train_5.npz", IMAGENET, count=VALIDATION)
    for job in missing(out, [{"network": network, "trial": name, "ratio": ratio} for name in trials]):
        with TemporaryDirectory() as folder:
            started = time.monotonic()
            path, preprocessing = make_images(network, TRIALS[job["trial"]], Path(folder))
            seconds = time.monotonic() - started
            options = Options(
                rule=Macs(ratio),
                load=LoadOptions(arch=network),
                calibration=Calibration(path),
                preprocessing=preprocessing,
                benchmark=Benchmark(run=False),
            )
            shop = Workshop(data.network(network), options, Path(folder))
            built = shop.build(shop.plan(ratio))
            append(out, {**job, "seconds": seconds, "accuracy": accuracy(built.files.result, validation)})
    print("| | network | MACs | accuracy | seconds for the images |\n|---|---|---|---|---|")
    for line in read(out):
        took = "" if TRIALS[line["trial"]].real else f"{line['seconds']:.0f}"
        print(f"| {line['trial']} | {line['network']} | {line['ratio']:g}x | {line['accuracy']:.2f} | {took} |")


def make_images(name: str, trial: Trial, folder: Path) -> tuple[Path, Preprocessing]:
    """A file of the images of a trial, and how they become inputs."""
    if trial.real:
        path = folder / "real.npz"
        images = draw_images(data.cifar10(), TRIALS["real images"].count, 0)
        np.savez(path, images=np.random.default_rng(0).permutation(images)[: trial.count])
        return path, IMAGENET
    network = analyse(load(data.network(name), LoadOptions(arch=name)), folder, fold=True)
    inputs = synthetic.synthesise(
        network.model,
        network.statistics,
        (1, 3, 32, 32),
        trial.count,
        seed=trial.seed,
        recipe=synthetic.Recipe(trial.steps, white_noise if trial.white_noise else draw_shapes),
    )
    np.save(folder / "synthetic.npy", inputs)
    return folder / "synthetic.npy", Preprocessing()


def white_noise(shape: tuple[int, ...], random: np.random.Generator) -> np.ndarray:
    """A start without any shapes."""
    return random.standard_normal(shape, dtype=np.float32)


if __name__ == "__main__":
    main()
