"""Export trained networks of several kinds with images, and measure each result on images that nothing was fitted to.

    TRP_DATA=SHARED python tools/real_networks.py --macs 1.25 --macs 1.5        # the commands, one after the other
    TRP_DATA=SHARED python tools/real_networks.py --macs 1.25 --tune 5min --only yolox
    TRP_DATA=SHARED python tools/real_networks.py --speedup 1.3 --only waifu2x
    TRP_DATA=SHARED python tools/real_networks.py --int8                        # alone; with --macs low rank, then int8
    TRP_DATA=SHARED python tools/real_networks.py --macs 1.25 --images synthetic
    TRP_DATA=SHARED python tools/real_networks.py --macs 1.25 --parts           # without one part after another
    python tools/real_networks.py --write                                       # and put the tables into the page

SHARED holds `models/real` and `data/real`, listed in `tools/data.py`. Every row is one `trp-export` command with its
benchmark, so the machine must be quiet; those of --parts are not timed. Rows are kept in a file, so that a second call
does just what is missing; rows of the page that are not in the file stay.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from common import append, put_into_page, read, text_of_page

from trp_export.errors import PrecisionError

PAGE = Path(__file__).resolve().parents[1] / "docs" / "results" / "real-networks.md"
ROWS = Path(__file__).resolve().parents[1] / "build" / "real_networks.jsonl"


IMAGES = ("real", "synthetic", "none")
# What leaves out one part of the closed form each.
PARTS = {"": "all", "--no-recover": "no refit", "--channels off": "pairs alone"}


@dataclass(frozen=True, slots=True)
class Network:
    """A network, how its images are prepared, and the images to fit to and to measure on, below the data folder."""

    name: str
    model: str
    prepare: str
    calib: str
    count: int
    evaluate: str
    metric: str


NETWORKS = (
    Network(
        "EfficientNet-Lite0",
        "efficientnet_lite0.onnx",
        "--scale 1 --mean 127,127,127 --std 128,128,128 --resize 227 --crop 224",
        "imagenet/calib",
        256,
        "imagenet/val_650 --labels {data}/imagenet/val_650.csv",
        "top1",
    ),
    Network(
        "YOLOX-Nano",
        "yolox_nano.onnx",
        "--colour bgr --scale 1 --resize letterbox:416x416:114:corner",
        "coco/calib",
        128,
        "coco/val_64 --labels {data}/coco/val_64.json",
        "map:yolox",
    ),
    Network("waifu2x photo", "waifu2x_photo_x2.onnx", "--scale 1/255", "photos/calib", 32, "photos/eval", "psnr"),
    Network(
        "realesr animevideo", "realesr_animevideov3_x4.onnx", "--scale 1/255", "photos/calib", 32, "photos/eval", "psnr"
    ),
    Network(
        "PP-OCRv4 text detector",
        "ch_PP-OCRv4_det_infer.onnx",
        "--colour bgr --mean 0.5 --std 0.5 --resize 320x320",
        "coco/calib",
        128,
        "coco/val_64",
        "miou",
    ),
    Network(
        "PP-OCR text angle",
        "ch_ppocr_mobile_v2.0_cls_infer.onnx",
        "--colour bgr --mean 0.5 --std 0.5 --resize 192x48",
        "imagenet/calib",
        256,
        "imagenet/val_650",
        "top1",
    ),
)


@click.command(help=(__doc__ or "").split("\n", maxsplit=1)[0])
@click.option("--macs", type=float, multiple=True, help="Times fewer multiply-adds; repeatable.")
@click.option("--speedup", type=float, multiple=True, help="Times as fast; repeatable.")
@click.option("--int8", is_flag=True, help="In int8; alone without a ratio.")
@click.option("--tune", help="As for trp-export, such as 5min.")
@click.option("--images", type=click.Choice(IMAGES), default="real", show_default=True, help="What --calib gets.")
@click.option("--parts", is_flag=True, help="Not timed, with all parts and without one after another.")
@click.option("--only", default="", help="Networks whose name contains this.")
@click.option("--write", is_flag=True, help="Put all rows into the page.")
def main(
    macs: tuple[float, ...],
    speedup: tuple[float, ...],
    tune: str | None,
    images: str,
    only: str,
    *,
    int8: bool,
    parts: bool,
    write: bool,
) -> None:
    ROWS.parent.mkdir(exist_ok=True)
    rules = [f"--{name} {ratio:g}" for name, ratios in (("macs", macs), ("speedup", speedup)) for ratio in ratios]
    if int8:
        rules = [f"{rule} --precision int8" for rule in rules] or ["--precision int8"]
    rows = read(ROWS)
    for network in NETWORKS:
        if only.lower() not in network.name.lower():
            continue
        for rule, part in ((rule, part) for rule in rules for part in (PARTS if parts else [None])):
            wanted = {"network": network.name, "rule": rule, "tune": tune, "images": images, "part": part}
            if not any(wanted.items() <= {"part": None, **row}.items() for row in rows):
                append(ROWS, _export(network, rule, tune, images, part) | wanted)
    if write:
        rows = read(ROWS)
        _update("parts", _table_of_parts([row for row in rows if row.get("part") is not None]), key=3)
        rows = [row for row in rows if row.get("part") is None]
        _update("table", _table([row for row in rows if row["images"] == "real"]), key=4)
        if made := [row for row in rows if row["images"] != "real"]:
            print(_table(made))


def _update(name: str, table: str, key: int) -> None:
    """Put a table into the page, beside rows of the page that were not measured again; `key` cells identify a row."""
    rows = {}
    for line in (*text_of_page(PAGE, name).splitlines()[2:], *table.splitlines()[2:]):
        cells = [cell.strip().removesuffix(", refused, so float") for cell in line.split("|")[1:]]
        rows[tuple(cells[:key])] = line
    put_into_page(PAGE, name, "\n".join([*table.splitlines()[:2], *(rows[cells] for cells in sorted(rows))]))


def arguments(network: Network, rule: str, tune: str | None, images: str) -> list[str]:
    """The command without data folder and output."""
    calib = f"{{data}}/{network.calib} --calib-count {network.count}" if images == "real" else images
    words = f"trp-export {{models}}/{network.model} {rule} --calib {calib} {network.prepare}"
    words += f" --eval {{data}}/{network.evaluate} --metric {network.metric}"
    return [*words.split(), *(("--tune", tune) if tune else ())]


def _export(network: Network, rule: str, tune: str | None, images: str, part: str | None) -> dict[str, Any]:
    shared = Path(os.environ["TRP_DATA"])
    command = [*arguments(network, rule, tune, images), *([*part.split(), "--no-bench"] if part is not None else ())]
    folders = {"models": shared / "models" / "real", "data": shared / "data" / "real"}
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "small.onnx"
        run = [sys.executable, "-m", "trp_export.cli.export", *(word.format(**folders) for word in command[1:])]
        done = subprocess.run([*run, "-o", output], capture_output=True, text=True, check=False)
        row: dict[str, Any] = {"command": " ".join(command)}
        if not output.exists():
            return row | {"error": done.stderr.strip().splitlines()[-1:]}
        report = json.loads(output.with_suffix(".json").read_text())
    return row | {
        "score": report["deviation"]["score"],
        "macs": report["before"]["macs"] / report["after"]["macs"],
        "speed": report["latency"] and report["latency"]["models"][1]["ratio"],
        "cpu": report["latency"] and report["latency"]["environment"]["cpu"],
        "notes": [note for note in report["notes"] if "held-out" in note],
        "code": done.returncode,
    }


def _table(rows: list[dict[str, Any]]) -> str:
    heads = (
        "network | rule | images | tuned | MACs | measured | quotient | on | metric | before | after "
        "| held-out divergence"
    )
    lines = [f"| {heads} |", "|" + "---|" * (heads.count("|") + 1)]
    for row in sorted(rows, key=lambda row: (row["network"], row["rule"], row["images"], row["tune"] or "")):
        refused = ", refused, so float" if row.get("code") == PrecisionError.exit_code else ""
        start = f"| {row['network']} | `{row['rule']}`{refused} | {row['images']} | {row['tune'] or 'no'} "
        if "error" in row:
            lines.append(f"{start}| | | | | {' '.join(row['error'])} | | | |")
            continue
        speed = row["speed"]
        start += f"| {row['macs']:.2f}x | {speed['value']:.2f}x [{speed['low']:.2f}, {speed['high']:.2f}] "
        start += f"| {speed['value'] / row['macs']:.2f} | {_short(row['cpu'])} "
        lines.append(f"{start}| {_score(row['score'])} | {next(iter(row['notes']), '')} |")
    return "\n".join(lines)


def _short(processor: str) -> str:
    return processor.replace("(R)", "").removesuffix(" Processor")


def _table_of_parts(rows: list[dict[str, Any]]) -> str:
    heads = "network | rule | parts | metric | before | after | held-out divergence"
    lines = [f"| {heads} |", "|" + "---|" * (heads.count("|") + 1)]
    for row in sorted(rows, key=lambda row: (row["network"], row["rule"], list(PARTS).index(row["part"]))):
        start = f"| {row['network']} | `{row['rule']}` | {PARTS[row['part']]} "
        lines.append(f"{start}| {_score(row['score'])} | {next(iter(row['notes']), '')} |")
    return "\n".join(lines)


def _score(score: dict[str, Any]) -> str:
    """What was measured, before and after with its standard error, as cells."""
    points = 100 if score["unit"] == "%" else 1
    error = f" ± {points * score['error']:.2f}" if score.get("error") is not None else ""
    before, after = points * score["before"], points * score["after"]
    return f"{score['what']}, {score['images']} images | {before:.2f} | {after:.2f}{error}"


if __name__ == "__main__":
    main()
