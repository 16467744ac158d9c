"""Export networks of many kinds, and put what was verified into docs/results/families.md.

    python tools/families.py                                      # torchvision's families, networks of tools/data.py
    python tools/families.py --onnx MODELS --images IMAGES        # and the ONNX files of a folder, also with images
    python tools/families.py --write                              # and put the tables into the page

Each export runs in a process of its own, with a limit on its memory and its time. Results are kept in a file, so that a
second call does only what is missing. torchvision's networks get random weights from a seed, so only their structure
means anything.
"""

from __future__ import annotations

import multiprocessing
import re
import resource
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import common
import data

from trp_export import (
    Benchmark,
    Calibration,
    Energy,
    InputOptions,
    LoadOptions,
    Macs,
    Options,
    Preprocessing,
    Report,
    TrpError,
    compress,
)
from trp_export.inputs.preprocessing import parse_resize
from trp_export.rules import Rule

if TYPE_CHECKING:
    from torch import nn

PAGE = Path(__file__).resolve().parents[1] / "docs" / "results" / "families.md"
FAMILIES = (
    *("alexnet", "vgg16_bn", "resnet18", "resnet50", "resnext50_32x4d", "wide_resnet50_2", "densenet121"),
    *("squeezenet1_1", "googlenet", "inception_v3", "mobilenet_v2", "mobilenet_v3_small", "mnasnet1_0"),
    *("shufflenet_v2_x1_0", "efficientnet_b0", "regnet_y_400mf", "convnext_tiny"),
)
RULES: Mapping[str, Rule] = {"energy 0.95": Energy(0.95), "macs 1.25": Macs(1.25)}
FAMILY_RULES = ("macs 1.25",)
IMAGES = 16
_UNCOUNTED = "MACs do not include "
_NOT_MEASURED = "not measured"
_RANK = re.compile(r"^rank \d+ is not below break-even \d+$")


@dataclass(frozen=True, slots=True)
class Prepared:
    """The folder of images that a network was made for, and how it takes them."""

    folder: str
    preprocessing: Preprocessing


# By the name of the file.
PREPARED = {
    "efficientnet_lite0.onnx": Prepared(
        "imagenet/calib", Preprocessing(mean=(127.0,), std=(128.0,), scale=1.0, resize=256, crop=(224, 224))
    ),
    "yolox_nano.onnx": Prepared(
        "coco/calib", Preprocessing(scale=1.0, colour="bgr", resize=parse_resize("letterbox:416x416:114:corner"))
    ),
    "waifu2x_photo_x2.onnx": Prepared("photos/calib", Preprocessing()),
    "realesr_animevideov3_x4.onnx": Prepared("photos/calib", Preprocessing()),
    "ch_PP-OCRv4_det_infer.onnx": Prepared(
        "photos/calib", Preprocessing(mean=(0.5,), std=(0.5,), colour="bgr", resize=parse_resize("multiple:32"))
    ),
    "ch_ppocr_mobile_v2.0_cls_infer.onnx": Prepared(
        "photos/calib", Preprocessing(mean=(0.5,), std=(0.5,), colour="bgr", resize=parse_resize("cover:192x48"))
    ),
}


@dataclass(frozen=True, slots=True)
class Job:
    """One export. `file` None: a network of torchvision; `images` None: without images."""

    network: str
    rule: str
    file: Path | None = None
    arch: str | None = None
    images: Path | None = None

    @property
    def key(self) -> dict[str, Any]:
        """What tells its result from others."""
        return {"network": self.network, "rule": self.rule, "images": IMAGES if self.images else 0}

    def options(self, output: Path) -> Options:
        """What is asked of the export."""
        extent = 299 if self.network == "inception_v3" else 224
        return Options(
            rule=RULES[self.rule],
            calibration=Calibration(self.images, count=IMAGES) if self.images else Calibration("none"),
            preprocessing=PREPARED[self.network].preprocessing if self.images else Preprocessing(),
            inputs=InputOptions() if self.file else InputOptions.of(1, 3, extent, extent),
            load=LoadOptions(arch=self.arch),
            benchmark=Benchmark(run=False),
            output=output,
        )


@click.command()
@click.argument("names", nargs=-1)
@click.option("--onnx", "folders", multiple=True, type=click.Path(exists=True, path_type=Path), help="More ONNX files.")
@click.option("--images", type=click.Path(exists=True, path_type=Path), help="Folder of imagenet, coco and photos.")
@click.option("--results", type=click.Path(path_type=Path), default=Path("families.jsonl"), show_default=True)
@click.option("--memory", default=8.0, show_default=True, help="GiB that one export may take.")
@click.option("--minutes", default=15.0, show_default=True, help="Minutes that one export may take.")
@click.option("--write", is_flag=True, help="Put the tables into docs/results/families.md.")
def main(
    names: tuple[str, ...],
    folders: tuple[Path, ...],
    images: Path | None,
    results: Path,
    memory: float,
    minutes: float,
    write: bool,
) -> None:
    """Export found networks and one network of every torchvision family, or only NAMES, and print the tables."""
    jobs = [job for job in _jobs(folders, images) if not names or job.network in names]
    pending = common.missing(results, (job.key for job in jobs))
    for job in jobs:
        if job.key in pending:
            common.append(results, {**job.key, **_apart(job, memory, minutes)})
    done = common.read(results)
    tables = _tables([line for job in jobs for line in done if line.items() >= job.key.items()])
    print(tables)
    if write:
        common.put_into_page(PAGE, "tables", tables)


def _jobs(folders: Iterable[Path], images: Path | None) -> Iterator[Job]:
    for file, arch in _found(folders).items():
        prepared = PREPARED.get(file.name) if images else None
        sets = [None] if images is None or prepared is None else [None, images / prepared.folder]
        for folder in sets:
            for rule in RULES:
                yield Job(file.name, rule, file, arch, folder)
    for name in FAMILIES:
        for rule in FAMILY_RULES:
            yield Job(name, rule)


def _found(folders: Iterable[Path]) -> dict[Path, str | None]:
    """The files of found networks, with the architecture of those that hold weights alone."""
    files = {data.network(name): name for name in data.NETWORKS}
    found = {file: name if file.suffix == ".th" else None for file, name in files.items()}
    known = {file.name for file in found}
    more = (file for folder in folders for file in sorted(folder.glob("*.onnx")) if file.name not in known)
    return {**found, **dict.fromkeys(more)}


def _apart(job: Job, memory: float, minutes: float) -> dict[str, Any]:
    """The outcome of a job in a process of its own, whatever happens to that process."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(job, memory, there))
    process.start()
    there.close()
    try:
        if not here.poll(minutes * 60):
            return {"refused": f"took more than {minutes:g} minutes"}
        outcome: dict[str, Any] = here.recv()
        return outcome
    except EOFError:
        process.join()
        return {"refused": f"the process ended with {process.exitcode}"}
    finally:
        process.kill()
        process.join()


def _child(job: Job, memory: float, answer: Connection) -> None:
    most = int(memory * 2**30)
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    with tempfile.TemporaryDirectory() as folder:
        model = job.file or _random_network(job.network)
        try:
            answer.send(_summary(compress(model, job.options(Path(folder) / "small.onnx"))))
        except TrpError as error:
            answer.send({"refused": f"exit {error.exit_code}: {error}"})
        except Exception as error:
            answer.send({"refused": f"crashed: {type(error).__name__}: {error}"})
            raise


def _random_network(name: str) -> nn.Module:
    """Random weights; batch norm takes the statistics of a batch of noise, since signals would fade otherwise."""
    import torch
    import torchvision

    torch.manual_seed(0)
    extra: dict[str, Any] = {"init_weights": True} if name in ("googlenet", "inception_v3") else {}
    network: nn.Module = torchvision.models.get_model(name, weights=None, **extra)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    extent = 299 if name == "inception_v3" else 224
    with torch.no_grad():
        network(torch.randn(8, 3, extent, extent))
    return network.eval()


def _summary(report: Report) -> dict[str, Any]:
    """What the page shows of a report."""
    deviation, after = report.deviation, report.after
    assert deviation is not None
    assert after is not None
    worst = max(deviation.layers, key=lambda layer: layer.excess, default=None)
    whole = deviation.whole
    kept = Counter(decision.reason for decision in report.plan.decisions if not decision.branches)
    return {
        "changed": len(report.plan.changed),
        "sites": len(report.plan.decisions),
        "kept": dict(kept.most_common()),
        "macs": [report.before.macs, after.macs],
        "parts": len(deviation.layers),
        "inputs": dict(Counter(" and ".join(layer.inputs) for layer in deviation.layers).most_common()),
        "worst": None if worst is None else [worst.distance.relative_l2, worst.bound, worst.excess],
        "whole": None if whole is None else [whole.distance.relative_l2, whole.bound],
        "whole_inputs": None if whole is None else list(whole.inputs),
        "before": [] if whole is None else list(whole.before),
        "not_compared": list(deviation.not_compared),
        "notes": list(report.notes),
    }


def _tables(lines: Iterable[Mapping[str, Any]]) -> str:
    lines = list(lines)
    done = [line for line in lines if "refused" not in line]
    refused = [line for line in lines if "refused" in line]
    noted = dict.fromkeys((line["network"], note) for line in done for note in _other_notes(line))
    parts = [
        _table(
            "network | rule | images | layers changed | MACs before | MACs after | ratio | kept, and why | not counted",
            (_size_cells(line) for line in done),
        ),
        _table(
            "network | rule | images | parts compared on | worst part: error | bound | largest entry | "
            "whole model: error | bound | compared",
            (_proof_cells(line) for line in done),
        ),
    ]
    if refused:
        parts.append(
            _table(
                "network | rule | images | not exported, and why", ([*_key(line), line["refused"]] for line in refused)
            )
        )
    if noted:
        parts.append(_table("network | what the command says besides", map(list, noted)))
    return "\n\n".join(parts)


def _table(head: str, rows: Iterable[Iterable[str]]) -> str:
    columns = head.count(" | ") + 1
    body = ("| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in row) + " |" for row in rows)
    return "\n".join([f"| {head} |", "|" + "---|" * columns, *body])


def _key(line: Mapping[str, Any]) -> list[str]:
    return [line["network"], line["rule"], str(line["images"] or "none")]


def _size_cells(line: Mapping[str, Any]) -> list[str]:
    before, after = line["macs"]
    known = before is not None and after is not None
    grouped: Counter[str] = Counter()
    for reason, count in line["kept"].items():
        grouped[_RANK.sub("its rank is not below break-even", reason)] += count
    kept = ", ".join(f"{count} {reason}" for reason, count in grouped.most_common())
    uncounted = next((note.removeprefix(_UNCOUNTED) for note in line["notes"] if note.startswith(_UNCOUNTED)), "")
    return [
        *_key(line),
        f"{line['changed']} of {line['sites']}",
        *((f"{before / 1e6:,.1f} M", f"{after / 1e6:,.1f} M", f"{before / after:.2f}x") if known else ["unknown"] * 3),
        kept or "none",
        uncounted,
    ]


def _proof_cells(line: Mapping[str, Any]) -> list[str]:
    error, bound, entry = line["worst"] or (0.0, 0.0, 0.0)
    whole = [f"{value:.1e}" for value in line["whole"]] if line["whole"] else ["cannot run", ""]
    where = f"before {', '.join(line['before'])}" if line["before"] else "outputs" if line["whole"] else ""
    missed = f"; not compared: {'; '.join(line['not_compared'])}" if line["not_compared"] else ""
    return [
        *_key(line),
        "; ".join(f"{count} on {inputs}" for inputs, count in line["inputs"].items()) or "none changed",
        f"{error:.1e}",
        f"{bound:.1e}",
        f"{entry:.0%}",
        *whole,
        where + missed,
    ]


def _other_notes(line: Mapping[str, Any]) -> list[str]:
    return [note for note in line["notes"] if not note.startswith((_UNCOUNTED, _NOT_MEASURED))]


if __name__ == "__main__":
    main()
