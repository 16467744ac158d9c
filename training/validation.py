"""How good a network is: its accuracy on the validation images, as it is and as a cut would leave it."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from training.layers import evaluating
from training.replicas import failing_together, summed
from trp_export.errors import LoadError, StoppedEarly


@torch.no_grad()
def accuracy(module: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], must_stop: Callable[[], bool]) -> float:
    """The share of images that `module` classifies correctly, in evaluation mode.

    `batches` are this process's share of them. Raises StoppedEarly in all processes where one of them must stop, and
    TrpError where the images of one cannot be read.
    """
    hits, count, stopped = 0, 0, False
    with evaluating(module), failing_together():
        for x, y in batches:
            if stopped := must_stop():
                break
            hits += int((module(x).argmax(1) == y).sum())
            count += len(y)
    hits, count, stops = summed(hits, count, int(stopped))
    if stops:
        raise StoppedEarly
    if not count:
        raise LoadError("all validation images are damaged.")
    return hits / count
