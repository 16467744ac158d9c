"""Trained Rank Pruning as a callback of Hugging Face's Trainer.

    python examples/hugging_face_trainer.py out/ [STEPS]

Needs `pip install 'transformers[torch]'`. `make` may as well return `CSGD(...)`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset
from train_low_rank import load_images
from transformers import Trainer, TrainerCallback, TrainingArguments

from models_zoo import find_architecture
from training import CSGD, TRP, TRPSettings, decompose
from trp_export import Macs

SHAPE = (1, 3, 32, 32)


class TrainSmaller(TrainerCallback):
    """Trains a network for a cut. `make` gets the optimizer; `batches` of inputs re-estimate batch norm at the end."""

    def __init__(self, make: Callable[[torch.optim.Optimizer], TRP | CSGD], batches: Iterable[Tensor]) -> None:
        self._make, self._batches = make, batches

    def on_train_begin(self, args: Any, state: Any, control: Any, *, optimizer: Any, **others: Any) -> None:
        self.method = self._make(getattr(optimizer, "optimizer", optimizer))  # Without the wrapper of accelerate.

    def on_train_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        self.plan = self.method.finish(self._batches)


class Classifier(nn.Module):
    """A model as the Trainer wants it: it returns its loss."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixel_values: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.network(pixel_values)
        return {"loss": functional.cross_entropy(logits, labels), "logits": logits}


class Images(Dataset[dict[str, Tensor]]):
    """The images of models_zoo."""

    def __init__(self) -> None:
        self.images, self.labels = load_images()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"pixel_values": self.images[index], "labels": self.labels[index]}


def main(folder: Path, steps: int = 12) -> None:
    images, network = Images(), find_architecture("resnet20").build(10)
    settings = TRPSettings(rule=Macs(2), period=5, nuclear=1e-3)
    smaller = TrainSmaller(lambda optimizer: TRP(network, optimizer, settings, SHAPE), images.images.split(64))
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=32,
        learning_rate=1e-3,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    Trainer(Classifier(network), arguments, train_dataset=images, callbacks=[smaller]).train()
    print(f"{smaller.method.step} steps; {len(smaller.plan.changed)} layers have low rank")
    torch.save(decompose(network, smaller.plan), folder / "factors.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
