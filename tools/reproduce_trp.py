"""Train, cut, export and test ResNet-20 and ResNet-32 by the methods of the TRP paper and by ours, on CIFAR-10.

    python tools/reproduce_trp.py -o runs/trp [ROW ...]

Every row is one trp-train run from the pretrained weights. Interrupt it at any time: the same command continues, and a
finished row is not trained again. The test images are read once per row, after its last epoch, through the exported
ONNX file in onnxruntime. With --latency the exports are timed. tools/data.py fetches data and weights.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import data
from common import IMAGENET, accuracy

from models_zoo.registry import WEIGHTS
from trp_export.inputs.images import load_images

# The paper's method from pretrained weights: lambda 3e-4 at m = 1 becomes 6e-3 on projection steps at m = 20.
NUCLEAR, PERIOD = "6e-3", "20"
PAPER = ("--epochs", "8", "--lr", "0.01", "--weight-decay", "1e-4", "--ramp", "none", "--factors", "0", "--no-teacher")
OURS = ("--schedule", "cosine", "--nesterov", "--weight-decay", "5e-4", "--ramp", "cosine")


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the table: options of trp-train, or of trp-export alone where nothing is trained."""

    name: str
    train: tuple[str, ...] = ()
    export: tuple[str, ...] = ()
    teacher: str = ""
    arch: str = "resnet20"


def _paper(name: str, scheme: str, ratio: str, *more: str) -> Row:
    return Row(name, ("--scheme", scheme, "--macs", ratio, "--period", PERIOD, *PAPER, *more))


def _ours(
    name: str,
    scheme: str,
    ratio: str,
    epochs: str,
    factors: str,
    *more: str,
    lr: str = "0.05",
    teacher: str = "resnet20",
    arch: str = "resnet20",
) -> Row:
    options = ("--scheme", scheme, "--macs", ratio, "--period", PERIOD, "--nuclear", NUCLEAR, *OURS, "--lr", lr, *more)
    return Row(name, (*options, "--epochs", epochs, "--factors", factors), teacher=teacher, arch=arch)


def _long(name: str, ratio: str, arch: str = "resnet20") -> Row:
    """Two to three hours on one core, with a teacher that is better than the start."""
    more = ("--align", "4", "--ema", "0.998", "--compile")
    return _ours(name, "spatial", ratio, "68", "60", *more, lr="0.1", teacher="vgg8-factors-2.5x", arch=arch)


ROWS = (
    Row("origin", export=("--energy", "1")),
    Row("direct-channel-2.17x", export=("--scheme", "channel", "--macs", "2.17")),
    Row("direct-spatial-2.84x", export=("--scheme", "spatial", "--macs", "2.84")),
    _ours("spatial-2.84x", "spatial", "2.84", "24", "15"),
    _ours("channel-2.17x", "channel", "2.17", "20", "12"),
    _ours("spatial-3.6x", "spatial", "3.6", "24", "15"),
    _long("spatial-2.84x-long", "2.84"),
    _long("spatial-3.6x-long", "3.6"),
    _long("resnet32-spatial-3.4x-long", "3.4", arch="resnet32"),
    _paper("nuclear-only-spatial-2.84x", "spatial", "2.84", "--nuclear", NUCLEAR, "--no-project"),
    _paper("trp1-channel-2.17x", "channel", "2.17"),
    _paper("trp1-nu-channel-2.17x", "channel", "2.17", "--nuclear", NUCLEAR),
    _paper("trp2-spatial-2.84x", "spatial", "2.84"),
    _paper("trp2-spatial-2.84x-momentum-projected", "spatial", "2.84", "--momentum-at-projection", "project"),
    _paper("trp2-spatial-2.84x-momentum-reset", "spatial", "2.84", "--momentum-at-projection", "reset"),
    _paper("trp2-spatial-2.84x-energy-preserved", "spatial", "2.84", "--preserve-energy"),
    _paper("trp2-nu-spatial-2.84x", "spatial", "2.84", "--nuclear", NUCLEAR),
    _paper("decoupling-2.04x", "decouple", "2.04"),
    _paper("decoupling-nu-2.04x", "decouple", "2.04", "--nuclear", NUCLEAR),
)


@click.command()
@click.option("--validation", default=1_000, help="Images held back from training, to look at while it runs.")
@click.option("--latency", is_flag=True, help="Time the exports as well; needs a quiet machine.")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True)
@click.argument("rows", nargs=-1)
def main(validation: int, latency: bool, output: Path, rows: tuple[str, ...]) -> None:
    """The rows of the table, trained where they are not yet."""
    images = data.cifar10()
    unknown = set(rows) - {row.name for row in ROWS}
    if unknown:
        raise click.UsageError(f"unknown row {unknown.pop()}; one of {', '.join(row.name for row in ROWS)}.")
    output.mkdir(parents=True, exist_ok=True)
    results_file = output / "results.json"
    results = read_results(results_file)
    test = load_images(images / "test_half.npz", IMAGENET)
    for row in ROWS:
        if rows and row.name not in rows:
            continue
        if row.name not in results or (latency and results[row.name]["latency"] is None):
            found = carry_out(row, images, data.network(row.arch), validation, latency, output, test)
            results = read_results(results_file) | {row.name: found}  # Other rows may have been run beside this one.
            results_file.write_text(json.dumps(results, indent=2) + "\n")
    print(table(results))


def read_results(results_file: Path) -> dict[str, Any]:
    return json.loads(results_file.read_text()) if results_file.exists() else {}


def table(results: dict[str, Any]) -> str:
    """All finished rows as Markdown."""
    lines = ["| row | accuracy | MACs ratio | speed-up |", "|---|---|---|---|"]
    for row in (row for row in ROWS if row.name in results):
        result = results[row.name]
        lines.append(
            f"| {row.name} | {100 * result['accuracy']:.2f} of {result['images']} images "
            f"| {result['macs_ratio']:.2f}x | {result['latency'] or 'not measured'} |"
        )
    return "\n".join(lines)


def carry_out(
    row: Row, images: Path, weights: Path, validation: int, latency: bool, output: Path, test: Any
) -> dict[str, Any]:
    model, options = weights, ("--arch", row.arch, *row.export)
    if row.train:
        model, options = _trained(row, images, weights, validation, output / row.name), ()
    onnx_file = output / f"{row.name}.onnx"
    timing = () if latency else ("--no-bench",)
    done = run("trp_export.cli.export", str(model), *options, *timing, "--json", "-o", str(onnx_file), capture=True)
    report = json.loads(done)
    return {
        "accuracy": accuracy(onnx_file, test) / 100,
        "images": len(test),
        "macs_ratio": report["before"]["macs"] / report["after"]["macs"],
        "params": report["after"]["params"],
        "latency": _speed_up(report["latency"]),
    }


def _trained(row: Row, images: Path, weights: Path, validation: int, folder: Path) -> Path:
    """The row's network, once it is trained."""
    if (folder / "last.pt").exists():
        run("training.cli", "--resume", "-o", str(folder))
    else:
        teacher = _teacher(row.teacher) if row.teacher else ()
        run(
            "training.cli",
            *("--arch", row.arch, "--data", f"npz:{images}", "--init", str(weights), *teacher),
            *("--validation", str(validation), "--keep", "last", "--amp", "-o", str(folder), *row.train),
        )
    return folder / "model.pt"


def _teacher(name: str) -> tuple[str, ...]:
    """Options for a teacher, one that is shipped or one of the original networks."""
    shipped = WEIGHTS / f"{name}.pt"
    if shipped.exists():
        return ("--teacher", str(shipped))
    return ("--teacher", str(data.network(name)), "--teacher-arch", name)


def _speed_up(latency: dict[str, Any] | None) -> str | None:
    """The result against the original, with its interval."""
    if latency is None:
        return None
    ratio = latency["models"][1]["ratio"]
    return f"{ratio['value']:.2f}x [{ratio['low']:.2f}, {ratio['high']:.2f}]" if ratio["high"] else "not resolved"


def run(module: str, *arguments: str, capture: bool = False) -> str:
    done = subprocess.run(
        [sys.executable, "-c", f"from {module} import main; main()", *arguments],
        stdout=subprocess.PIPE if capture else None,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(done.returncode)
    return done.stdout or ""


if __name__ == "__main__":
    main()
