"""Removal of the smallest filters (Li et al., arXiv 1608.08710), added to any training loop with two lines.

    magnitude = Magnitude(model, optimizer, MagnitudeSettings(rule=Widths(0.625)), input_shape=(1, 3, 32, 32))
    ...                     # the training loop, unchanged
    plan = magnitude.finish(batches)

The filters with the smallest sums of absolute weights go at the start, the same share of each layer, and the loop
trains what is left. It is the floor that other methods are compared with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from training.channels.choose import Counts
from training.channels.groups import ChannelGroup, counts_of
from training.channels.removal import Removal
from training.channels.settings import MagnitudeSettings
from training.layers import kernel_of


class Magnitude(Removal):
    """Keeps the largest filters of each group of a model, while `optimizer` trains it. See `Removal`."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        settings: MagnitudeSettings,
        input_shape: Sequence[int],
        state: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(model, optimizer, settings, input_shape)
        if state is not None:
            self.load_state_dict(state)
            return
        counts = Counts(counts_of(settings.rule, self._groups, self._costs))
        self.plan = self._plan(counts.choose([magnitudes(self._model, group) for group in self._groups]))
        self._close(self.plan)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        if self.plan is None:
            raise ValueError("the filters that stay are missing")


def magnitudes(model: nn.Module, group: ChannelGroup) -> NDArray[np.float64]:
    """The sum of absolute weights of each filter relative to its layer, summed over the layers that make the group."""
    total = np.zeros(len(group))
    for layer in group.layers:
        kernel = kernel_of(model, layer).detach()[list(group.rows[layer])]
        norms = kernel.double().abs().flatten(1).sum(1).cpu().numpy()
        total += norms / max(norms.mean(), np.finfo(np.float64).tiny)
    return total
