"""An auxiliary network that reads the weights of filters and says which of them stay: a gate for each channel."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from training.channels.groups import ChannelGroup
from training.data.seeds import seeded
from training.layers import kernel_of

_HIDDEN = 32
# All gates are open at first and nearly alike, so that training decides which of them close.
_FIRST_LOGIT, _FIRST_SPREAD = 1.0, 0.01


class Gates(nn.Module):
    """The logits of the gates of all groups; a gate is open where its logit is above 0.

    A layer's filters are read by a small network (two Linear layers), which layers of one shape share. It sees the
    kernel, its norm, and gamma and beta of the batch norm behind the layer, each relative to the layer. Where several
    layers make the channels of a group, their logits are averaged. `seed` draws the weights, as they are on the CPU.
    """

    def __init__(self, model: nn.Module, groups: Sequence[ChannelGroup], seed: int) -> None:
        super().__init__()
        self._parts: list[list[tuple[str, str]]] = []
        self.networks = nn.ModuleDict()
        with seeded(seed):
            for group in groups:
                self._parts.append([self._add(model, group, layer) for layer in group.layers])

    def _add(self, model: nn.Module, group: ChannelGroup, layer: str) -> tuple[str, str]:
        """Store what is read of a layer's filters. Returns the names of the network that reads it and of the buffer."""
        features = filter_features(model, group, layer)
        shape = "x".join(map(str, kernel_of(model, layer).shape[1:]))
        if shape not in self.networks:
            first, last = nn.Linear(features.shape[1], _HIDDEN), nn.Linear(_HIDDEN, 1)
            nn.init.normal_(first.weight)
            nn.init.normal_(last.weight, std=_FIRST_SPREAD)
            nn.init.constant_(last.bias, _FIRST_LOGIT)
            self.networks[shape] = nn.Sequential(first, nn.ReLU(), last)
        name = f"features{sum(True for _ in self.buffers())}"
        self.register_buffer(name, features)
        return shape, name

    def forward(self) -> list[Tensor]:
        """A logit for each channel of each group."""
        logits = []
        for parts in self._parts:
            read = [self.networks[shape](self.get_buffer(name))[:, 0] for shape, name in parts]
            logits.append(torch.stack(read).mean(0))
        return logits


def hard_gates(logits: Sequence[Tensor]) -> list[Tensor]:
    """1 for each channel whose logit is above 0, and for the best one of each group; 0 for the others."""
    return [((group > 0) | (group == group.max())).to(group.dtype).detach() for group in logits]


@torch.no_grad()
def filter_features(model: nn.Module, group: ChannelGroup, layer: str) -> Tensor:
    """What the gates see of a layer's filters (n, d + 3): kernel, norm, gamma and beta, in float32 on the CPU.

    Each of the four has a mean square of about 1 in a layer, so that kernels of any size have the same weight: gamma
    and beta are divided by their root mean square, kernels by that of their norms, and logarithms of norms are
    standardised.
    """
    kernel = kernel_of(model, layer).detach()[list(group.rows[layer])].flatten(1).float().cpu()
    norms = kernel.norm(dim=1).clamp_min(torch.finfo(torch.float32).tiny).log()
    norms = (norms - norms.mean()) / norms.std().clamp_min(1e-3)
    scales = [_relative(values) for values in _affine(model, group, layer)]
    return torch.cat([_relative(kernel) / kernel.shape[1] ** 0.5, torch.stack([norms, *scales], 1)], 1)


def _affine(model: nn.Module, group: ChannelGroup, layer: str) -> Iterator[Tensor]:
    """gamma and beta of the first batch norm between this layer and the next one of the group; 1 and 0 without any."""
    names = list(group.rows)
    behind = names[names.index(layer) + 1 :]
    last = next((index for index, name in enumerate(behind) if name in group.layers), len(behind))
    norms = [name for name in behind[:last] if isinstance(model.get_submodule(name), nn.modules.batchnorm._BatchNorm)]
    for key, default in (("weight", 1.0), ("bias", 0.0)):
        values = getattr(model.get_submodule(norms[0]), key) if norms else None
        if isinstance(values, Tensor):
            yield values.detach()[list(group.rows[norms[0]])].float().cpu()
        else:
            yield torch.full((len(group),), default)


def _relative(values: Tensor) -> Tensor:
    return values / values.square().mean().sqrt().clamp_min(1e-12)
