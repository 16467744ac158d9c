"""Work divided among the processes of a distributed run, so that all of them keep identical weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from trp_export.errors import TrpError


def world() -> tuple[int, int]:
    """This process's rank and the number of processes; (0, 1) outside a distributed run."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def wait_for_all() -> None:
    """Wait until every process has reached this call."""
    if world()[1] > 1:
        dist.barrier()


@contextmanager
def failing_together() -> Iterator[None]:
    """Where one process fails in the block, all fail at its end: who left alone would be waited for.

    Nothing in the block may wait for other processes once one can have failed.
    """
    failure: TrpError | None = None
    try:
        yield
    except TrpError as error:
        failure = error
    if highest(int(failure is not None)):
        raise failure or TrpError("another process of this run has failed; it says why.")


def share_out(costs: Sequence[float]) -> tuple[int, ...]:
    """The owner of each piece of work: by falling cost, each goes to the process with the least work so far."""
    _, processes = world()
    load = [0.0] * processes
    owners = [0] * len(costs)
    for index in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        owners[index] = load.index(min(load))
        load[owners[index]] += costs[index]
    return tuple(owners)


def broadcast(tensors: Sequence[Tensor], owners: Sequence[int]) -> None:
    """Overwrite each tensor, in place, with that of its owner. A single process does nothing."""
    if world()[1] == 1:
        return
    for tensor, owner in zip(tensors, owners, strict=True):
        dist.broadcast(tensor, src=owner)


def gathered(value: Any) -> list[Any]:
    """The values of all processes, in their order."""
    count = world()[1]
    if count == 1:
        return [value]
    values: list[Any] = [None] * count
    dist.all_gather_object(values, value)
    return values


def summed(*numbers: int) -> list[int]:
    """The sum over all processes of each number."""
    if world()[1] == 1:
        return list(numbers)
    total = torch.tensor(numbers, dtype=torch.int64)
    dist.all_reduce(total)
    return [int(number) for number in total]


def highest(number: int) -> int:
    """The highest number of any process."""
    if world()[1] == 1:
        return number
    vote = torch.tensor(number, dtype=torch.int64)
    dist.all_reduce(vote, dist.ReduceOp.MAX)
    return int(vote)
