"""Trained Rank Pruning in a loop made of timm's parts, as in timm's train.py: two lines more.

    python examples/timm_loop.py out/ [STEPS]

Needs `pip install timm`. In train.py itself the line `trp = ...` goes below `optimizer = create_optimizer_v2(...)`, and
`trp.finish(...)` below the loop over epochs. `CSGD` takes the place of `TRP` where filters are to become equal.
"""

from __future__ import annotations

import sys
from pathlib import Path

import timm
import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from timm.utils import ModelEmaV3
from torch.nn import functional
from train_low_rank import load_images

from training import TRP, TRPSettings, decompose
from trp_export import Macs

SHAPE = (1, 3, 32, 32)


def main(folder: Path, steps: int = 12) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    images, labels = load_images()
    model = timm.create_model("resnet10t", num_classes=10)
    optimizer = create_optimizer_v2(model, opt="sgd", lr=0.05, momentum=0.9, weight_decay=1e-4)
    scheduler = CosineLRScheduler(optimizer, t_initial=steps)
    averaged = ModelEmaV3(model, decay=0.9)

    trp = TRP(model, optimizer, TRPSettings(rule=Macs(1.5), period=5), SHAPE)  # the first line
    model.train()
    for step in range(steps):
        chosen = torch.randint(len(images), (32,))
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(images[chosen]), labels[chosen])
        loss.backward()
        optimizer.step()
        averaged.update(model, step)
        scheduler.step(step)
    plan = trp.finish(images.split(64))  # the second line

    print(f"loss {loss.item():.3f}; {len(plan.changed)} layers of {len(plan.decisions)} have low rank")
    torch.save(decompose(model, plan), folder / "factors.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
