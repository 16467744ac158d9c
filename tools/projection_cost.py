"""What a projection of ResNet-50 costs each of 1, 8 and 64 processes, and how many bytes they exchange.

    python tools/projection_cost.py [--processes 1,8,64] [--rounds 3]

Each process is played in turn, on one thread: it does its own share of the work and sends what it would send.
Printed, as Markdown, are the CPU time of the busiest process and of all together (medians over rounds), the share of
the work that the number of multiplications gives the busiest, and the bytes broadcast by a projection.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from unittest import mock

import click
import numpy as np
import torch
from common import Listed
from torch import Tensor

from models_zoo import find_architecture
from training import TRP, ByName, Macs, TRPSettings
from training.replicas import share_out
from training.settings import LayerFilter, paper_choice

ROWS: dict[tuple[str, str], LayerFilter] = {
    ("3x3", "channel"): paper_choice,
    ("3x3", "spatial"): paper_choice,
    ("all convs", "channel"): ByName(skip=("conv1", "fc")),
    ("all convs", "spatial"): ByName(skip=("conv1", "fc")),
}


@dataclass(slots=True)
class Played:
    """One process of a run that is not there: it counts what it would broadcast, and hears nothing."""

    rank: int
    processes: int
    sent: int = 0

    def world(self) -> tuple[int, int]:
        return self.rank, self.processes

    def broadcast(self, tensors: Sequence[Tensor], owners: Sequence[int]) -> None:
        own = (tensor for tensor, owner in zip(tensors, owners, strict=True) if owner == self.rank)
        self.sent += sum(tensor.numel() * tensor.element_size() for tensor in own)


@contextmanager
def playing(process: Played) -> Iterator[None]:
    with (
        mock.patch("training.replicas.world", process.world),
        mock.patch("training.trp.world", process.world),
        mock.patch("training.trp.broadcast", process.broadcast),
    ):
        yield


def projection(trp: TRP, processes: int) -> tuple[list[float], int]:
    """The CPU time of each process, and the bytes that all of them send."""
    seconds, sent = [], 0
    for rank in range(processes):
        process = Played(rank, processes)
        with playing(process):
            started = time.process_time()
            trp.project()
            seconds.append(time.process_time() - started)
        sent += process.sent
    return seconds, sent


def calculated_share(trp: TRP, processes: int) -> float:
    """The busiest process's share of the work, as the run itself estimates the work of each layer."""
    costs = [float(count * side**3) for count, side in (t.curve.singular_values.shape for t in trp._targets)]
    with playing(Played(0, processes)):
        owners = share_out(costs)
    return float(np.bincount(owners, costs).max() / sum(costs))


@click.command()
@click.option("--processes", type=Listed(int), default=(1, 8, 64), help="Numbers with commas between them.")
@click.option("--rounds", default=3, show_default=True)
def main(processes: tuple[int, ...], rounds: int) -> None:
    """What a projection of ResNet-50 costs each of some processes, and how many bytes they exchange."""
    torch.set_num_threads(1)
    architecture = find_architecture("torchvision:resnet50")
    print("| layers | processes | busiest, CPU s | all together, CPU s | busiest, calculated | MB, with nuclear norm |")
    print("|---|---|---|---|---|---|")
    for (layers, scheme), chosen in ROWS.items():
        torch.manual_seed(0)
        model = architecture.build(None)
        optimizer = torch.optim.SGD(model.parameters(), 0.01)
        settings = TRPSettings(Macs(1.7), {"*": scheme}, layers=chosen, ramp="linear", ramp_steps=1)
        trp = TRP(model, optimizer, settings, architecture.input_shape or ())
        trp.step = trp.settings.period  # The ramp is over; at its start nothing is projected.
        for count in processes:
            measured = np.median([projection(trp, count)[0] for _ in range(rounds)], axis=0)
            trp.settings = replace(settings, nuclear=6e-3)
            _, with_pull = projection(trp, count)
            trp.settings = settings
            _, sent = projection(trp, count)
            print(
                f"| {layers}, {scheme}-wise | {count} | {measured.max():.2f} | {measured.sum():.2f} | "
                f"{calculated_share(trp, count):.0%} | {sent / 1e6:.0f}, {with_pull / 1e6:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
