"""What TRP costs: the time of a training step with it over one without it, side by side in one run.

    python tools/bench_training.py                  # both networks
    python tools/bench_training.py resnet20 --scheme spatial

Plain SGD, TRP at m=20, and TRP with projection and nuclear term on every step take turns, step block by step block, so
that drift of the machine hits all alike; each keeps its own model. Blocks of 20 steps hold exactly one projection at
m=20. Printed: the median over blocks of the ratio to plain SGD with a bootstrap interval, images per second, and the
peak memory of a process that runs one alone.
"""

from __future__ import annotations

import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import torch
from torch import nn
from torch.nn import functional

from models_zoo import find_architecture
from training import TRP, Macs, TRPSettings

NETWORKS = {"resnet20": ("resnet20", 128), "resnet18": ("torchvision:resnet18", 16)}
BLOCK = 20
SETTINGS: dict[str, dict[str, TRPSettings | None]] = {
    scheme: {
        "plain SGD": None,
        "m=20": TRPSettings(Macs(2.0), {"*": scheme}, period=20),
        "m=20 + nuclear": TRPSettings(Macs(2.0), {"*": scheme}, period=20, nuclear=3e-4),
        "every step + nuclear": TRPSettings(Macs(2.0), {"*": scheme}, period=1, nuclear=3e-4, exact_every=100),
    }
    for scheme in ("channel", "spatial")
}


class Contestant:
    """One model in training, with its own optimizer and batch."""

    def __init__(self, arch: str, batch: int, settings: TRPSettings | None) -> None:
        architecture = find_architecture(arch)
        assert architecture.input_shape is not None
        torch.manual_seed(0)
        self.model: nn.Module = architecture.build(None).to(memory_format=torch.channels_last).train()
        self.optimizer = torch.optim.SGD(self.model.parameters(), 0.01, momentum=0.9, weight_decay=1e-4)
        x = torch.randn(batch, *architecture.input_shape[1:])
        self.x, self.y = x.contiguous(memory_format=torch.channels_last), torch.randint(0, 10, (batch,))
        if settings is not None:
            TRP(self.model, self.optimizer, settings, architecture.input_shape)

    def seconds(self, steps: int, clock: Callable[[], float] = time.perf_counter) -> float:
        started = clock()
        for _ in range(steps):
            self.optimizer.zero_grad()
            functional.cross_entropy(self.model(self.x), self.y).backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
        return clock() - started


@click.command()
@click.argument("networks", nargs=-1)
@click.option("--scheme", type=click.Choice(list(SETTINGS)), default="channel", show_default=True)
@click.option("--blocks", default=5, help="Blocks of 20 steps for each contestant.", show_default=True)
@click.option("--cpu-time", is_flag=True, help="Count CPU time of one thread instead, where the machine is busy.")
@click.option("--memory/--no-memory", default=True, help="Measure peak memory as well, each in its own process.")
@click.option("--only", hidden=True, help="Run this contestant alone and print its peak memory.")
def main(networks: tuple[str, ...], scheme: str, blocks: int, cpu_time: bool, memory: bool, only: str | None) -> None:
    """The time of a training step with TRP over one without."""
    if cpu_time:
        torch.set_num_threads(1)
    clock = "CPU time" if cpu_time else "wall time"
    print(f"{_processor()}, {torch.get_num_threads()} threads, torch {torch.__version__}, fp32, {clock}")
    for name in networks or tuple(NETWORKS):
        arch, batch = NETWORKS[name]
        if only:
            Contestant(arch, batch, SETTINGS[scheme][only]).seconds(BLOCK + 1)
            print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
            return
        print(f"{name}, batch {batch}, {scheme}-wise at 2x MACs, {blocks} blocks of {BLOCK} steps each:")
        _compare(name, arch, batch, scheme, blocks, time.process_time if cpu_time else time.perf_counter, memory)


def _compare(
    name: str, arch: str, batch: int, scheme: str, blocks: int, clock: Callable[[], float], memory: bool
) -> None:
    contestants = {label: Contestant(arch, batch, settings) for label, settings in SETTINGS[scheme].items()}
    for contestant in contestants.values():
        contestant.seconds(1)
    times = {label: np.empty(blocks) for label in contestants}
    for block in range(blocks):
        for label, contestant in contestants.items():
            times[label][block] = contestant.seconds(BLOCK, clock)
    plain = times["plain SGD"]
    peak_bytes = {label: _peak_bytes(name, scheme, label) for label in contestants} if memory else {}
    for label, taken in times.items():
        ratios = taken / plain
        low, high = _interval(ratios)
        print(
            f"  {label:22} {1e3 * np.median(taken) / BLOCK:8.1f} ms a step, {batch * BLOCK / np.median(taken):7.1f} "
            f"images/s, {np.median(ratios):.3f}x [{low:.3f}, {high:.3f}] of plain"
            + (f", peak memory {peak_bytes[label] / peak_bytes['plain SGD']:.3f}x" if memory else "")
        )


def _interval(ratios: np.ndarray) -> tuple[float, float]:
    """95 % bootstrap interval of the median over blocks."""
    draws = np.random.default_rng(0).choice(ratios, (2000, len(ratios)))
    low, high = np.quantile(np.median(draws, axis=1), [0.025, 0.975])
    return float(low), float(high)


def _peak_bytes(name: str, scheme: str, label: str) -> int:
    command = [sys.executable, __file__, name, "--scheme", scheme, "--only", label]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "")


if __name__ == "__main__":
    main()
