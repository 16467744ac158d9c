"""Put recurrent gates on a trained network, cut it, and export it at one, two and three iterations.

    python examples/gated_network.py out/ [STEPS]

A few steps on 128 of the 256 images of models_zoo show how it is used; the same images fit the factors. Accuracy is
measured on the other 128.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import Tensor
from torch.nn import functional

from models_zoo import find_architecture
from trp_export import (
    Benchmark,
    Calibration,
    LoadOptions,
    Macs,
    Options,
    Preprocessing,
    SavedPlan,
    Selection,
    compress,
)

ZOO = Path(__file__).resolve().parents[1] / "models_zoo"
NAME = "resnet20-rignet-t2"


MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SEEN = 128


def load_images(calibration: Path) -> tuple[Tensor, Tensor]:
    """(256, 3, 32, 32) normalised, and their labels. The first of them are written to a file."""
    data = np.load(ZOO / "images" / "cifar10-256.npz")
    np.savez(calibration, images=data["images"][:SEEN])
    images = torch.from_numpy(data["images"]).permute(0, 3, 1, 2).float() / 255
    mean, std = torch.tensor([MEAN, STD]).view(2, 1, 3, 1, 1)
    return (images - mean) / std, torch.from_numpy(data["labels"]).long()


def train(images: Tensor, labels: Tensor, steps: int) -> dict[str, Tensor]:
    """The weights of a gated network: its trunk stays as it is, and the gates are trained for some steps."""
    network = find_architecture(NAME).build(10).eval()
    trunk = torch.load(ZOO / "weights" / "resnet20-cifar10.pt", weights_only=True)["state_dict"]
    network.trunk.load_state_dict(trunk)
    network.trunk.requires_grad_(False)
    optimizer = torch.optim.SGD(network.gates.parameters(), lr=0.1, momentum=0.9)
    for _ in range(steps):
        chosen = torch.randint(len(images), (64,))
        # The answer after each pass is trained, so that the network can stop after any of them.
        losses = [functional.cross_entropy(answer, labels[chosen]) for answer in network.answers(images[chosen])]
        optimizer.zero_grad()
        torch.stack(losses).mean().backward()
        optimizer.step()
    return network.state_dict()


def accuracy(file: Path, images: Tensor, labels: Tensor) -> float:
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"input": images.numpy()})
    return float((logits.argmax(axis=1) == labels.numpy()).mean())


def main(folder: Path, steps: int = 20) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    weights, calibration = folder / "gated.pt", folder / "calibration.npz"
    images, labels = load_images(calibration)
    torch.save(train(images[:SEEN], labels[:SEEN], steps), weights)

    plan = None
    for iterations in (2, 1, 3):
        options = Options(
            rule=Macs(1.5) if plan is None else SavedPlan(plan),  # the ranks chosen at two iterations, for all
            selection=Selection(skip=("gates.*",)) if plan is None else Selection(),  # one iteration has no gates
            load=LoadOptions(arch=NAME, iterations=iterations),
            calibration=Calibration(calibration),
            preprocessing=Preprocessing(mean=MEAN, std=STD),
            benchmark=Benchmark(run=False),
            output=folder / f"gated-t{iterations}.onnx",
        )
        report = compress(weights, options)
        plan = plan or folder / "gated-t2.json"
        file = folder / f"gated-t{iterations}.onnx"
        assert report.after is not None
        print(
            f"{iterations} iterations: multiply-adds {report.before.macs:,} -> {report.after.macs:,}, "
            f"{file.stat().st_size:,} bytes, accuracy {accuracy(file, images[SEEN:], labels[SEEN:]):.1%}"
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
