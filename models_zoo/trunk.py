"""What gates need of a network: a stem, stages that run one after another, and a head."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Trunk(nn.Module):
    """A network in parts. `channels` are those of the stem's output and of each stage's."""

    channels: tuple[int, ...]

    @property
    def stages(self) -> tuple[nn.Module, ...]:
        raise NotImplementedError

    def stem(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def head(self, features: Sequence[Tensor], size: torch.Size) -> Tensor:
        """The answer from the features of all stages, the first stage first; `size` is (h, w) of the input."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        features = [self.stem(x)]
        for stage in self.stages:
            features.append(stage(features[-1]))
        return self.head(features[1:], x.shape[2:])
