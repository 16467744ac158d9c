"""Work shared out over the replicas of a distributed run, so that all of them end up bit-identical."""

from __future__ import annotations

from collections.abc import Sequence

import torch.distributed as dist
from torch import Tensor


def world() -> tuple[int, int]:
    """This process's rank and the number of processes; (0, 1) outside a distributed run."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def wait_for_all() -> None:
    """Returns once every process has come here; at once in a single process."""
    if world()[1] > 1:
        dist.barrier()


def share_out(costs: Sequence[float]) -> tuple[int, ...]:
    """The owner of each piece of work: the dearest first, each to the process with the least to do so far."""
    _, processes = world()
    load = [0.0] * processes
    owners = [0] * len(costs)
    for index in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        owners[index] = load.index(min(load))
        load[owners[index]] += costs[index]
    return tuple(owners)


def broadcast(tensors: Sequence[Tensor], owners: Sequence[int]) -> None:
    """Each tensor is overwritten, in place, by its owner's; nothing happens in a single process."""
    if world()[1] == 1:
        return
    for tensor, owner in zip(tensors, owners, strict=True):
        dist.broadcast(tensor, src=owner)
