"""Export trained networks of several kinds with images, and measure each result on images that nothing was fitted to.

    TRP_DATA=SHARED python tools/real_networks.py --ratio 1.25 --ratio 1.5      # the commands, one after the other
    TRP_DATA=SHARED python tools/real_networks.py --tune 5min --only yolox      # with tuning
    TRP_DATA=SHARED python tools/real_networks.py --ratio 1.25 --images synthetic
    python tools/real_networks.py --write                                       # and put the table into the page

SHARED holds `models/real` and `data/real`, listed in `tools/data.py`. Every row is one `trp-export` command. Rows are
kept in a file, so that a second call does just what is missing.
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
from common import append, put_into_page, read

PAGE = Path(__file__).resolve().parents[1] / "docs" / "results" / "real-networks.md"
ROWS = Path(__file__).resolve().parents[1] / "build" / "real_networks.jsonl"


IMAGES = ("real", "synthetic", "none")


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
)


@click.command(help=(__doc__ or "").split("\n", maxsplit=1)[0])
@click.option("--ratio", "ratios", type=float, multiple=True, help="Times fewer multiply-adds; repeatable.")
@click.option("--tune", help="As for trp-export, such as 5min.")
@click.option("--images", type=click.Choice(IMAGES), default="real", show_default=True, help="What --calib gets.")
@click.option("--only", default="", help="Networks whose name contains this.")
@click.option("--write", is_flag=True, help="Put all rows into the page.")
def main(ratios: tuple[float, ...], tune: str | None, images: str, only: str, *, write: bool) -> None:
    ROWS.parent.mkdir(exist_ok=True)
    rows = read(ROWS)
    for network in NETWORKS:
        if only.lower() not in network.name.lower():
            continue
        for ratio in ratios:
            wanted = {"network": network.name, "ratio": ratio, "tune": tune, "images": images}
            if not any(wanted.items() <= ({"images": "real"} | row).items() for row in rows):
                append(ROWS, _export(network, ratio, tune, images) | wanted)
    if write:
        rows = [{"images": "real"} | row for row in read(ROWS)]
        put_into_page(PAGE, "table", _table([row for row in rows if row["images"] == "real"]))
        put_into_page(PAGE, "without", _table([row for row in rows if row["images"] != "real"]))


def arguments(network: Network, ratio: float, tune: str | None, images: str) -> list[str]:
    """The command without data folder and output."""
    calib = f"{{data}}/{network.calib} --calib-count {network.count}" if images == "real" else images
    words = f"trp-export {{models}}/{network.model} --macs {ratio:g} --calib {calib} {network.prepare}"
    words += f" --eval {{data}}/{network.evaluate} --metric {network.metric} --no-bench"
    return [*words.split(), *(("--tune", tune) if tune else ())]


def _export(network: Network, ratio: float, tune: str | None, images: str) -> dict[str, Any]:
    shared = Path(os.environ["TRP_DATA"])
    command = arguments(network, ratio, tune, images)
    folders = {"models": shared / "models" / "real", "data": shared / "data" / "real"}
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "small.onnx"
        run = [sys.executable, "-m", "trp_export.cli.export", *(word.format(**folders) for word in command[1:])]
        done = subprocess.run([*run, "-o", output], capture_output=True, text=True, check=False)
        row: dict[str, Any] = {"command": " ".join(command)}
        if not output.exists():
            return row | {"error": done.stderr.strip().splitlines()[-1:]}
        report = json.loads(output.with_suffix(".json").read_text())
    score = report["deviation"]["score"]
    return row | {"score": score, "notes": [n for n in report["notes"] if "held-out" in n], "code": done.returncode}


def _table(rows: list[dict[str, Any]]) -> str:
    lines = ["| network | MACs | images | tuned | metric | before | after | held-out divergence |", "|" + "---|" * 8]
    for row in sorted(rows, key=lambda row: (row["network"], row["ratio"], row["images"], row["tune"] or "")):
        start = f"| {row['network']} | {row['ratio']:g}x fewer | {row['images']} | {row['tune'] or 'no'} "
        if "error" in row:
            lines.append(f"{start}| {' '.join(row['error'])} | | | |")
            continue
        score, note = row["score"], next(iter(row["notes"]), "")
        points = 100 if score["unit"] == "%" else 1
        error = f" ± {points * score['error']:.2f}" if score.get("error") is not None else ""
        what = f"{score['what']}, {score['images']} images"
        before, after = points * score["before"], points * score["after"]
        lines.append(f"{start}| {what} | {before:.2f} | {after:.2f}{error} | {note} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
