"""How good a network is: its accuracy on the validation images, as it is and as a cut would leave it."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from training.replicas import summed
from trp_export.errors import LoadError


@torch.no_grad()
def accuracy(module: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> float:
    """The share of images that `module` classifies correctly, in evaluation mode.

    `batches` are this process's share of them.
    """
    was_training, hits, count = module.training, 0, 0
    module.eval()
    for x, y in batches:
        hits += int((module(x).argmax(1) == y).sum())
        count += len(y)
    module.train(was_training)
    hits, count = summed(hits, count)
    if not count:
        raise LoadError("all validation images are damaged.")
    return hits / count
