"""Trained Rank Pruning in a training loop of your own, then the export of what it trained.

    python examples/train_low_rank.py out/ [STEPS]

A few steps on the 256 images of models_zoo show how it is used; they are far too few to keep the accuracy.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from models_zoo import find_architecture
from training import TRP, TRPSettings
from trp_export import Benchmark, Energy, InputOptions, Options, compress

ZOO = Path(__file__).resolve().parents[1] / "models_zoo"


def load_images() -> tuple[torch.Tensor, torch.Tensor]:
    """(256, 3, 32, 32) normalised, and their labels."""
    data = np.load(ZOO / "images" / "cifar10-256.npz")
    images = torch.from_numpy(data["images"]).permute(0, 3, 1, 2).float() / 255
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).view(2, 1, 3, 1, 1)
    return (images - mean) / std, torch.from_numpy(data["labels"]).long()


def main(folder: Path, steps: int = 20) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    images, labels = load_images()
    network = find_architecture("resnet20").build(10)
    network.load_state_dict(torch.load(ZOO / "weights" / "resnet20-cifar10.pt", weights_only=True)["state_dict"])
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)

    settings = TRPSettings(rule=Energy(0.8), period=5, nuclear=1e-3)
    trp = TRP(network, optimizer, settings, input_shape=(1, 3, 32, 32))
    network.train()
    for step in range(steps):  # your loop as it is
        chosen = torch.randint(len(images), (64,))
        optimizer.zero_grad()
        loss = functional.cross_entropy(network(images[chosen]), labels[chosen])
        loss.backward()
        optimizer.step()
        if step % 5 == 4:
            print(f"step {step + 1}: loss {loss.item():.3f}")
    plan = trp.finish(images.split(64))  # exactly low rank, batch norm re-estimated

    cut = sum(bool(decision.branches) for decision in plan.decisions)
    print(f"{cut} of {len(plan.decisions)} layers have low rank")
    report = compress(
        network.eval(),
        Options(
            rule=Energy(0.999999),  # the ranks that training left, exactly
            inputs=InputOptions.of(1, 3, 32, 32),
            benchmark=Benchmark(run=False),
            output=folder / "resnet20.onnx",
        ),
    )
    assert report.after is not None
    print(f"multiply-adds: {report.before.macs:,} -> {report.after.macs:,}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
