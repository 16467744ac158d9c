"""Statistics of batch norm: their estimation after a cut, and layers of batch norm that run more than once.

A network with recurrent gates runs its trunk several times. In training each pass is normalised by its own batches;
afterwards all passes are normalised by running statistics that mix them, which no pass has seen. So such a network ends
its training with these statistics held fixed, and nothing estimates them again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from itertools import chain

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from training.layers import evaluating


@torch.no_grad()
def norms_run_again(model: nn.Module, x: Tensor) -> list[nn.Module]:
    """The layers of batch norm that run more than once for the inputs `x`."""
    runs: Counter[nn.Module] = Counter()
    hooks = [norm.register_forward_pre_hook(lambda norm, _: runs.update([norm])) for norm in _tracking(model)]
    try:
        with evaluating(model):
            model(x.to(next(model.parameters()).device))
    finally:
        for hook in hooks:
            hook.remove()
    return [norm for norm, count in runs.items() if count > 1]


@torch.no_grad()
def reestimate_batch_norm(model: nn.Module, batches: Iterable[Tensor]) -> None:
    """Set running mean and variance to the plain average over `batches` of inputs, as a cut makes the old ones wrong.

    Everything else runs as in evaluation. Without batch norm, or without a batch, nothing changes; neither do layers
    that run more than once.
    """
    batches = iter(batches)
    first = next(batches, None)
    if first is None or not _tracking(model):
        return
    repeated = norms_run_again(model, first)
    norms = [norm for norm in _tracking(model) if norm not in repeated]
    momenta = [norm.momentum for norm in norms]
    device = next(model.parameters()).device
    try:
        with evaluating(model):
            for norm in norms:
                norm.reset_running_stats()
                norm.train()
                norm.momentum = None  # A cumulative average.
            for batch in chain([first], batches):
                model(batch.to(device))
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


def _tracking(model: nn.Module) -> list[_BatchNorm]:
    return [module for module in model.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
