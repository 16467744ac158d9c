"""Images per second and memory of streamed data, beside a plain loop: DataLoader, ImageFolder, the same transforms.

    python tools/bench_streaming.py [--images 2048] [--workers 4] [--rounds 3]

JPEG images of 500x375 in ten classes, 224x224, batch 128, an epoch each time, in turn. Nothing is trained. Memory is
that of all processes at their highest, shared pages counted once (PSS, sampled every 0.2 s).
"""

from __future__ import annotations

import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path

import click
import numpy as np
import psutil
import torch
from PIL import Image

from training.data.augmentation import Augmentation
from training.data.folder import FolderSamples
from training.data.normalisation import Normalisation
from training.data.streamed import IndexedSource, Reading, StreamedBatches

SIZE, BATCH = (224, 224), 128
NORMALISE = Normalisation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@click.command()
@click.option("--images", default=2048, show_default=True)
@click.option("--workers", default=4, show_default=True)
@click.option("--rounds", default=3, show_default=True)
def main(images: int, workers: int, rounds: int) -> None:
    """Images per second and memory of streamed data."""
    warnings.filterwarnings("ignore", "This DataLoader will create")  # More workers than cores.
    print(f"{images} images, {workers} workers, n = {rounds}")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        make_images(folder, images)
        loops: dict[str, Callable[[], Iterable[object]]] = {
            "plain loop": lambda: plain_loop(folder, workers),
            "trp-train": lambda: streamed(folder, workers),
        }
        for _ in range(rounds):
            for name, loop in loops.items():
                speed, peak = measured(loop)
                print(f"  {name:12} {speed:7.0f} images/s  {peak / 1e9:.2f} GB", flush=True)


def make_images(folder: Path, count: int) -> None:
    random = np.random.default_rng(0)
    for index in range(count):
        coarse = random.integers(0, 256, (12, 16, 3), dtype=np.uint8)
        path = folder / f"class{index % 10}" / f"{index:06}.jpg"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(coarse).resize((500, 375), Image.Resampling.BICUBIC).save(path, quality=90)


def streamed(folder: Path, workers: int) -> Iterable[object]:
    """An epoch as trp-train reads it."""
    device = torch.device("cpu")
    reading = Reading(BATCH, 0, SIZE, Augmentation(), workers, (0, 1), device, NORMALISE, 10)
    samples = FolderSamples(folder)
    return StreamedBatches(IndexedSource(samples, torch.arange(0), reading), reading).epoch(0)


def plain_loop(folder: Path, workers: int) -> Iterable[object]:
    """An epoch as torchvision's own examples read it."""
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import v2

    change = v2.Compose(
        [
            v2.RandomResizedCrop(SIZE, antialias=True),
            v2.RandomHorizontalFlip(),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(NORMALISE.mean, NORMALISE.std),
        ]
    )
    return DataLoader(ImageFolder(str(folder), change), BATCH, shuffle=True, num_workers=workers, drop_last=True)


def measured(loop: Callable[[], Iterable[object]]) -> tuple[float, int]:
    """Images per second, start-up included, and the highest memory in bytes."""
    peak, ended = [0], threading.Event()

    def watch() -> None:
        while not ended.wait(0.2):
            peak[0] = max(peak[0], tree_memory())

    watcher = threading.Thread(target=watch)
    watcher.start()
    started, batches = time.perf_counter(), 0
    for _ in loop():
        batches += 1
    took = time.perf_counter() - started
    ended.set()
    watcher.join()
    return batches * BATCH / took, peak[0]


def tree_memory() -> int:
    """The memory of this process and its children, shared pages once."""
    process, total = psutil.Process(), 0
    for member in (process, *process.children(recursive=True)):
        try:
            total += member.memory_full_info().pss
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return total


if __name__ == "__main__":
    main()
