"""Train factors of CIFAR networks for long, with strong teachers and three seeds, all side by side on one GPU.

    python tools/long_training.py plan                  # the ranks, by trp-export: a minute for each network
    python tools/long_training.py train --seconds 500   # on a GPU: so long in all; --epochs 40 150 fixes the epochs
    python tools/long_training.py export                # ONNX files, accuracy on test_half, and the table

2,500 training images are held out from the first epoch on. First the teachers, the dense networks and the networks with
recurrent gates are trained on labels; then factors, cut from those dense networks, and the dense networks again are
trained on the mean answer of the teachers. The test images are read once for each file, by `export`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click
import data
import numpy as np
import torch
import train_gated
from common import CLASSES, IMAGENET, accuracy, append, draw_images, missing, read
from reproduce_trp import run
from side_by_side import Recipe, Trainee, Views, answers, train
from side_by_side import accuracy as accuracy_of
from torch import Tensor, nn
from torch.nn import functional

from models_zoo import find_architecture
from models_zoo.registry import WEIGHTS
from training.checkpoint import DENSE, FACTORS, TrainedNetwork, save_network
from training.cut import as_trained, decompose, plan_from_file
from training.loss import training_loss
from trp_export.inputs.images import load_images

HELD_OUT, SPLIT_SEED = 2_500, 0
TEACHERS = ("teacher-0", "teacher-1")
FIRST_SHARE = 0.22  # of the time, for the first group
CAPTURE_S = 2.5  # to capture the step of a network
SEED_OF_TAUGHT = 100  # so that their order is not that of the first group
TEMPERATURE, SHARE, SMOOTHING = 4.0, 0.9, 0.1
SHAPE = (1, 3, 32, 32)


@dataclass(frozen=True, slots=True)
class Row:
    """A network of the table; with a ratio of multiply-adds its layers are factors."""

    arch: str
    ratio: str = ""
    seed: int = 0

    @property
    def network(self) -> str:
        return f"{self.arch}-{self.ratio}x" if self.ratio else self.arch

    @property
    def name(self) -> str:
        return f"{self.network}-seed-{self.seed}"


GATED = tuple(f"resnet14-{gates}-t{iterations}" for iterations in (2, 3) for gates in ("rignet", "dignet"))
LABELLED = ("resnet14", "resnet20", "resnet32", *GATED)
FACTORED = (("resnet20", "2.84"), ("resnet20", "3.6"), ("resnet32", "3.4"))
TAUGHT = (
    *(Row(arch, ratio, seed) for arch, ratio in FACTORED for seed in range(3)),
    *(Row("resnet20"), Row("resnet32"), Row("vgg8"), Row("vgg8", "2.5")),
)


class Teacher(nn.Module):
    """A residual network of nine layers, after David Page, "How to Train Your ResNet", 2018."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.stem, self.layer1 = _conv(3, 64), _pooled(64, 128)
        self.residual1 = nn.Sequential(_conv(128, 128), _conv(128, 128))
        self.layer2, self.layer3 = _pooled(128, 256), _pooled(256, 512)
        self.residual3 = nn.Sequential(_conv(512, 512), _conv(512, 512))
        self.linear = nn.Linear(512, classes, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer1(self.stem(x))
        x = self.layer3(self.layer2(x + self.residual1(x)))
        x = x + self.residual3(x)
        logits: Tensor = self.linear(x.amax((2, 3)))
        return 0.125 * logits


def _conv(in_channels: int, channels: int) -> nn.Sequential:
    conv = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(channels), nn.ReLU())


def _pooled(in_channels: int, channels: int) -> nn.Sequential:
    return nn.Sequential(*_conv(in_channels, channels), nn.MaxPool2d(2))


@click.group()
@click.option("--runs", type=click.Path(path_type=Path), default=Path("runs/long"), show_default=True)
@click.pass_context
def main(context: click.Context, runs: Path) -> None:
    """Train factors of CIFAR networks for long, with strong teachers and three seeds."""
    for name in ("plans", "onnx"):
        (runs / name).mkdir(parents=True, exist_ok=True)
    context.obj = runs


@main.command()
@click.pass_obj
def plan(runs: Path) -> None:
    """Choose ranks in blocks of 4 channels, as ARM processors compute, by 1,024 training images of seed 0."""
    calibration = runs / "plans" / "images.npz"
    if not calibration.exists():
        np.savez(calibration, images=draw_images(data.cifar10(), 1_024, seed=0))
    mean, std = (",".join(map(str, values or ())) for values in (IMAGENET.mean, IMAGENET.std))
    inputs = ("--calib", str(calibration), "--mean", mean, "--std", std)
    for arch, ratio in FACTORED:
        onnx_file = _plan_of(runs, Row(arch, ratio)).with_suffix(".onnx")
        if not onnx_file.exists():
            options = ("--scheme", "spatial", "--macs", ratio, "--align", "4", "--keep-slow-pairs", "--no-bench")
            weights = str(data.network(arch))
            run("trp_export.cli.export", weights, "--arch", arch, *inputs, *options, "-o", str(onnx_file))
    shipped = torch.load(WEIGHTS / "vgg8-factors-2.5x.pt", weights_only=True)
    _plan_of(runs, Row("vgg8", "2.5")).write_text(json.dumps({"schema": 1, "plan": shipped["plan"]}))


@main.command("train")
@click.option("--seconds", type=float, help="Choose the epochs so that the training takes so long.")
@click.option("--epochs", type=int, nargs=2, default=(40, 150), show_default=True, help="With labels, with teachers.")
@click.option("--device", default="cuda", show_default=True)
@click.option("--images", type=int, help="Train on so many images, to try the command.")
@click.option("--without", default="", help="Leave out rows that begin with one of these, with commas between.")
@click.pass_obj
def train_all(
    runs: Path, seconds: float | None, epochs: tuple[int, int], device: str, images: int | None, without: str
) -> None:
    """Train the networks of the table, in two groups side by side."""
    torch.backends.cudnn.benchmark = True
    started = time.perf_counter()
    left_out = tuple(filter(None, without.split(",")))
    views, held_out = _images(torch.device(device), images)

    def report(line: str) -> None:
        print(f"[{time.perf_counter() - started:.0f} s] {line}", flush=True)

    def finish(trainees: Sequence[Trainee], recipe: Recipe, count: int) -> None:
        facts = asdict(recipe) | {"epochs": count, "trained_on": len(views), "device": _name_of(device)}
        for trainee in trainees:
            measured = accuracy_of(trainee.module, held_out)
            report(f"{trainee.name}: {measured:.2f} % of {len(held_out)} images held out")
            _save(trainee, runs, facts | {"held_out_accuracy": measured})

    first = [_labelled_trainee(name) for name in (*TEACHERS, *LABELLED) if not name.startswith(left_out)]
    recipe = Recipe(epochs[0])
    count = train(first, views, recipe, report, None if seconds is None else FIRST_SHARE * seconds)
    finish(first, recipe, count)
    dense = {trainee.name: trainee.module for trainee in first}
    report("the teachers answer all views")
    table = answers([dense[name] for name in TEACHERS], views)
    report(f"{len(views)} images, {views.count} views")

    rows = [row for row in TAUGHT if not row.name.startswith(left_out)]
    second = [
        Trainee(row.name, _factors_of(row, dense, runs), partial(_taught, table), SEED_OF_TAUGHT + row.seed)
        for row in rows
    ]
    recipe = Recipe(epochs[1])
    left = None if seconds is None else seconds - (time.perf_counter() - started) - CAPTURE_S * len(second)
    finish(second, recipe, train(second, views, recipe, report, left))
    report("done")


@main.command()
@click.pass_obj
def export(runs: Path) -> None:
    """Write the ONNX file of each network, and measure what is not measured yet."""
    file = runs / "results.json"
    test = load_images(data.cifar10() / "test_half.npz", IMAGENET)
    results: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    for row in TAUGHT:
        checkpoint, onnx_file = runs / f"{row.name}.pt", runs / "onnx" / f"{row.name}.onnx"
        if row.name in results or not checkpoint.exists():
            continue
        options = () if row.ratio else ("--skip", "*", "--energy", "1")
        common = ("--no-bench", "--calib", "none", "--quiet", "--json", "-o", str(onnx_file))
        done = run("trp_export.cli.export", str(checkpoint), *options, *common, capture=True)
        after = json.loads(done)["after"]
        results[row.name] = {
            "accuracy": accuracy(onnx_file, test),
            "images": len(test),
            "macs": after["macs"],
            "params": after["params"],
            **json.loads((runs / f"{row.name}.json").read_text()),
        }
        file.write_text(json.dumps(results, indent=2) + "\n")
    print(_table(results))


@main.command()
@click.option("--results", type=click.Path(path_type=Path), default=Path("runs/gated/results.jsonl"))
@click.pass_obj
def gated(runs: Path, results: Path) -> None:
    """Let the dense networks and those with gates settle, as train_gated.py does, and add them to its rows."""
    task = train_gated.cifar10()
    for name in LABELLED:
        facts = json.loads((runs / f"{name}.json").read_text())
        schedule = train_gated.Schedule(facts["epochs"], 0)
        for job in missing(results, train_gated.jobs(task, schedule, None, (name,))):
            trained = train_gated.Run(name, task, schedule, None, runs)
            if not trained.history:
                checkpoint = torch.load(runs / f"{name}.pt", weights_only=True)
                trained.model.load_state_dict(checkpoint["state_dict"])
                trained.history = checkpoint["history"]
            while not trained.finished:
                trained.train_epoch()
            torch.save(trained.checkpoint(), runs / f"{name}-settled.pt")
            append(results, {**job, **train_gated.result(trained)})
    print(train_gated.table(read(results)))


def _table(results: dict[str, Any]) -> str:
    """The mean over the seeds of each network as Markdown."""
    lines = ["| network | million MACs | parameters | accuracy, % | of each seed |", "|---|---|---|---|---|"]
    for network in dict.fromkeys(row.network for row in TAUGHT):
        seeds = [results[row.name] for row in TAUGHT if row.network == network and row.name in results]
        if seeds:
            accuracies = [seed["accuracy"] for seed in seeds]
            lines.append(
                f"| {network} | {seeds[0]['macs'] / 1e6:.1f} | {seeds[0]['params']:,} | {np.mean(accuracies):.2f} "
                f"| {', '.join(f'{value:.2f}' for value in accuracies)} |"
            )
    return "\n".join(lines)


def _images(device: torch.device, count: int | None) -> tuple[Views, Views]:
    """The images to train on, and those held out."""
    pixels, labels = [], []
    for number in range(1, 6):
        with np.load(data.data_folder() / "data" / "cifar10" / f"train_{number}.npz") as archive:
            pixels.append(torch.from_numpy(archive["images"]))
            labels.append(torch.from_numpy(archive["labels"].astype(np.int64)))
    x, y = torch.cat(pixels), torch.cat(labels)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(SPLIT_SEED))
    held_out, trained = order[:HELD_OUT], order[HELD_OUT:][:count]
    mean, std = torch.tensor(IMAGENET.mean), torch.tensor(IMAGENET.std)
    return Views(x[trained], y[trained], mean, std, device), Views(x[held_out], y[held_out], mean, std, device)


def _labelled_trainee(name: str) -> Trainee:
    is_teacher = name in TEACHERS
    seed = TEACHERS.index(name) if is_teacher else 0
    loss = partial(_labelled, smoothing=SMOOTHING if is_teacher else 0.0)
    return Trainee(name, _built(name, seed), loss, seed)


def _built(name: str, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return Teacher() if name in TEACHERS else find_architecture(name).build(None)


def _factors_of(row: Row, dense: dict[str, nn.Module], runs: Path) -> nn.Module:
    """The dense network, cut by its plan where the row has a ratio; new weights where none was trained."""
    module = _built(row.arch, row.seed)
    if row.arch in dense:
        module.load_state_dict(dense[row.arch].state_dict())
    return decompose(module, _read_plan(runs, row)) if row.ratio else module


def _read_plan(runs: Path, row: Row) -> Any:
    return plan_from_file(_plan_of(runs, row), find_architecture(row.arch).build(None), SHAPE)


def _plan_of(runs: Path, row: Row) -> Path:
    return runs / "plans" / f"{row.network}.json"


def _labelled(
    module: nn.Module, pixels: Tensor, labels: Tensor, images: Tensor, views: Tensor, *, smoothing: float
) -> Tensor:
    """Cross-entropy of the passes of a gated network, the last one weighted most: 1, 2, ..., T."""
    passes = train_gated.answers_of(module, pixels)
    losses = [functional.cross_entropy(one.float(), labels, label_smoothing=smoothing) for one in passes]
    total = sum((number * loss for number, loss in enumerate(losses, 1)), torch.zeros_like(losses[0]))
    return total / sum(range(1, len(losses) + 1))


def _taught(table: Tensor, module: nn.Module, pixels: Tensor, labels: Tensor, images: Tensor, views: Tensor) -> Tensor:
    return training_loss(
        module(pixels), labels, table[images, views], temperature=TEMPERATURE, share=SHARE, smoothing=SMOOTHING
    )


def _save(trainee: Trainee, runs: Path, facts: dict[str, Any]) -> None:
    """The checkpoint of a network, and the facts of its training beside it."""
    if trainee.name in TEACHERS:
        return
    rows = {row.name: row for row in TAUGHT}
    row = rows.get(trainee.name, Row(trainee.name))
    factored = as_trained(_read_plan(runs, row)).to_json() if row.ratio else None
    network = TrainedNetwork(
        trainee.module,
        row.arch,
        SHAPE,
        classes=CLASSES,
        licence="MIT",
        plan=factored,
        kind=FACTORS if row.ratio else DENSE,
    )
    history = [{"epoch": number, "loss": loss} for number, loss in enumerate(trainee.losses, 1)]
    save_network(network, runs / f"{trainee.name}.pt", history)
    (runs / f"{trainee.name}.json").write_text(json.dumps(facts, indent=2) + "\n")


def _name_of(device: str) -> str:
    name: Callable[[str], str] = torch.cuda.get_device_name
    return name(device) if device.startswith("cuda") else device


if __name__ == "__main__":
    main()
