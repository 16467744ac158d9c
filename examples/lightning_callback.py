"""A network trained to be made smaller by a callback of Lightning's Trainer.

    python examples/lightning_callback.py out/ [STEPS] [METHOD]

Needs `pip install lightning`. METHOD is trp, csgd or dagger. Lightning saves the state of the callback in its
checkpoints, so `trainer.fit(..., ckpt_path=...)` continues to the same weights.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import lightning
import torch
from own_loop import Method, export, load_images, make_method
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from models_zoo import find_architecture


class TrainSmaller(lightning.Callback):
    """Makes `network` smaller by the method of this name; `batches` of inputs re-estimate batch norm at the end."""

    def __init__(self, name: str, network: nn.Module, batches: Iterable[Tensor]) -> None:
        self._name, self._network, self._batches = name, network, batches
        self._state: dict[str, Any] | None = None
        self.method: Method | None = None

    def on_train_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        self.method = make_method(self._name, self._network, trainer.optimizers[0], self._state)

    def on_train_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        self.method.finish(self._batches)

    def state_dict(self) -> dict[str, Any]:
        return {} if self.method is None else self.method.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._state = state or None


class Classifier(lightning.LightningModule):
    """A LightningModule as anybody has it."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        inputs, labels = batch
        return functional.cross_entropy(self.network(inputs), labels)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01, momentum=0.9)


def main(folder: Path, steps: int = 12, name: str = "trp") -> None:
    torch.manual_seed(0)
    images, labels = load_images()
    network = find_architecture("resnet20").build(10)
    smaller = TrainSmaller(name, network, images.split(64))
    trainer = lightning.Trainer(
        max_steps=steps,
        callbacks=[smaller],
        accelerator="cpu",
        default_root_dir=folder,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Classifier(network), DataLoader(TensorDataset(images, labels), batch_size=32, shuffle=True))
    export(network, smaller.method, folder / "resnet20.onnx")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:3]), *sys.argv[3:4])
