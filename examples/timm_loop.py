"""A network trained to be made smaller in a loop of timm's parts, as in timm's train.py: two lines more.

    python examples/timm_loop.py out/ [STEPS] [METHOD]

Needs `pip install timm`. METHOD is trp, csgd or dagger. In train.py itself the line `method = ...` goes below
`optimizer = create_optimizer_v2(...)`, and `method.finish(...)` below the loop over epochs.
"""

from __future__ import annotations

import sys
from pathlib import Path

import timm
import torch
from own_loop import export, load_images, make_method
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from timm.utils import ModelEmaV3
from torch.nn import functional


def main(folder: Path, steps: int = 12, name: str = "trp") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    images, labels = load_images()
    model = timm.create_model("resnet10t", num_classes=10)
    optimizer = create_optimizer_v2(model, opt="sgd", lr=0.05, momentum=0.9, weight_decay=1e-4)
    scheduler = CosineLRScheduler(optimizer, t_initial=steps)
    averaged = ModelEmaV3(model, decay=0.9)

    method = make_method(name, model, optimizer)  # the first line
    model.train()
    for step in range(steps):
        chosen = torch.randint(len(images), (32,))
        optimizer.zero_grad()
        functional.cross_entropy(model(images[chosen]), labels[chosen]).backward()
        optimizer.step()
        averaged.update(model, step)
        scheduler.step(step)
    method.finish(images.split(64))  # the second line
    export(model, method, folder / "resnet10t.onnx")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:3]), *sys.argv[3:4])
