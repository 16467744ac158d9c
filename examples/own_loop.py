"""A network trained to be made smaller, in a training loop of your own, then exported.

    python examples/own_loop.py out/ [STEPS] [METHOD]

METHOD is trp (low rank), csgd (filters that become equal) or dagger (filters that can be spared). A few steps on the
256 images of models_zoo show how it is used; they are far too few to keep the accuracy.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from models_zoo import find_architecture
from training import CSGD, TRP, CSGDSettings, Dagger, DaggerSettings, TRPSettings
from trp_export import Benchmark, Calibration, Energy, InputOptions, Macs, Options, compress

ZOO = Path(__file__).resolve().parents[1] / "models_zoo"
SHAPE = (1, 3, 32, 32)
Method = TRP | CSGD | Dagger


def make_method(
    name: str, model: nn.Module, optimizer: torch.optim.Optimizer, state: Mapping[str, Any] | None = None
) -> Method:
    """The method that trains the model for 1.5x fewer multiply-adds, continued from its state_dict() if given."""
    if name == "csgd":
        return CSGD(model, optimizer, CSGDSettings(rule=Macs(1.5)), SHAPE, state)
    if name == "dagger":
        return Dagger(model, optimizer, DaggerSettings(rule=Macs(1.5), gate_steps=5), SHAPE, state)
    return TRP(model, optimizer, TRPSettings(rule=Macs(1.5), period=5, nuclear=1e-3), SHAPE, state)


def load_images() -> tuple[torch.Tensor, torch.Tensor]:
    """(256, 3, 32, 32) normalised, and their labels."""
    data = np.load(ZOO / "images" / "cifar10-256.npz")
    images = torch.from_numpy(data["images"]).permute(0, 3, 1, 2).float() / 255
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).view(2, 1, 3, 1, 1)
    return (images - mean) / std, torch.from_numpy(data["labels"]).long()


def export(network: nn.Module, method: Method, file: Path) -> None:
    """Write the network as trained: at the ranks that TRP left, or without the filters that another method freed."""
    report = compress(
        network.eval(),
        Options(
            rule=Energy(0.999999) if isinstance(method, TRP) else None,
            calibration=Calibration("none"),  # What training left needs no images to be cut.
            inputs=InputOptions.of(*SHAPE),
            benchmark=Benchmark(run=False),
            output=file,
        ),
    )
    assert report.after is not None
    print(f"{method.step} steps; multiply-adds: {report.before.macs:,} -> {report.after.macs:,}")


def main(folder: Path, steps: int = 20, name: str = "trp") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    images, labels = load_images()
    network = find_architecture("resnet20").build(10)
    network.load_state_dict(torch.load(ZOO / "weights" / "resnet20-cifar10.pt", weights_only=True)["state_dict"])
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)

    method = make_method(name, network, optimizer)
    network.train()
    for step in range(steps):  # your loop as it is
        chosen = torch.randint(len(images), (64,))
        optimizer.zero_grad()
        loss = functional.cross_entropy(network(images[chosen]), labels[chosen])
        loss.backward()
        optimizer.step()
        if step % 5 == 4:
            print(f"step {step + 1}: loss {loss.item():.3f}")
    method.finish(images.split(64))  # ready for the cut, batch norm re-estimated
    export(network, method, folder / "resnet20.onnx")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:3]), *sys.argv[3:4])
