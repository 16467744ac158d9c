"""Batch-norm statistics taken afresh: after a cut, the running averages describe weights that are gone."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


@torch.no_grad()
def reestimate(model: nn.Module, batches: Iterable[Tensor]) -> None:
    """Running mean and variance become the plain average over `batches` of inputs; the rest runs as in evaluation.

    With no batch norm, or no batch, nothing changes.
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    if not norms:
        return
    was_training = {module: module.training for module in model.modules()}
    momenta = [norm.momentum for norm in norms]
    device = next(model.parameters()).device
    model.eval()
    try:
        for index, batch in enumerate(batches):
            for norm in norms:
                if index == 0:
                    norm.reset_running_stats()
                norm.train()
                norm.momentum = None  # A cumulative average.
            model(batch.to(device))
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for module, training in was_training.items():
            module.training = training
