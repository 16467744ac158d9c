"""Images per second of trp-train beside the loop that everybody writes: DataLoader, torchvision transforms, SGD.

    python tools/bench_loop.py [--rounds 3] [--images 8192]

ResNet-20, batch 128, an epoch of random 32x32 images, padded crop and flip, each time in a fresh process, in turn;
start-up is not counted. Printed: the median of images per second, and of its ratio to the plain loop round by round.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
import numpy as np
import torch

BATCH, SIDE = 128, 32
TRP = ("--scheme", "spatial", "--macs", "2", "--period", "20", "--nuclear", "6e-3")
CONTESTANTS = {
    "plain loop": None,
    "trp-train, dense": (),
    "trp-train, TRP at m=20": TRP,
    "the same with --amp": (*TRP, "--amp"),
}


@click.command()
@click.option("--rounds", default=3, show_default=True)
@click.option("--images", default=8192, show_default=True)
@click.option("--only", type=click.Path(path_type=Path), hidden=True, help="Run the plain loop on these images.")
def main(rounds: int, images: int, only: Path | None) -> None:
    """Images per second of trp-train beside the usual training loop."""
    if only:
        print(plain_loop(only))
        return
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, {images} images, n = {rounds}")
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder)
        random = np.random.default_rng(0)
        pixels = random.integers(0, 256, (images + BATCH, SIDE, SIDE, 3), dtype=np.uint8)
        np.savez(data / "train_0.npz", images=pixels, labels=random.integers(0, 10, len(pixels)))
        speeds = {name: np.empty(rounds) for name in CONTESTANTS}
        for index in range(rounds):
            for name, options in CONTESTANTS.items():
                speeds[name][index] = _plain(data) if options is None else _trained(data, options)
    for name, found in speeds.items():
        ratios = found / speeds["plain loop"]
        print(
            f"  {name:24} {np.median(found):7.0f} images/s, {np.median(ratios):.2f}x "
            f"[{ratios.min():.2f}, {ratios.max():.2f}] of the plain loop"
        )


def plain_loop(folder: Path) -> float:
    """Images per second of one epoch of the usual loop, two processes loading."""
    from torch import nn
    from torch.utils.data import DataLoader, Dataset
    from torchvision.transforms import v2

    from models_zoo import find_architecture

    with np.load(folder / "train_0.npz") as file:
        pixels, labels = file["images"][BATCH:], file["labels"][BATCH:]
    change = v2.Compose(
        [
            v2.ToImage(),
            v2.RandomCrop(SIDE, padding=4),
            v2.RandomHorizontalFlip(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize((0.5, 0.5, 0.5), (0.25, 0.25, 0.25)),
        ]
    )

    class Images(Dataset[tuple[torch.Tensor, int]]):
        def __len__(self) -> int:
            return len(labels)

        def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
            return change(pixels[index]), int(labels[index])

    model = find_architecture("resnet20").build(None).train()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=1e-4)
    loss_of = nn.CrossEntropyLoss()
    started, seen = time.perf_counter(), 0
    for x, y in DataLoader(Images(), BATCH, shuffle=True, num_workers=2, drop_last=True):
        optimizer.zero_grad()
        loss_of(model(x), y).backward()
        optimizer.step()
        seen += len(y)
    return seen / (time.perf_counter() - started)


def _plain(data: Path) -> float:
    command = [sys.executable, __file__, "--only", str(data)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def _trained(data: Path, options: tuple[str, ...]) -> float:
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder, "run")
        command = [sys.executable, "-c", "from training.cli import main; main()", "--arch", "resnet20"]
        command += ["--data", f"npz:{data}", "--validation", str(BATCH), "--epochs", "1", "-o", str(run), *options]
        subprocess.run(command, capture_output=True, check=True)
        return float(json.loads((run / "history.jsonl").read_text().splitlines()[-1])["images_per_s"])


if __name__ == "__main__":
    main()
