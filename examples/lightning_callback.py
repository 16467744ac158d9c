"""Trained Rank Pruning as a callback of Lightning's Trainer.

    python examples/lightning_callback.py out/ [STEPS]

Needs `pip install lightning`. `make` may as well return `CSGD(...)`. Lightning saves the state of the callback in its
checkpoints, so `trainer.fit(..., ckpt_path=...)` continues to the same weights.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import lightning
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset
from train_low_rank import load_images

from models_zoo import find_architecture
from training import CSGD, TRP, TRPSettings, decompose
from trp_export import Macs

SHAPE = (1, 3, 32, 32)


class TrainSmaller(lightning.Callback):
    """Trains `network` for a cut. `make` gets the optimizer; `batches` of inputs re-estimate batch norm at the end."""

    def __init__(self, make: Callable[[torch.optim.Optimizer], TRP | CSGD], batches: Iterable[Tensor]) -> None:
        self._make, self._batches, self._state = make, batches, {}
        self.method: TRP | CSGD | None = None

    def on_train_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        self.method = self._make(trainer.optimizers[0])
        if self._state:
            self.method.load_state_dict(self._state)

    def on_train_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        self.plan = self.method.finish(self._batches)

    def state_dict(self) -> dict[str, Any]:
        return {} if self.method is None else self.method.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._state = state


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


def main(folder: Path, steps: int = 12) -> None:
    torch.manual_seed(0)
    images, labels = load_images()
    network = find_architecture("resnet20").build(10)
    settings = TRPSettings(rule=Macs(2), period=5, nuclear=1e-3)
    smaller = TrainSmaller(lambda optimizer: TRP(network, optimizer, settings, SHAPE), images.split(64))
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
    print(f"{smaller.method.step} steps; {len(smaller.plan.changed)} layers have low rank")
    torch.save(decompose(network, smaller.plan), folder / "factors.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
