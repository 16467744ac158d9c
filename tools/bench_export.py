"""How long an export takes, against what every user does anyway: load, simplify, open and run once.

    python tools/bench_export.py [--runs 5]

Both do their work on the same ResNet-50 (random weights, 224x224) in fresh processes, in turn. The reference is
onnx.load + onnxsim.simplify + onnx.save, then a session and one inference of the original and of the result.
Ours is `trp-export resnet50.onnx --macs 1.5 --calib none --no-bench`: from the file to the verified result. Peak memory
is that of the largest process. Linux and macOS only. Run it on a quiet machine.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
from scipy.stats import bootstrap

REFERENCE = """
import sys
import numpy as np, onnx, onnxruntime, onnxsim
source, target = sys.argv[1:]
simplified, _ = onnxsim.simplify(onnx.load(source))
onnx.save(simplified, target)
for path in (source, target):
    session = onnxruntime.InferenceSession(path)
    session.run(None, {session.get_inputs()[0].name: np.zeros((1, 3, 224, 224), np.float32)})
"""
EXPORT = ("--macs", "1.5", "--calib", "none", "--no-bench", "--quiet")
MAKE = """
import sys, torch, torchvision
torch.manual_seed(0)
model = torchvision.models.resnet50(weights=None).eval()
torch.onnx.export(model, (torch.randn(1, 3, 224, 224),), sys.argv[1], dynamo=True, external_data=False)
"""


@dataclass(frozen=True, slots=True)
class Run:
    seconds: float
    peak_bytes: int


@click.command()
@click.option("--runs", default=5, show_default=True)
def main(runs: int) -> None:
    """The time and the memory of an export, against load, simplify, open and run once."""
    with tempfile.TemporaryDirectory() as folder:
        model, output = Path(folder, "resnet50.onnx"), Path(folder, "out.onnx")
        subprocess.run([sys.executable, "-c", MAKE, str(model)], check=True, capture_output=True)
        export = str(Path(sys.executable).with_name("trp-export"))
        commands = {
            "reference": [sys.executable, "-c", REFERENCE, str(model), str(output)],
            "export": [export, str(model), *EXPORT, "-o", str(output)],
            "help": [export, "--help"],
        }
        timed: dict[str, list[Run]] = {name: [] for name in commands}
        for index in range(runs + 1):
            for name, command in commands.items():
                run = _run(command)
                if index:  # The first round fills the caches.
                    timed[name].append(run)
        size = model.stat().st_size
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {platform.platform()}, n = {runs}")
    for name, taken in timed.items():
        seconds = [run.seconds for run in taken]
        print(f"{name:<10} median {np.median(seconds):.2f} s [{min(seconds):.2f}, {max(seconds):.2f}]")
    ratios = np.array(
        [ours.seconds / theirs.seconds for ours, theirs in zip(timed["export"], timed["reference"], strict=True)]
    )
    interval = bootstrap((ratios,), np.median, confidence_level=0.95, rng=np.random.default_rng(0)).confidence_interval
    print(f"export / reference: {np.median(ratios):.2f}x [{interval.low:.2f}, {interval.high:.2f}], to stay below 3")
    peak, bound = max(run.peak_bytes for run in timed["export"]), 4 * size + 300 * 2**20
    print(
        f"peak memory: {peak / 2**20:.0f} MiB for a file of {size / 2**20:.0f} MiB, to stay below {bound / 2**20:.0f}"
    )


def _run(command: list[str]) -> Run:
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise click.ClickException(f"{command[0]} failed")
    return Run(seconds, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024))


if __name__ == "__main__":
    main()
