"""The cost of images: seconds and peak memory of every step of an export with --calib, for several counts of images.

    python tools/bench_calibration.py resnet20 --counts 256,512,1024 [--plan-only]
    python tools/bench_calibration.py resnet50 --counts 16,32,64,128 [--plan-only] [--model resnet50.onnx]

Images are noise and weights random, which does not change the cost. Each count runs in a new process. Linux only.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
import numpy as np
from common import Listed

ARCHITECTURES = {"resnet20": (3, 32, 32), "resnet50": (3, 224, 224)}
PEAK = Path("/proc/self/status")


@click.command()
@click.argument("network", type=click.Choice(list(ARCHITECTURES)))
@click.option("--counts", type=Listed(int), default=(128,), help="How many images, such as 256,512.")
@click.option("--model", type=click.Path(path_type=Path), help="An ONNX file of that network; else one is exported.")
@click.option("--plan-only", is_flag=True, help="Stop after moments and sensitivities.")
@click.option("--in-process", type=int, hidden=True)
def main(network: str, counts: tuple[int, ...], model: Path | None, plan_only: bool, in_process: int | None) -> None:
    """Seconds and peak memory of every step of an export with --calib."""
    if in_process and model is not None:
        measure(model, ARCHITECTURES[network], in_process, plan_only)
        return
    with tempfile.TemporaryDirectory() as folder:
        model = model or make_model(network, Path(folder, f"{network}.onnx"))
        print(f"{platform.machine()}, {os.cpu_count()} cores, {platform.platform()}")
        for count in counts:
            command = [sys.executable, __file__, network, "--model", str(model), "--in-process", str(count)]
            subprocess.run([*command, *(["--plan-only"] if plan_only else [])], check=True)


def make_model(name: str, path: Path) -> Path:
    """An ONNX file with random weights and an open batch size."""
    import torch

    from models_zoo import find_architecture

    torch.manual_seed(0)
    network = find_architecture(name if name == "resnet20" else f"torchvision:{name}").build(None).eval()
    torch.onnx.export(
        network,
        (torch.zeros(2, *ARCHITECTURES[name]),),
        path,
        dynamo=True,
        external_data=False,
        verbose=False,
        dynamic_shapes=({0: torch.export.Dim("batch")},),
    )
    return path


class Clock:
    """Progress that prints the time and the peak memory of each step when it ends."""

    def __init__(self) -> None:
        self.step, self.begun = "", time.monotonic()

    def __call__(self, step: str, share: float) -> None:
        if step != self.step:
            self.stop()
            self.step = step

    def stop(self) -> None:
        now = time.monotonic()
        if self.step:
            print(f"    {self.step:<16} {now - self.begun:7.1f} s {peak_bytes() / 2**20:7.0f} MiB", flush=True)
        reset_peak()
        self.begun = now


def measure(model: Path, shape: tuple[int, ...], count: int, plan_only: bool) -> None:
    from trp_export import Options, compress
    from trp_export.options import Benchmark, Calibration
    from trp_export.rules import Macs

    with tempfile.TemporaryDirectory() as folder:
        images = Path(folder, "images.npy")
        np.save(images, np.random.default_rng(0).standard_normal((count, *shape), dtype=np.float32))
        calibration = Calibration(images, count=None)
        options = Options(
            rule=Macs(2),
            calibration=calibration,
            benchmark=Benchmark(run=False),
            output=Path(folder, "out.onnx"),
            dry_run=plan_only,
        )
        print(f"{model.stem}, {count} images", flush=True)
        begun, clock = time.monotonic(), Clock()
        compress(model, options, clock)
        clock.stop()
        print(f"    {'all':<16} {time.monotonic() - begun:7.1f} s", flush=True)


def peak_bytes() -> int:
    line = next(line for line in PEAK.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


if __name__ == "__main__":
    main()
