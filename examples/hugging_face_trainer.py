"""A network trained to be made smaller by a callback of Hugging Face's Trainer.

    python examples/hugging_face_trainer.py out/ [STEPS] [METHOD]

Needs `pip install 'transformers[torch]'`. METHOD is trp, csgd or dagger. The state of the callback lies in the
Trainer's checkpoints, so `train(resume_from_checkpoint=True)` continues to the same weights.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from own_loop import export, load_images, make_method
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments

from models_zoo import find_architecture


class TrainSmaller(TrainerCallback):
    """Makes `network` smaller by the method of this name; `batches` of inputs re-estimate batch norm at the end."""

    def __init__(self, name: str, network: nn.Module, batches: Iterable[Tensor]) -> None:
        self._name, self._network, self._batches = name, network, batches

    def on_train_begin(self, args: Any, state: Any, control: Any, *, optimizer: Any, **others: Any) -> None:
        optimizer = getattr(optimizer, "optimizer", optimizer)  # Without the wrapper of accelerate.
        saved = self._file(args, state)
        last = torch.load(saved, weights_only=True) if saved.exists() else None
        self.method = make_method(self._name, self._network, optimizer, last)

    def on_save(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        torch.save(self.method.state_dict(), self._file(args, state))

    def on_train_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        self.method.finish(self._batches)

    def _file(self, args: Any, state: Any) -> Path:
        return Path(args.output_dir, f"checkpoint-{state.global_step}", "method.pt")


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


def main(folder: Path, steps: int = 12, name: str = "trp") -> None:
    images, network = Images(), find_architecture("resnet20").build(10)
    smaller = TrainSmaller(name, network, images.images.split(64))
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=32,
        learning_rate=1e-3,
        save_steps=steps,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    Trainer(Classifier(network), arguments, train_dataset=images, callbacks=[smaller]).train()
    export(network, smaller.method, folder / "resnet20.onnx")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:3]), *sys.argv[3:4])
