"""Train the dense CIFAR ResNet that ships in models_zoo/weights, from scratch.

    python tools/train_cifar_resnet.py --depth 20 --epochs 60 -o runs/resnet20

Interrupt it at any time: the same command continues after the last finished epoch. test_half is read once, after the
last epoch. tools/data.py fetches the images.
"""

from __future__ import annotations

import json
import math
import time
from pathlib import Path

import click
import data
import numpy as np
import torch
from common import CLASSES, IMAGENET
from torch import Tensor
from torch.nn import functional

from models_zoo.cifar_resnet import CifarResNet

MEAN, STD = IMAGENET.mean or (), IMAGENET.std or ()
VALIDATION_COUNT = 5_000
BATCH = 128


def load(path: Path) -> tuple[Tensor, Tensor]:
    """Images as normalised float32 (N, 3, 32, 32) in channels-last memory, labels as int64 (N,)."""
    with np.load(path) as archive:
        images, labels = archive["images"], archive["labels"]
    x = (torch.from_numpy(images).float() / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
    return x.permute(0, 3, 1, 2), torch.from_numpy(labels.astype(np.int64))


def augment(x: Tensor, generator: torch.Generator) -> Tensor:
    """Random crop out of 4 pixels of zero padding, and a horizontal flip, drawn per image."""
    count, _, height, width = x.shape
    padded = functional.pad(x, (4, 4, 4, 4)).permute(0, 2, 3, 1)
    top, left = torch.randint(0, 9, (2, count, 1), generator=generator)
    flip = torch.rand(count, 1, generator=generator) < 0.5
    columns = torch.arange(width).expand(count, width)
    columns = left + torch.where(flip, width - 1 - columns, columns)
    rows = top + torch.arange(height)
    crop = padded[torch.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]]
    return crop.permute(0, 3, 1, 2)


@torch.no_grad()
def accuracy(model: CifarResNet, x: Tensor, y: Tensor) -> float:
    model.eval()
    parts = zip(torch.split(x, 500), torch.split(y, 500), strict=True)
    hits = sum(int((model(a).argmax(1) == b).sum()) for a, b in parts)
    return hits / len(y)


def learning_rate(progress: float, peak: float) -> float:
    """Linear warm-up over the first 5 % of training, then a cosine to zero."""
    return peak * (progress / 0.05 if progress < 0.05 else 0.5 * (1 + math.cos(math.pi * (progress - 0.05) / 0.95)))


@click.command()
@click.option("--depth", default=20)
@click.option("--epochs", default=60)
@click.option("--peak-lr", default=0.1)
@click.option("--weight-decay", default=5e-4)
@click.option("--seed", default=0)
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True)
def main(depth: int, epochs: int, peak_lr: float, weight_decay: float, seed: int, output: Path) -> None:
    """Train the dense CIFAR ResNet that ships in models_zoo/weights."""
    output.mkdir(parents=True, exist_ok=True)
    folder = data.cifar10()
    shards = [load(folder / f"train_{i}.npz") for i in range(1, 6)]
    x, y = torch.cat([s[0] for s in shards]), torch.cat([s[1] for s in shards])
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    held_out, kept = order[:VALIDATION_COUNT], order[VALIDATION_COUNT:]

    torch.manual_seed(seed)
    model = CifarResNet(depth).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), peak_lr, momentum=0.9, nesterov=True, weight_decay=weight_decay)
    history: list[dict[str, float]] = []
    resume = output / "last.pt"
    if resume.exists():
        state = torch.load(resume, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        history = state["history"]

    steps = len(kept) // BATCH
    for epoch in range(len(history), epochs):
        generator = torch.Generator().manual_seed(seed * 1000 + epoch)
        shuffled = kept[torch.randperm(len(kept), generator=generator)]
        model.train()
        started, total = time.perf_counter(), 0.0
        for step in range(steps):
            chosen = shuffled[step * BATCH : (step + 1) * BATCH]
            batch = augment(x[chosen], generator).contiguous(memory_format=torch.channels_last)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate((epoch + step / steps) / epochs, peak_lr)
            with torch.autocast("cpu", torch.bfloat16):
                loss = functional.cross_entropy(model(batch).float(), y[chosen])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            total += float(loss.detach())
        seconds = time.perf_counter() - started
        held = accuracy(model, x[held_out], y[held_out])
        history.append({"epoch": epoch + 1, "loss": total / steps, "validation": held, "seconds": seconds})
        print(json.dumps(history[-1]), flush=True)
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "history": history}
        torch.save(state, resume.with_suffix(".tmp"))
        resume.with_suffix(".tmp").replace(resume)

    test = accuracy(model, *load(folder / "test_half.npz"))
    print(f"test_half: {test:.4f} of 5000 images, seed {seed}, {epochs} epochs")
    checkpoint = {
        "format": "trp-checkpoint",
        "version": 1,
        "arch": f"resnet{depth}",
        "input_shape": [1, 3, 32, 32],
        "mean": list(MEAN),
        "std": list(STD),
        "classes": list(CLASSES),
        "licence": "MIT",
        "state_dict": {key: value.contiguous() for key, value in model.state_dict().items()},
        "plan": None,
        "history": history,
    }
    torch.save(checkpoint, output / f"resnet{depth}.pt")


if __name__ == "__main__":
    main()
