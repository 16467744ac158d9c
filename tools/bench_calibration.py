"""What images cost: seconds and peak memory of every step of an export with --calib, for several counts of images.

    python tools/bench_calibration.py resnet20 --counts 256 512 1024 [--plan-only]
    python tools/bench_calibration.py resnet50 --counts 16 32 64 128 [--plan-only] [--model resnet50.onnx]

The images are noise and the weights random: neither changes the cost. Every count runs in a fresh process; what is
left of a count's steps is counted once for all images (export, plan, singular values). Linux only.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ARCHITECTURES = {"resnet20": (3, 32, 32), "resnet50": (3, 224, 224)}
PEAK = Path("/proc/self/status")


def main() -> None:
    options = parse_options()
    with tempfile.TemporaryDirectory() as folder:
        model = options.model or make_model(options.network, Path(folder, f"{options.network}.onnx"))
        print(f"{platform.machine()}, {os.cpu_count()} cores, {platform.platform()}")
        for count in options.counts:
            own = [sys.executable, __file__, options.network, "--model", str(model), "--in-process", str(count)]
            subprocess.run([*own, *(["--plan-only"] if options.plan_only else [])], check=True)


def make_model(name: str, path: Path) -> Path:
    """Random weights; any number of images at a time."""
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
    """Progress that notes when a step gives way to the next, and the peak memory within it."""

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


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("network", choices=ARCHITECTURES)
    parser.add_argument("--counts", nargs="+", type=int, default=[128])
    parser.add_argument("--model", type=Path, help="an ONNX file of that network, else one is exported")
    parser.add_argument("--plan-only", action="store_true", help="stop after moments and sensitivities")
    parser.add_argument("--in-process", type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    arguments = parse_options()
    if arguments.in_process:
        measure(arguments.model, ARCHITECTURES[arguments.network], arguments.in_process, arguments.plan_only)
    else:
        main()
