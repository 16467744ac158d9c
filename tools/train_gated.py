"""Train networks with recurrent gates, and plain ones for comparison, by one schedule.

    python tools/train_gated.py -o runs/gated --epochs 164                           # all rows for CIFAR-10
    python tools/train_gated.py -o runs/gated --epochs 2 resnet14 resnet14-rignet-t2
    python tools/train_gated.py -o runs/gated --epochs 40 --camvid DIR               # all rows for CamVid
    python tools/train_gated.py -o runs/gated --epochs 8 --trunk dense.pt resnet20-rignet-t2

It ends with the table of all rows in the folder. Interrupt it at any time: the same command continues after the last
finished epoch, and a finished row is not trained again. --only-epochs ends the command after that many epochs. The
loss is the mean over the passes of a gated network, the last one counting most. The passes share one batch norm, whose
running statistics are a mixture that no pass has in training; so after the schedule every network, gated or not, takes
about 400 steps more with these statistics held fixed. The images for testing are read once
a row, after its last epoch: test_half of CIFAR-10, and the part `val` of CamVid, by which nothing is chosen. CamVid
is a folder with `train` and `val`, each of NAME.jpg at 160 x 120 and NAME.label.png with classes 0 to 10 (11 is
void).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import data
import numpy as np
import torch
from common import CLASSES, IMAGENET, append, missing, read
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from train_cifar_resnet import augment, learning_rate, load

from models_zoo import find_architecture
from models_zoo.gated import Gated
from training.layers import find_layers, total_macs

ROWS = {
    "cifar10": (
        *("resnet14", "resnet20", "resnet32"),
        *("resnet14-rignet-t2", "resnet14-dignet-t2", "resnet14-rignet-t3", "resnet14-dignet-t3"),
    ),
    "camvid": ("resnet14-seg", "resnet14-seg-rignet-t2", "resnet14-seg-dignet-t2"),
}
CAMVID_CLASSES, VOID = 11, 11
WEIGHT_DECAY = 5e-4
LR = 0.1  # at its peak
SETTLING_STEPS, SETTLING_LR, LARGEST_GRADIENT = 400, 0.002, 1.0
MEAN, STD = torch.tensor(IMAGENET.mean or ()), torch.tensor(IMAGENET.std or ())


@dataclass(frozen=True, slots=True)
class Task:
    """Images (n, 3, h, w) and labels of one data set; `score` is the metric of logits and labels, as a share of 1."""

    name: str
    train: tuple[Tensor, Tensor]
    test: Callable[[], tuple[Tensor, Tensor]]
    augment: Callable[[Tensor, Tensor, torch.Generator], tuple[Tensor, Tensor]]
    score: Callable[[Tensor, Tensor], float]
    batch: int

    def of(self, count: int | None, seed: int) -> Task:
        """The task with `count` of the images to train on."""
        if count is None:
            return self
        x, y = self.train
        chosen = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[:count]
        return replace(self, train=(x[chosen], y[chosen]))


@dataclass(frozen=True, slots=True)
class Schedule:
    """SGD with Nesterov momentum, a short warm-up and a cosine over `epochs`; then steps with batch norm held fixed."""

    epochs: int
    seed: int


def cifar10() -> Task:
    folder = data.cifar10()
    shards = [load(folder / f"train_{number}.npz") for number in range(1, 6)]
    x, y = torch.cat([shard[0] for shard in shards]), torch.cat([shard[1] for shard in shards])
    return Task(
        "cifar10",
        (x, y),
        lambda: load(folder / "test_half.npz"),
        lambda x, y, generator: (augment(x, generator), y),
        lambda classes, y: float((classes == y).float().mean()),
        128,
    )


def camvid(folder: Path) -> Task:
    return Task("camvid", _camvid(folder / "train"), lambda: _camvid(folder / "val"), shifted, mean_iou, 8)


def _camvid(folder: Path) -> tuple[Tensor, Tensor]:
    labels = sorted(folder.glob("*.label.png"))
    images = [path.with_name(path.name.replace(".label.png", ".jpg")) for path in labels]
    x = torch.stack([torch.from_numpy(np.array(Image.open(path).convert("RGB"))) for path in images])
    y = torch.stack([torch.from_numpy(np.array(Image.open(path))) for path in labels])
    return ((x.float() / 255 - MEAN) / STD).permute(0, 3, 1, 2), y.long()


def shifted(x: Tensor, y: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """All images of a batch moved by up to 16 pixels, the border void, and half of them mirrored."""
    height, width = x.shape[2:]
    down, right = torch.randint(0, 33, (2,), generator=generator).tolist()
    x = functional.pad(x, (16, 16, 16, 16))[:, :, down : down + height, right : right + width]
    y = functional.pad(y, (16, 16, 16, 16), value=VOID)[:, down : down + height, right : right + width]
    mirrored = torch.rand(len(x), generator=generator) < 0.5
    x = torch.where(mirrored[:, None, None, None], x.flip(3), x)
    return x, torch.where(mirrored[:, None, None], y.flip(2), y)


def mean_iou(classes: Tensor, y: Tensor) -> float:
    """Over the classes, from the counts of all images together; void pixels are left out."""
    known = y != VOID
    counts = torch.bincount(y[known] * CAMVID_CLASSES + classes[known], minlength=CAMVID_CLASSES**2)
    table = counts.reshape(CAMVID_CLASSES, CAMVID_CLASSES).double()
    union = table.sum(0) + table.sum(1) - table.diagonal()
    return float((table.diagonal() / union.clamp_min(1))[union > 0].mean())


def loss_of(answers: list[Tensor], y: Tensor) -> Tensor:
    """Cross-entropy of the passes, the last one weighted most: 1, 2, ..., T."""
    losses = [
        functional.cross_entropy(answer.float(), y, ignore_index=-100 if y.ndim == 1 else VOID) for answer in answers
    ]
    weights = torch.arange(1, len(losses) + 1) / sum(range(1, len(losses) + 1))
    return (torch.stack(losses) * weights).sum()


def answers_of(model: nn.Module, x: Tensor) -> list[Tensor]:
    return model.answers(x) if isinstance(model, Gated) else [model(x)]


@torch.no_grad()
def scores(model: nn.Module, task: Task) -> list[float]:
    """The metric on the images for testing after each pass, in percent."""
    model.eval()
    x, y = task.test()
    parts = [[answer.argmax(1) for answer in answers_of(model, part)] for part in torch.split(x, 100)]
    return [round(100 * task.score(torch.cat(classes), y), 2) for classes in zip(*parts, strict=True)]


class Run:
    """The training of one network, an epoch at a time; its state is on disk after each."""

    def __init__(self, name: str, task: Task, schedule: Schedule, trunk: Path | None, folder: Path) -> None:
        self.name, self.task, self.schedule = name, task, schedule
        self._state = folder / f"{name}.last.pt"
        torch.manual_seed(schedule.seed)
        self.model = find_architecture(name).build(None)
        self._trained: nn.Module = self.model
        if trunk is not None and isinstance(self.model, Gated):
            self.model.trunk.load_state_dict(torch.load(trunk, weights_only=True)["state_dict"])
            self.model.trunk.requires_grad_(False)
            self._trained = self.model.gates
        self.model = self.model.eval().to(memory_format=torch.channels_last)
        self.optimizer = torch.optim.SGD(
            self._trained.parameters(), LR, momentum=0.9, nesterov=True, weight_decay=WEIGHT_DECAY
        )
        self.history: list[dict[str, float]] = []
        if self._state.exists():
            state = torch.load(self._state, weights_only=True)
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.history = state["history"]

    @property
    def finished(self) -> bool:
        return len(self.history) >= self.schedule.epochs + self._settling_epochs

    @property
    def _settling_epochs(self) -> int:
        return max(1, round(SETTLING_STEPS / (len(self.task.train[1]) // self.task.batch)))

    def _rate(self, progress: float) -> float:
        """The learning rate after so many epochs."""
        if progress < self.schedule.epochs:
            return learning_rate(progress / self.schedule.epochs, LR)
        return SETTLING_LR * (1 - (progress - self.schedule.epochs) / self._settling_epochs)

    def train_epoch(self) -> None:
        epoch, batch = len(self.history), self.task.batch
        settling = epoch >= self.schedule.epochs
        generator = torch.Generator().manual_seed(self.schedule.seed * 1000 + epoch)
        x, y = self.task.train
        order = torch.randperm(len(x), generator=generator)
        self.model.eval()
        if not settling:
            self._trained.train()  # Batch norm of a trunk that stays as it is keeps its statistics.
        steps, total, started = len(x) // batch, 0.0, time.perf_counter()
        for step in range(steps):
            chosen = order[step * batch : (step + 1) * batch]
            inputs, labels = self.task.augment(x[chosen], y[chosen], generator)
            for group in self.optimizer.param_groups:
                group["lr"] = self._rate(epoch + step / steps)
            with torch.autocast("cpu", torch.bfloat16):
                answers = answers_of(self.model, inputs.contiguous(memory_format=torch.channels_last))
            loss = loss_of(answers, labels)
            self.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            if settling:
                nn.utils.clip_grad_norm_(self._trained.parameters(), LARGEST_GRADIENT)
            self.optimizer.step()
            total += float(loss.detach())
        seconds = round(time.perf_counter() - started, 1)
        self.history.append({"epoch": epoch + 1, "loss": total / steps, "seconds": seconds})
        print(self.name, json.dumps(self.history[-1]), flush=True)
        self._save()

    def checkpoint(self) -> dict[str, Any]:
        """What trp-train and trp-export read."""
        architecture = find_architecture(self.name)
        return {
            "format": "trp-checkpoint",
            "version": 1,
            "arch": self.name,
            "input_shape": list(architecture.input_shape or ()),
            "mean": list(IMAGENET.mean or ()),
            "std": list(IMAGENET.std or ()),
            "classes": list(CLASSES) if self.task.name == "cifar10" else [],
            "licence": "MIT" if self.task.name == "cifar10" else None,
            "state_dict": {key: value.contiguous() for key, value in self.model.state_dict().items()},
            "plan": None,
            "history": self.history,
        }

    def _save(self) -> None:
        state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "history": self.history}
        torch.save(state, self._state.with_suffix(".tmp"))
        self._state.with_suffix(".tmp").replace(self._state)


def result(run: Run) -> dict[str, Any]:
    """A finished row: what the network costs and what it reaches after each pass."""
    layers = find_layers(run.model, find_architecture(run.name).input_shape or ())
    return {
        "params": sum(parameter.numel() for parameter in run.model.parameters()),
        "macs": total_macs(layers),
        "scores": scores(run.model, run.task),
        "images": len(run.task.test()[1]),
    }


def table(results: list[dict[str, Any]]) -> str:
    """All finished rows as Markdown."""
    lines = ["| data | network | parameters | million MACs | after each pass, % | images, epochs, steps held | seed |"]
    lines.append("|---|---|---|---|---|---|---|")
    lines += [
        f"| {row['task']} | {row['network']}{', gates alone' if row['trunk'] else ''} "
        f"| {row['params']:,} | {row['macs'] / 1e6:.1f} "
        f"| {', '.join(f'{score:.2f}' for score in row['scores'])} "
        f"| {row['trained_on']:,}, {row['epochs']}, {row.get('settling', 0)} | {row['seed']} |"
        for row in results
    ]
    return "\n".join(lines)


@click.command()
@click.option("--camvid", "folder", type=click.Path(path_type=Path), help="Train on CamVid in this folder.")
@click.option("--epochs", default=164)
@click.option("--images", type=int, help="Train on so many of the images, drawn by --seed.")
@click.option("--seed", default=0)
@click.option(
    "--trunk",
    type=click.Path(path_type=Path),
    help="Weights of the trunk, which stay as they are: the gates alone are trained.",
)
@click.option("--only-epochs", type=int, help="End after this many epochs; the same command continues.")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True)
@click.argument("networks", nargs=-1)
def main(
    folder: Path | None,
    epochs: int,
    images: int | None,
    seed: int,
    trunk: Path | None,
    only_epochs: int | None,
    output: Path,
    networks: tuple[str, ...],
) -> None:
    """Train networks with recurrent gates, and plain ones for comparison, by one schedule."""
    results, task = output / "results.jsonl", cifar10() if folder is None else camvid(folder)
    task = task.of(images, seed)
    schedule = Schedule(epochs, seed)
    left = float("inf") if only_epochs is None else only_epochs
    states = output / f"{task.name}-{len(task.train[1])}-images-{epochs}-epochs-seed-{seed}"
    states.mkdir(parents=True, exist_ok=True)
    for job in missing(results, jobs(task, schedule, trunk, networks or ROWS[task.name])):
        run = Run(job["network"], task, schedule, trunk, states)
        while not run.finished and left:
            run.train_epoch()
            left -= 1
        if run.finished:
            torch.save(run.checkpoint(), states / f"{run.name}.pt")
            append(results, {**job, **result(run)})
    print(table(read(results)))


def jobs(task: Task, schedule: Schedule, trunk: Path | None, networks: Sequence[str]) -> list[dict[str, Any]]:
    """What tells one row from another."""
    known: dict[str, Any] = {"task": task.name, "epochs": schedule.epochs, "seed": schedule.seed}
    known |= {"trained_on": len(task.train[1]), "trunk": trunk and trunk.stem, "settling": SETTLING_STEPS}
    return [{**known, "network": name} for name in networks]


if __name__ == "__main__":
    main()
