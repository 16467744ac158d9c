"""How much memory a search takes: ResNet-18 at 224x224 in steps of 8 images, full space, random weights and images.

python tools/search_memory.py [--images 16] [--epochs 2]
"""

from __future__ import annotations

import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
import torchvision

from training.search.options import SearchOptions
from training.search.run import run_search
from trp_export.rules import Macs


@click.command()
@click.option("--images", "count", default=16, show_default=True)
@click.option("--epochs", default=2, show_default=True)
def main(count: int, epochs: int) -> None:
    """Peak memory of a search in ResNet-18 at 224 x 224."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        torch.save(torchvision.models.resnet18().state_dict(), folder / "resnet18.pt")
        images = np.random.default_rng(0).standard_normal((count, 3, 224, 224)).astype(np.float32)
        np.save(folder / "images.npy", images)
        options = SearchOptions(
            rule=Macs(2.0),
            arch="torchvision:resnet18",
            output=folder / "plan.json",
            data=str(folder / "images.npy"),
            epochs=epochs,
            batch=8,
        )
        started, steps = time.monotonic(), set()

        def say(what: str) -> None:
            print(f"{time.monotonic() - started:6.1f} s, peak {peak_gb():.2f} GB: {what}", flush=True)

        def progress(step: str, share: float) -> None:
            if step not in steps:
                steps.add(step)
                say(step)

        def report(record: dict[str, Any]) -> None:
            say(f"epoch {record['epoch']}")

        plan, _ = run_search(folder / "resnet18.pt", options, progress, report)
        say(f"{len(plan.changed)} of {len(plan.decisions)} layers become pairs")


def peak_gb() -> float:
    """Of this process so far, resident, in units of 2^30 bytes (Linux counts in KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


if __name__ == "__main__":
    main()
