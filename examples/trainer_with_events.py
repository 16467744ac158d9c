"""A network trained to be made smaller by a trainer that calls functions by event, as Ultralytics' does.

    python examples/trainer_with_events.py out/ [STEPS] [METHOD]

METHOD is trp, csgd or dagger. With Ultralytics: `model.add_callback("on_train_start", smaller.start)` and
`("on_train_end", smaller.finish)`. Its trainers have `model` and `optimizer`, as has the one below, which stands in for
it. torch.fx cannot trace Ultralytics' own networks, so trp alone can train these.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from own_loop import export, load_images, make_method
from torch import Tensor
from torch.nn import functional

from models_zoo import find_architecture


class TrainSmaller:
    """Makes the model of a trainer smaller by the method of this name; `batches` of inputs re-estimate batch norm."""

    def __init__(self, name: str, batches: Iterable[Tensor]) -> None:
        self._name, self._batches = name, batches

    def start(self, trainer: Trainer) -> None:
        self.method = make_method(self._name, trainer.model, trainer.optimizer)

    def finish(self, trainer: Trainer) -> None:
        self.method.finish(self._batches)


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


def main(folder: Path, steps: int = 12, name: str = "trp") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    images, labels = load_images()
    smaller, trainer = TrainSmaller(name, images.split(64)), Trainer()
    trainer.add_callback("on_train_start", smaller.start)
    trainer.add_callback("on_train_end", smaller.finish)
    trainer.train(images, labels, steps)
    export(trainer.model, smaller.method, folder / "resnet20.onnx")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:3]), *sys.argv[3:4])
