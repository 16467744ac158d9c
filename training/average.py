"""An exponential moving average of the weights, which is measured and kept in their place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


class WeightAverage:
    """The average of a module's weights and buffers; `decay` is the share that an update keeps."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self._module = module
        update = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        self._averaged = AveragedModel(module, multi_avg_fn=update, use_buffers=True)

    def update(self) -> None:
        """Take in the weights of now; the first time they are the average."""
        self._averaged.update_parameters(self._module)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside the block the module has the averaged weights."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def move_in(self) -> None:
        """Give the module the averaged weights for good."""
        self._module.load_state_dict(self._averaged.module.state_dict())

    def state_dict(self) -> dict[str, Tensor]:
        return dict(self._averaged.state_dict())

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self._averaged.load_state_dict(state)

    @torch.no_grad()
    def _swap(self) -> None:
        # Not by the names of a state dict, where a tensor that has two would be swapped back.
        for now, averaged in zip(_tensors(self._module), _tensors(self._averaged.module), strict=True):
            of_now = now.clone()
            now.copy_(averaged)
            averaged.copy_(of_now)


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    """Each weight and buffer once."""
    yield from module.parameters()
    yield from module.buffers()
