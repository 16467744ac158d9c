"""What makes synthetic images good for calibration: starts, steps and counts, judged on held-back training images.

    python tools/synthetic_images.py --data ../shared/data/cifar10 --models ../shared/models \
        [--network resnet20] [--ratio 3] [--trials ...] [--out runs/synthetic.jsonl]

Every trial is a line of the JSON file as soon as it is there; a second call goes on where the first one ended. At the
end all that is there is printed as a table.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import calibration_results as calibration
import numpy as np
import torch
from common import append, missing, read

from trp_export.graph.statistics import norm_outputs
from trp_export.inputs.images import load_images
from trp_export.recover import synthetic

_VALIDATION = 2500
# What differs from synthetic.py as it is: steps, how many images, what they start from, which seed.
TRIALS: dict[str, dict[str, Any]] = {
    "real images": {"real": True},
    "512 real images": {"real": True, "count": 512},
    "as it is": {},
    "another seed": {"seed": 1},
    "the start alone": {"steps": 0},
    "8 steps": {"steps": 8},
    "40 steps": {"steps": 40},
    "512 images": {"count": 512},
    "256 images": {"count": 256},
    "from white noise": {"start": "noise"},
    "from white noise, 40 steps": {"start": "noise", "steps": 40},
}


def main() -> None:
    options = parse_options()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    jobs = [{"network": options.network, "trial": name, "ratio": options.ratio} for name in options.trials]
    jobs = missing(options.out, jobs)
    if jobs:
        checkpoint = options.models / calibration.CHECKPOINTS[options.network]
        folded = calibration.load_network(options.network, checkpoint)
        statistics = norm_outputs(calibration.load_network(options.network, checkpoint, fold=False))
        seen = load_images(options.data / "train_5.npz", calibration.IMAGENET, count=_VALIDATION)
    for job in jobs:
        trial = TRIALS[job["trial"]]
        started = time.monotonic()
        images = make(trial, folded, statistics, options)
        seconds = time.monotonic() - started
        workshop = calibration.Workshop(folded, images)
        model, _ = calibration.compress(workshop, calibration.METHODS["all of it"], options.ratio)
        append(options.out, {**job, "seconds": seconds, "accuracy": calibration.accuracy(model, seen)})
    print("| | network | MACs | accuracy | seconds for the images |\n|---|---|---|---|---|")
    for line in read(options.out):
        seconds = "" if TRIALS[line["trial"]].get("real") else f"{line['seconds']:.0f}"
        print(f"| {line['trial']} | {line['network']} | {line['ratio']:g}x | {line['accuracy']:.2f} | {seconds} |")


def make(trial: dict[str, Any], folded: Any, statistics: Any, options: argparse.Namespace) -> np.ndarray:
    count = trial.get("count", calibration.IMAGES)
    if trial.get("real"):
        return np.random.default_rng(0).permutation(calibration.draw_images(options.data, 0))[:count]
    start = synthetic._start
    if trial.get("start") == "noise":
        synthetic._start = lambda shape, random: torch.randn(shape, generator=random)
    try:
        steps, seed = trial.get("steps", synthetic.STEPS), trial.get("seed", 0)
        return synthetic.synthesise(folded, statistics, (1, 3, 32, 32), count, seed=seed, steps=steps)
    finally:
        synthetic._start = start


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data/cifar10"))
    parser.add_argument("--models", type=Path, default=Path("../shared/models"))
    parser.add_argument("--network", default="resnet20", choices=calibration.CHECKPOINTS)
    parser.add_argument("--ratio", type=float, default=3.0)
    parser.add_argument("--trials", nargs="+", default=list(TRIALS), choices=TRIALS)
    parser.add_argument("--out", type=Path, default=Path("runs/synthetic.jsonl"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
