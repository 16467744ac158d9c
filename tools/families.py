"""Print the table of docs/results/families.md: one network of every torchvision family, and the networks of
tools/data.py, through `trp-export`.

    python tools/families.py [NAME ...] [--no-found]

Weights of torchvision's networks are random and seeded, so their outputs mean nothing. The table shows whether a family
can be exported, what becomes of its layers, and how exact the rewrite is.
"""

from __future__ import annotations

import json
import platform
import resource
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import data
import torch
import torchvision

FAMILIES = (
    "alexnet",
    "vgg16_bn",
    "resnet18",
    "resnet50",
    "resnext50_32x4d",
    "wide_resnet50_2",
    "densenet121",
    "squeezenet1_1",
    "googlenet",
    "inception_v3",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "mnasnet1_0",
    "shufflenet_v2_x1_0",
    "efficientnet_b0",
    "regnet_y_400mf",
    "convnext_tiny",
)
RULE = ("--macs", "1.5", "--no-bench")

HEADER = """| network | layers changed | kept, and why | MACs | params | rewrite error | output change | CPU s | notes |
|---|---:|---|---:|---:|---:|---:|---:|---|
"""


@click.command()
@click.argument("names", nargs=-1)
@click.option("--found/--no-found", default=True, help="Also the networks of tools/data.py.")
def main(names: tuple[str, ...], found: bool) -> None:
    """The table of docs/results/families.md, for networks NAMES of torchvision or one of every family."""
    print(HEADER, end="")
    with tempfile.TemporaryDirectory() as folder:
        for name, command in _jobs(Path(folder), names or FAMILIES, found):
            print(_row(name, command, Path(folder)), flush=True)
    print(
        f"\nCPU seconds (all threads) of the whole command: reading, exporting from PyTorch, factoring, verifying. "
        f"Python {platform.python_version()}, torch {torch.__version__}, torchvision {torchvision.__version__}, "
        f"{platform.machine()}."
    )


def _jobs(folder: Path, names: Sequence[str], found: bool) -> Iterator[tuple[str, list[str]]]:
    """Names, and the arguments of the command."""
    for name in names:
        yield name, [str(_save_random(name, folder)), "--arch", f"torchvision:{name}"]
    for name in data.NETWORKS if found else ():
        path = data.network(name)
        yield path.name, [str(path), *(("--arch", name) if path.suffix == ".th" else ())]


def _save_random(name: str, folder: Path) -> Path:
    """Random weights; batch norm takes the statistics of a batch of noise, since signals would fade otherwise."""
    torch.manual_seed(0)
    extra: dict[str, Any] = {"init_weights": True} if name in ("googlenet", "inception_v3") else {}
    network = torchvision.models.get_model(name, weights=None, **extra)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    extent = 299 if name == "inception_v3" else 224
    with torch.no_grad():
        network(torch.randn(8, 3, extent, extent))
    path = folder / f"{name}.pt"
    torch.save(network.state_dict(), path)
    return path


def _row(name: str, arguments: list[str], folder: Path) -> str:
    output = folder / f"{name}.trp.onnx"
    command = [sys.executable, "-m", "trp_export.cli.export", *arguments, *RULE, "--json", "-o", str(output)]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    if done.returncode:
        return f"| {name} | exit {done.returncode} | {done.stderr.strip()} |" + " |" * 6
    return _cells(name, json.loads(done.stdout), seconds)


def _cells(name: str, report: dict[str, Any], seconds: float) -> str:
    layers, deviation = report["layers"], report["deviation"]
    kept = Counter(layer["reason"] for layer in layers if layer["scheme"] is None)
    before, after, truncation = report["before"], report["after"], deviation["truncation"]
    cells = (
        name,
        f"{sum(layer['scheme'] is not None for layer in layers)} of {len(layers)}",
        ", ".join(f"{count} {reason}" for reason, count in kept.most_common()) or "none",
        f"{before['macs'] / after['macs']:.2f}x",
        f"{before['params'] / after['params']:.2f}x",
        f"{deviation['rewrite']['relative_l2']:.1e}",
        f"{truncation['relative_l2']:.2f}" if truncation else "cannot run",
        f"{seconds:.0f}",
        "; ".join(note for note in report["notes"] if not note.startswith("not measured")) or "",
    )
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
