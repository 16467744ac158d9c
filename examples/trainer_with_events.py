"""Trained Rank Pruning in a trainer that calls functions by event, as Ultralytics' does.

    python examples/trainer_with_events.py out/ [STEPS]

With Ultralytics: `model.add_callback("on_train_start", smaller.start)` and `("on_train_end", smaller.finish)`. Its
trainers have `model` and `optimizer`, as has the one below, which stands in for it. `CSGD` may take the place of `TRP`.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional
from train_low_rank import load_images

from models_zoo import find_architecture
from training import TRP, TRPSettings, decompose
from trp_export import Macs

SHAPE = (1, 3, 32, 32)


class TrainSmaller:
    """Trains the model of a trainer for a cut; `batches` of inputs re-estimate batch norm at the end."""

    def __init__(self, settings: TRPSettings, batches: Iterable[Tensor]) -> None:
        self._settings, self._batches = settings, batches

    def start(self, trainer: Trainer) -> None:
        self.trp = TRP(trainer.model, trainer.optimizer, self._settings, SHAPE)

    def finish(self, trainer: Trainer) -> None:
        self.plan = self.trp.finish(self._batches)


class Trainer:
    """Accumulates gradients and clips them, and calls functions by event."""

    def __init__(self) -> None:
        self.model = find_architecture("resnet20").build(10)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01, momentum=0.9)
        self._callbacks: dict[str, list[Callable[[Trainer], None]]] = defaultdict(list)

    def add_callback(self, event: str, function: Callable[[Trainer], None]) -> None:
        self._callbacks[event].append(function)

    def run(self, event: str) -> None:
        for function in self._callbacks[event]:
            function(self)

    def train(self, images: Tensor, labels: Tensor, steps: int, accumulate: int = 2) -> None:
        self.run("on_train_start")
        self.model.train()
        for _ in range(steps):
            for _ in range(accumulate):
                chosen = torch.randint(len(images), (16,))
                functional.cross_entropy(self.model(images[chosen]), labels[chosen]).backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 10.0)
            self.optimizer.step()
            self.optimizer.zero_grad()
        self.run("on_train_end")


def main(folder: Path, steps: int = 12) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    images, labels = load_images()
    smaller = TrainSmaller(TRPSettings(rule=Macs(2), period=5, nuclear=1e-3), images.split(64))
    trainer = Trainer()
    trainer.add_callback("on_train_start", smaller.start)
    trainer.add_callback("on_train_end", smaller.finish)
    trainer.train(images, labels, steps)
    print(f"{smaller.trp.step} steps; {len(smaller.plan.changed)} layers have low rank")
    torch.save(decompose(trainer.model, smaller.plan), folder / "factors.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
