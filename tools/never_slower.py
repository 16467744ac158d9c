"""Fill the tables of docs/results/never-slower.md: what exports measure beside the original, by energy and threads.

    TRP_DATA=SHARED python tools/never_slower.py                         # what is missing; a second call continues
    TRP_DATA=SHARED python tools/never_slower.py --networks resnet20 --energies 0.98 --threads 1
    python tools/never_slower.py --write                                 # the tables, into the page

Each row is one export with its benchmark: original, result, and the original cleaned up without low rank,
side by side in one run. Needs a quiet machine. `clean-up` stands for no rule that makes pairs: exact rewrites alone.
SHARED holds `models/real` and the ResNets, listed in `tools/data.py`; networks of torchvision have random weights.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
from common import Listed, append, put_into_page, read

from trp_export import Benchmark, Calibration, Energy, InputOptions, LoadOptions, Options, TrpError, compress

PAGE = Path(__file__).resolve().parents[1] / "docs" / "results" / "never-slower.md"
ROWS = Path(__file__).resolve().parents[1] / "runs" / "never_slower.jsonl"
MODELS = ROWS.parent / "never_slower_models"
CLEAN_UP = "clean-up"
BUDGET_S = 10.0


@dataclass(frozen=True, slots=True)
class Network:
    """A file below the data folder, or an architecture of torchvision. `shape` is that of `input` where it is open."""

    name: str
    file: str | None = None
    arch: str | None = None
    input: str | None = None
    shape: tuple[int, ...] | None = None


NETWORKS = {
    network.name: network
    for network in (
        Network("resnet20", "models/resnet20-12fca82f.th", "resnet20", None, (1, 3, 32, 32)),
        Network("resnet32", "models/resnet32-d509ac18.th", "resnet32", None, (1, 3, 32, 32)),
        Network("resnet18"),
        Network("mobilenet_v2"),
        Network("efficientnet_lite0", "models/real/efficientnet_lite0.onnx"),
        Network("yolox_nano", "models/real/yolox_nano.onnx"),
        Network("pp-ocr detector", "models/real/ch_PP-OCRv4_det_infer.onnx", None, "x", (1, 3, 640, 640)),
        Network("waifu2x", "models/real/waifu2x_photo_x2.onnx", None, "Input1", (1, 3, 96, 96)),
        Network("realesr", "models/real/realesr_animevideov3_x4.onnx", None, "data", (1, 3, 64, 64)),
        Network("resnet50"),
        Network("vgg16"),
    )
}


@click.command(help=(__doc__ or "").split("\n", maxsplit=1)[0])
@click.option("--networks", type=Listed(choices=tuple(NETWORKS)), default=tuple(NETWORKS), help="Names, with commas.")
@click.option("--energies", type=Listed(), default=("0.9", "0.98", "0.999", CLEAN_UP), help=f"Such as 0.95,{CLEAN_UP}.")
@click.option("--threads", type=Listed(int), default=(1, 2), help="Threads of the benchmark.")
@click.option("--write", is_flag=True, help="Put all rows into the page.")
def main(networks: tuple[str, ...], energies: tuple[str, ...], threads: tuple[int, ...], *, write: bool) -> None:
    ROWS.parent.mkdir(exist_ok=True)
    done = {(row["network"], row["energy"], row["threads"]) for row in read(ROWS)}
    for name, energy, count in ((n, e, t) for n in networks for e in energies for t in threads):
        if not write and (name, energy, count) not in done:
            append(ROWS, measure(NETWORKS[name], energy, count))
    if write:
        put_into_page(PAGE, "table", "\n".join(lines(read(ROWS))))


def measure(network: Network, energy: str, threads: int) -> dict[str, Any]:
    """One export with its benchmark; a result without pairs is the original cleaned up, which is not timed again."""
    row = {"network": network.name, "energy": energy, "threads": threads}
    model = model_of(network)
    with TemporaryDirectory() as folder:
        options = Options(
            None if energy == CLEAN_UP else Energy(float(energy)),
            calibration=Calibration("none"),
            load=LoadOptions(arch=network.arch),
            inputs=InputOptions(((network.input, network.shape),) if network.shape else ()),
            output=Path(folder) / "small.onnx",
            benchmark=Benchmark(threads=threads, budget_s=BUDGET_S),
        )
        try:
            report = compress(model, options)
        except TrpError as error:
            return row | {"error": str(error).splitlines()[0]}
    changed = f"{len(report.plan.changed)} of {len(report.plan.decisions)}"
    rewritten = [note for note in report.notes if note.startswith("rewritten without loss: ")]
    return row | {
        "pairs": changed,
        "total": str(report.ratio or "as cleaned up"),
        "low_rank": str(report.low_rank_ratio or ""),
        "rewritten": rewritten,
    }


def model_of(network: Network) -> Path:
    """The file to export; networks of torchvision are made once, with random weights of seed 0."""
    if network.file is not None:
        return Path(os.environ["TRP_DATA"]) / network.file
    import torch
    import torchvision

    file = MODELS / f"{network.name}.onnx"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(0)
        net = torchvision.models.get_model(network.name, weights=None).eval()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(net, (torch.zeros(1, 3, 224, 224),), file, dynamo=False, opset_version=17)
    return file


def lines(rows: list[dict[str, Any]]) -> Iterator[str]:
    """The table of all rows."""
    yield "| network | energy | threads | pairs | beside the original | beside the original cleaned up |"
    yield "|---|---|---|---|---|---|"
    for row in rows:
        start = f"| {row['network']} | {row['energy']} | {row['threads']} "
        outcome = f"{row['error']} | | " if "error" in row else f"{row['pairs']} | {row['total']} | {row['low_rank']} "
        yield f"{start}| {outcome}|"


if __name__ == "__main__":
    main()
