"""The peak memory of exports of large ONNX files, against the bounds for a file of N bytes.

    python tools/memory_of_exports.py [--sizes 100,300,1000] [--kinds convs,gemm] [--write]

Files of convs and files of one large Gemm are made in a temporary folder and exported: by their weights alone, on
images that are given, and, if asked for, on images that the export makes because nobody mentions any.
Memory is the resident set of the export and all programs that it starts, added up every 20 ms. The bound is
2.5 N + 400 MB, and 6 GB more where the export calibrates. Each export is recorded in build/ when it ends; a second call
goes on where the first one stopped. --write puts all that are recorded into docs/results/memory.md. Linux, macOS only.
"""

from __future__ import annotations

import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import numpy as np
import onnx
import psutil
from common import Listed, append, missing, read
from onnx import TensorProto, helper, numpy_helper

ROOT = Path(__file__).parents[1]
PAGE, ROWS = ROOT / "docs" / "results" / "memory.md", ROOT / "build" / "memory.jsonl"
MB = 1_000_000
GROWTH, FIXED_MB, CALIBRATION_MB = 2.5, 400, 6_000
# Channels of each kind of convs.
CHANNELS = {"convs": 256, "wide-convs": 512}
KINDS = (*CHANNELS, "gemm", "square-gemm")
# Outputs of the Gemm, as in VGG-16. A square one is as wide as it is high.
GEMM_OUTPUTS = 4096
IMAGES, EXTENT = 8, 16
# Many layers are calibrated for one decomposition, which takes a tenth of the time; a few wide ones for all.
SCHEMES = {"convs": ("--scheme", "channel")}
# What the export calibrates on, as the table says it.
CALIBRATION = {"none": "`--calib none`", "given": "`--calib` with images", "unasked": "made unasked"}
_POLL_S = 0.02


@dataclass(frozen=True, slots=True)
class Row:
    """Memory in MB. `size` is what was asked for, `file_mb` what the file has."""

    kind: str
    calibration: str
    size: int
    file_mb: float
    peak_mb: float
    minutes: float
    code: int

    @property
    def bound_mb(self) -> float:
        return GROWTH * self.file_mb + FIXED_MB + (0 if self.calibration == "none" else CALIBRATION_MB)

    @property
    def is_within(self) -> bool:
        return self.code == 0 and self.peak_mb <= self.bound_mb

    def __str__(self) -> str:
        verdict = f"exit {self.code}" if self.code else "yes" if self.is_within else "no"
        file = f"{self.kind.replace('-', ' ')} | {self.file_mb:,.0f} | {CALIBRATION[self.calibration]}"
        return f"| {file} | {self.peak_mb:,.0f} | {self.bound_mb:,.0f} | {verdict} | {self.minutes:,.1f} |"


@click.command()
@click.option("--sizes", type=Listed(int), default="100,300,1000", show_default=True, help="Sizes of files in MB.")
@click.option("--kinds", type=Listed(str, KINDS), default="convs,gemm", show_default=True)
@click.option("--calibration", type=Listed(str, tuple(CALIBRATION)), default="none,given", show_default=True)
@click.option("--write", is_flag=True, help="Write the table to docs/results/memory.md.")
def main(sizes: tuple[int, ...], kinds: tuple[str, ...], calibration: tuple[str, ...], write: bool) -> None:
    """Peak memory of exports of large ONNX files."""
    ROWS.parent.mkdir(exist_ok=True)
    jobs = [{"kind": k, "calibration": c, "size": size} for size in sizes for k in kinds for c in calibration]
    for job in missing(ROWS, jobs):
        append(ROWS, asdict(measure(**job)))
    if write:
        PAGE.write_text(page([Row(**line) for line in read(ROWS)]), encoding="utf-8")


def measure(kind: str, calibration: str, size: int) -> Row:
    """One export of a file of about `size` MB."""
    with tempfile.TemporaryDirectory() as folder:
        model, images = Path(folder, "model.onnx"), Path(folder, "images.npy")
        shape = make_convs(model, size, CHANNELS[kind]) if kind in CHANNELS else make_gemm(model, size, kind)
        rng = np.random.default_rng(0)
        np.save(images, rng.integers(0, 256, (IMAGES, *shape[2:], shape[1]), dtype=np.uint8))
        scheme = SCHEMES.get(kind, ()) if calibration != "none" else ()
        code, peak, seconds = export(model, images, calibration, scheme)
        return Row(kind, calibration, size, model.stat().st_size / MB, peak / MB, seconds / 60, code)


def make_convs(path: Path, size_mb: int, channels: int) -> tuple[int, ...]:
    """A chain of 3x3 convs, and its input's shape."""
    count = max(1, round(size_mb * MB / (4 * 9 * channels**2)))
    rng, names = np.random.default_rng(0), ["image"]
    first = rng.standard_normal((channels, 3, 3, 3), dtype=np.float32) / np.float32(5)
    weights = [numpy_helper.from_array(first, "conv0.weight")]
    for index in range(1, count + 1):
        kernel = rng.standard_normal((channels, channels, 3, 3), dtype=np.float32)
        kernel *= np.float32((2 / (9 * channels)) ** 0.5)
        weights.append(numpy_helper.from_array(kernel, f"conv{index}.weight"))
    nodes = []
    for weight in weights:
        name = weight.name.removesuffix(".weight")
        nodes.append(helper.make_node("Conv", [names[-1], weight.name], [f"{name}.out"], name=name, pads=[1] * 4))
        nodes.append(helper.make_node("Relu", [f"{name}.out"], [f"{name}.relu"], name=f"{name}.relu"))
        names.append(f"{name}.relu")
    nodes.append(helper.make_node("GlobalAveragePool", [names[-1]], ["y"], name="pool"))
    return save(path, nodes, weights, (1, 3, EXTENT, EXTENT), ("N", channels, 1, 1))


def make_gemm(path: Path, size_mb: int, kind: str) -> tuple[int, ...]:
    """A small conv and one Gemm, and the input's shape."""
    elements = size_mb * MB / 4
    outputs = round(elements**0.5) if kind == "square-gemm" else GEMM_OUTPUTS
    extent = max(1, round((elements / outputs / 16) ** 0.5))
    rng = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(rng.standard_normal((16, 3, 3, 3), dtype=np.float32) / np.float32(5), "conv.weight"),
        numpy_helper.from_array(rng.standard_normal((outputs, 16 * extent**2), dtype=np.float32), "fc.weight"),
    ]
    nodes = [
        helper.make_node("Conv", ["image", "conv.weight"], ["a"], name="conv", pads=[1] * 4),
        helper.make_node("Flatten", ["a"], ["b"], name="flatten"),
        helper.make_node("Gemm", ["b", "fc.weight"], ["y"], name="fc", transB=1),
    ]
    return save(path, nodes, weights, (1, 3, extent, extent), ("N", outputs))


def save(
    path: Path,
    nodes: list[onnx.NodeProto],
    weights: list[onnx.TensorProto],
    shape: tuple[int, ...],
    output: tuple[int | str, ...],
) -> tuple[int, ...]:
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", *shape[1:]])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, list(output))],
        weights,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return shape


def export(model: Path, images: Path, calibration: str, scheme: tuple[str, ...]) -> tuple[int, int, float]:
    """The exit code, the peak in bytes, and the seconds that it took."""
    arguments = [str(model), "--energy", "0.9", "--no-bench", "-o", str(model.with_name("small.onnx")), *scheme]
    arguments += {"none": ["--calib", "none"], "given": ["--calib", str(images)], "unasked": []}[calibration]
    started = time.monotonic()
    process = psutil.Popen([sys.executable, "-m", "trp_export.cli.export", *arguments], stdout=subprocess.DEVNULL)
    peak = 0
    while process.poll() is None:
        peak = max(peak, resident_bytes(process))
        time.sleep(_POLL_S)
    return process.returncode, peak, time.monotonic() - started


def resident_bytes(process: psutil.Process) -> int:
    """Of a process and all below it. A child that has not become another program yet shares its parent's memory."""
    total = 0
    try:
        total, program = process.memory_info().rss, process.cmdline()
        for child in process.children(recursive=True):
            if child.cmdline() != program:
                total += child.memory_info().rss
    except psutil.Error:  # One of them has ended.
        pass
    return total


def page(rows: list[Row]) -> str:
    rows = sorted(rows, key=lambda row: (row.calibration != "none", KINDS.index(row.kind), row.size))
    held = sum(row.is_within for row in rows)
    return "\n".join([
        "# Memory of large exports",
        "",
        f"**{held} of {len(rows)} exports stay within {GROWTH:g} N + {FIXED_MB} MB for an ONNX file of N bytes, and "
        f"{CALIBRATION_MB / 1000:g} GB more where it calibrates, besides the images.**",
        "",
        f"Files of 3x3 convs with {CHANNELS['convs']} channels, wide ones with {CHANNELS['wide-convs']}, and files of",
        "one large Gemm; random weights, `--energy 0.9 --no-bench`. Calibration reads",
        f"{IMAGES} images of the network's size; convs that are not wide get `{' '.join(SCHEMES['convs'])}` with it,",
        "which takes less time.",
        "Peak memory is the resident set of the export and of the programs that it starts, files mapped into memory",
        "included, added up every 20 ms; one run each.",
        "",
        "| file | MB | images | peak MB | bound MB | within | minutes |",
        "|---|---|---|---|---|---|---|",
        *map(str, rows),
        "",
        f"{platform.platform()}, Python {platform.python_version()}. The minutes are those of one thread of a machine",
        "that was busy with other work, and say no more than how long one may have to wait.",
        "",
        "## What calibration takes",
        "",
        "Of a layer that reads `d` values at a time (`c k k` of a conv, in each group), second moments are `d x d`",
        "matrices in double precision. Two are kept as triangles, those of the images to fit to and of the images held",
        "out; they are whole while images are summed up. So calibration takes about",
        "",
        "- 12 `d`² bytes for each layer, and for all layers together at most 3 GiB: the small layers come first;",
        "- ten matrices of 8 `d`² bytes while the factors of a layer are found, each at most 256 MiB, or 5,792 inputs;",
        "- 1 GB for what the network computes from images, and for torch where it is installed;",
        "- the weights of networks up to 256 MiB; those of larger ones stay on disk until they are used;",
        "- the images as the network reads them, in float32, up to 2 GiB: 1,024 of 3x418x418, and fewer of larger ones",
        "  unless `--calib-count` asks for more. Here they take next to nothing.",
        "",
        "A layer beyond these bounds follows its weights alone, and a note names it. While factors are chosen, its",
        "pair stands for it, which is not multiplied out. The time grows with `d`³.",
        "",
        "## Repeat it",
        "",
        "    python tools/memory_of_exports.py --write",
        "    python tools/memory_of_exports.py --kinds wide-convs --sizes 28 --calibration given --write",
        "    python tools/memory_of_exports.py --kinds gemm --sizes 1500 --calibration given --write",
        "",
        "## Caveats",
        "",
        "`--tune` and `--calib synthetic` train in torch and have no bound.",
        "Rows of convs were measured before weights stayed on disk during calibration.",
        "",
    ])  # fmt: skip


if __name__ == "__main__":
    main()
