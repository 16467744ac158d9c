"""Train CIFAR networks for long: dense, low-rank and with fewer channels, with three seeds, side by side on one GPU.

    python tools/long_training.py plan                  # the ranks, by trp-export: a minute for each network
    python tools/long_training.py train --seconds 500   # on a GPU: so long in all; --epochs 40 150 fixes the epochs
    python tools/long_training.py export                # ONNX files, accuracy on test_half, and the table

2,500 training images are held out of all training here. First the teachers, and the networks that start from nothing,
are trained on labels; then the networks of the table on the mean answer of the teachers. Most of these start from the
public weights, which have seen the images held out. The test images are read once for each file, by `export`.
"""

from __future__ import annotations

import copy
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
from as_dense import AsDense, Program, program_of
from common import CIFAR_RESNETS, CLASSES, IMAGENET, accuracy, append, draw_images, missing, read
from reproduce_trp import run
from side_by_side import Recipe, Trainee, Views, answers, scores, train
from torch import Tensor, nn
from torch.nn import functional

from models_zoo import find_architecture
from models_zoo.registry import WEIGHTS
from training import CSGD, CSGDSettings, Dagger, DaggerSettings, Macs, Magnitude, MagnitudeSettings, Widths
from training.checkpoint import DENSE, FACTORS, TrainedNetwork, load_network, save_network
from training.cut import as_trained, decompose, plan_from_file
from training.loss import training_loss
from trp_export.inputs.images import load_images

HELD_OUT, SPLIT_SEED = 2_500, 0
TEACHERS = ("teacher-0", "teacher-1")
FIRST_SHARE = 0.22  # of the time, for the first group
FINISH_S = 1.0  # to finish and save a network
SEED_OF_TAUGHT = 100  # so that their order is not that of the first group
TEMPERATURE, SHARE, SMOOTHING = 4.0, 0.9, 0.1
SHAPE = (1, 3, 32, 32)
STATISTICS = 4_000  # images by which batch norm is estimated after a merge

Channels = CSGDSettings | MagnitudeSettings | DaggerSettings


@dataclass(frozen=True, slots=True)
class Network:
    """A network of the table. With a ratio of multiply-adds its layers are factors; `channels` makes it thinner.

    It starts from the public weights, or, `fresh`, from those of the first group.
    """

    title: str
    arch: str
    ratio: str = ""
    channels: Channels | None = None
    fresh: bool = False


@dataclass(frozen=True, slots=True)
class Row:
    """A network and the seed of its order and its views."""

    network: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.network}-seed-{self.seed}"


WIDTHS = Widths(0.625)
NETWORKS = {
    "resnet20": Network("ResNet-20", "resnet20"),
    "resnet20-2.84x": Network("ResNet-20, low rank", "resnet20", "2.84"),
    "resnet20-3.6x": Network("ResNet-20, low rank", "resnet20", "3.6"),
    "resnet20-csgd": Network("ResNet-20, 5/8 of every width by C-SGD", "resnet20", channels=CSGDSettings(WIDTHS)),
    "resnet20-magnitude": Network(
        "ResNet-20, 5/8 of every width, smallest filters removed", "resnet20", channels=MagnitudeSettings(WIDTHS)
    ),
    "resnet20-dagger": Network("ResNet-20, Dagger, a budget of 2.54x", "resnet20", channels=DaggerSettings(Macs(2.54))),
    "resnet32": Network("ResNet-32", "resnet32"),
    "resnet32-3.4x": Network("ResNet-32, low rank", "resnet32", "3.4"),
    "fresh-resnet20": Network("ResNet-20 from nothing", "resnet20", fresh=True),
    "fresh-resnet20-2.84x": Network("its factors", "resnet20", "2.84", fresh=True),
    "fresh-resnet20-3.6x": Network("its factors", "resnet20", "3.6", fresh=True),
    "fresh-resnet20x1.6": Network(
        "ResNet-20, 1.6 times as wide, from nothing, to its width by C-SGD",
        "resnet20x1.6",
        channels=CSGDSettings(Widths(0.616)),
        fresh=True,
    ),
    "fresh-resnet32": Network("ResNet-32 from nothing", "resnet32", fresh=True),
    "fresh-resnet32-3.4x": Network("its factors", "resnet32", "3.4", fresh=True),
    "fresh-vgg8": Network("vgg8 from nothing", "vgg8", fresh=True),
    "fresh-vgg8-2.5x": Network("its factors", "vgg8", "2.5", fresh=True),
}
SEEDS = 3
ROWS = tuple(Row(network, seed) for network in NETWORKS for seed in range(SEEDS))
GATED = tuple(f"resnet14-{gates}-t{iterations}" for iterations in (2, 3) for gates in ("rignet", "dignet"))
WITH_GATES = ("resnet14", "resnet20", "resnet32", *GATED)


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
    """Train CIFAR networks for long: dense, low-rank and with fewer channels, with three seeds."""
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
    common = ("--scheme", "spatial", "--align", "4", "--keep-slow-pairs", "--no-bench")
    for network in NETWORKS.values():
        onnx_file = _plan_of(runs, network).with_suffix(".onnx")
        if network.ratio and network.arch in CIFAR_RESNETS and not onnx_file.exists():
            options = ("--arch", network.arch, "--macs", network.ratio, "-o", str(onnx_file))
            run("trp_export.cli.export", str(data.network(network.arch)), *inputs, *common, *options)
    shipped = torch.load(WEIGHTS / "vgg8-factors-2.5x.pt", weights_only=True)
    _plan_of(runs, NETWORKS["fresh-vgg8-2.5x"]).write_text(json.dumps({"schema": 1, "plan": shipped["plan"]}))


@main.command("train")
@click.option("--seconds", type=float, help="Choose the epochs so that the training takes so long.")
@click.option("--epochs", type=int, nargs=2, default=(40, 150), show_default=True, help="With labels, with teachers.")
@click.option("--device", default="cuda", show_default=True)
@click.option("--images", type=int, help="Train on so many images, to try the command.")
@click.option("--only", default="", help="Only rows that begin with one of these, with commas between.")
@click.option("--gates", is_flag=True, help="Train dense networks and those with recurrent gates, on labels alone.")
@click.pass_obj
def train_all(
    runs: Path,
    seconds: float | None,
    epochs: tuple[int, int],
    device: str,
    images: int | None,
    only: str,
    gates: bool,
) -> None:
    """Train the networks of the table, in two groups side by side."""
    torch.backends.cudnn.benchmark = True
    started = time.perf_counter()
    views, held_out = _images(torch.device(device), images)
    wanted = tuple(only.split(","))

    def report(line: str) -> None:
        print(f"[{time.perf_counter() - started:.0f} s] {line}", flush=True)

    def finish(trainees: Sequence[Trainee], recipe: Recipe, count: int) -> None:
        facts = asdict(recipe) | {"epochs": count, "trained_on": len(views), "device": _name_of(device)}
        for trainee in trainees:
            finished = _finished(trainee, views)
            top1, loss = scores(finished, held_out)
            report(f"{trainee.name}: {top1:.2f} % of {len(held_out)} images held out, cross-entropy {loss:.4f}")
            _save(trainee, finished, runs, facts | {"held_out_accuracy": top1, "held_out_loss": loss})

    programs: dict[str, Program] = {}
    build = partial(_as_dense, programs, views.labels.device)
    rows = [row for row in ROWS if row.name.startswith(wanted)]
    starts = dict.fromkeys(NETWORKS[row.network].arch for row in rows if NETWORKS[row.network].fresh)
    first = [_labelled_trainee(name, build) for name in (WITH_GATES if gates else (*TEACHERS, *starts))]
    recipe = Recipe(epochs[0])
    count = train(first, views, recipe, report, None if seconds is None else started + FIRST_SHARE * seconds)
    finish(first, recipe, count)
    if gates:
        return
    dense = {trainee.name: _network_of(trainee) for trainee in first}
    report("the teachers answer all views")
    table = answers([dense[name] for name in TEACHERS], views)
    report(f"{len(views)} images, {views.count} views")

    recipe = Recipe(epochs[1])
    second = [_taught_trainee(row, dense, table, build, runs) for row in rows]
    until = None if seconds is None else started + seconds - FINISH_S * len(second)
    finish(second, recipe, train(second, views, recipe, report, until))
    report("done")


@main.command()
@click.pass_obj
def export(runs: Path) -> None:
    """Write the ONNX file of each network, and measure what is not measured yet."""
    file = runs / "results.json"
    test = load_images(data.cifar10() / "test_half.npz", IMAGENET)
    results: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    for row in ROWS:
        checkpoint, onnx_file = runs / f"{row.name}.pt", runs / "onnx" / f"{row.name}.onnx"
        if row.name in results or not checkpoint.exists():
            continue
        network = NETWORKS[row.network]
        # Without a rule, pairs stay as they are and channels that a method has made equal or unread go.
        options = () if network.ratio or network.channels else ("--skip", "*", "--energy", "1")
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
    for name in WITH_GATES:
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
    for name, network in NETWORKS.items():
        seeds = [results[row.name] for row in ROWS if row.network == name and row.name in results]
        if seeds:
            accuracies = [seed["accuracy"] for seed in seeds]
            error = f" ± {np.std(accuracies, ddof=1) / len(seeds) ** 0.5:.2f}" if len(seeds) > 1 else ""
            title = network.title + (f", {network.ratio}x" if network.ratio else "")
            lines.append(
                f"| {title} | {seeds[0]['macs'] / 1e6:.1f} | {seeds[0]['params']:,} "
                f"| {np.mean(accuracies):.2f}{error} | {', '.join(f'{value:.2f}' for value in accuracies)} |"
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


def _labelled_trainee(name: str, build: Callable[..., AsDense]) -> Trainee:
    seed = TEACHERS.index(name) if name in TEACHERS else 0
    network = _built(name, seed)
    module = network if name in GATED else build("teacher" if name in TEACHERS else name, network)
    return Trainee(name, module, _labelled, seed)


def _taught_trainee(
    row: Row, dense: dict[str, nn.Module], table: Tensor, build: Callable[..., AsDense], runs: Path
) -> Trainee:
    network = NETWORKS[row.network]
    start = copy.deepcopy(dense[network.arch]) if network.fresh else _public(network.arch)
    module = decompose(start, _read_plan(runs, network)) if network.ratio else start
    whole = build(network.arch, module.to(table.device))
    trainee = Trainee(row.name, whole, partial(_taught, table), SEED_OF_TAUGHT + row.seed)
    if network.channels is not None:
        trainee.method = partial(_add_method, module, network.channels)
        trainee.first_steps = network.channels.gate_steps if isinstance(network.channels, DaggerSettings) else 0
    return trainee


def _add_method(network: nn.Module, settings: Channels, optimizer: torch.optim.Optimizer) -> CSGD | Dagger | Magnitude:
    if isinstance(settings, CSGDSettings):
        return CSGD(network, optimizer, settings, SHAPE)
    if isinstance(settings, DaggerSettings):
        return Dagger(network, optimizer, settings, SHAPE)
    return Magnitude(network, optimizer, settings, SHAPE)


def _finished(trainee: Trainee, views: Views) -> nn.Module:
    """The network as it is saved: pairs with their weights, channels ready for their removal."""
    network = trainee.module.finish() if isinstance(trainee.module, AsDense) else trainee.module
    if trainee.attached is not None:
        images = torch.arange(min(STATISTICS, len(views)), device=views.labels.device)
        parts = zip(torch.split(images, 500), torch.split(images % views.count, 500), strict=True)
        trainee.attached.finish(views.pixels(*part) for part in parts)
    return network


def _network_of(trainee: Trainee) -> nn.Module:
    return trainee.module.network if isinstance(trainee.module, AsDense) else trainee.module


def _as_dense(programs: dict[str, Program], device: torch.device, arch: str, network: nn.Module) -> AsDense:
    """The network as a dense one, with one program for each architecture."""
    if arch not in programs:
        programs[arch] = program_of(Teacher() if arch == "teacher" else find_architecture(arch).build(None), device)
    return AsDense(network, programs[arch])


def _built(name: str, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return Teacher() if name in TEACHERS else find_architecture(name).build(None)


def _public(arch: str) -> nn.Module:
    return load_network(data.network(arch), arch).module


def _read_plan(runs: Path, network: Network) -> Any:
    return plan_from_file(_plan_of(runs, network), find_architecture(network.arch).build(None), SHAPE)


def _plan_of(runs: Path, network: Network) -> Path:
    return runs / "plans" / f"{network.arch}-{network.ratio}x.json"


def _labelled(module: nn.Module, pixels: Tensor, labels: Tensor, images: Tensor, views: Tensor) -> Tensor:
    """Cross-entropy of the passes of a gated network, the last one weighted most: 1, 2, ..., T."""
    passes = train_gated.answers_of(module, pixels)
    losses = [functional.cross_entropy(one.float(), labels) for one in passes]
    total = sum((number * loss for number, loss in enumerate(losses, 1)), torch.zeros_like(losses[0]))
    return total / sum(range(1, len(losses) + 1))


def _taught(table: Tensor, module: AsDense, pixels: Tensor, labels: Tensor, images: Tensor, views: Tensor) -> Tensor:
    answer = table[images, views]
    return training_loss(module(pixels), labels, answer, temperature=TEMPERATURE, share=SHARE, smoothing=SMOOTHING)


def _save(trainee: Trainee, network: nn.Module, runs: Path, facts: dict[str, Any]) -> None:
    """The checkpoint of a network, and the facts of its training beside it."""
    if trainee.name in TEACHERS:
        return
    rows = {row.name: NETWORKS[row.network] for row in ROWS}
    row = rows.get(trainee.name, Network(trainee.name, trainee.name, fresh=True))
    saved = TrainedNetwork(
        network,
        row.arch,
        SHAPE,
        classes=CLASSES,
        licence="MIT" if row.fresh else "BSD-2-Clause",
        plan=as_trained(_read_plan(runs, row)).to_json() if row.ratio else None,
        kind=FACTORS if row.ratio else DENSE,
    )
    history = [{"epoch": number, "loss": loss} for number, loss in enumerate(trainee.losses, 1)]
    save_network(saved, runs / f"{trainee.name}.pt", history)
    (runs / f"{trainee.name}.json").write_text(json.dumps(facts, indent=2) + "\n")


def _name_of(device: str) -> str:
    name: Callable[[str], str] = torch.cuda.get_device_name
    return name(device) if device.startswith("cuda") else device


if __name__ == "__main__":
    main()
