"""Small networks whose channels are tied in different ways, and an oracle that merges channels in place."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.channels.groups import ChannelPlan
from training.channels.ties import find_ties

SHAPE, CIFAR = (1, 3, 8, 8), (1, 3, 32, 32)


class Projected(nn.Module):
    """A residual sum of a stem, two blocks and a projection; the stem's depthwise conv hands its channels on."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.inner, self.outer = nn.Conv2d(8, 6, 3, padding=1), nn.Conv2d(6, 12, 3, padding=1)
        self.projection = nn.Conv2d(8, 12, 1)
        self.second = nn.Conv2d(12, 12, 3, padding=1)
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.depthwise(self.norm(self.stem(x)).relu()).relu()
        total = self.outer(self.inner(x).relu())
        total += self.projection(x)
        total = total.relu()
        return self.head((total + self.second(total)).mean((2, 3)))


class Joined(nn.Module):
    """Concatenation, batch norm over it, a gate by channel, a split, and a flattened head."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(10)
        self.down, self.up = nn.Conv2d(10, 5, 1), nn.Conv2d(5, 10, 1)
        self.mixed, self.slope = nn.Conv2d(10, 8, 3, padding=1), nn.PReLU(8)
        self.head = nn.Linear(4 * 16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(torch.cat([self.left(x), self.right(x)], 1)).relu()
        x = x * torch.sigmoid(self.up(self.down(functional.adaptive_avg_pool2d(x, 1)).relu()))
        one, two = self.slope(self.mixed(x)).chunk(2, 1)
        return self.head(torch.flatten(functional.max_pool2d(one + two, 2), 1))


class Padded(nn.Module):
    """A shortcut that pads channels, as option A does, then a shift of channels by a slice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 12, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(12)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        x = functional.relu(self.norm(self.inner(x)) + functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 3, 3)))
        return self.head(x[:, 2:10].mean((2, 3)))


class Unclear(nn.Module):
    """Nothing but the channels between `first` and `second` can be merged."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.grouped, self.turned = nn.Conv2d(8, 8, 1, groups=2), nn.Conv2d(8, 8, 1)
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.grouped(self.second(self.first(x).relu()).relu())
        return self.head(self.turned(x).permute(0, 1, 3, 2)).mean((2, 3))


def randomised(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model with random parameters and statistics everywhere, so that nothing is equal by chance."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            noise = torch.rand(value.shape, generator=generator)
            value.copy_(noise + 0.5 if "norm" in name or "bn" in name else noise - 0.5)
    return model


@torch.no_grad()
def merged_in_place(model: nn.Module, plan: ChannelPlan) -> nn.Module:
    """A copy in which one channel of each cluster does the work of all, and the others are zero.

    This is what removing the others computes, at the old shapes.
    """
    made = copy.deepcopy(model).eval()
    keepers: dict[int, int] = {}
    for merge in plan.merges:
        first_of: dict[int, int] = {}
        first = [first_of.setdefault(label, at) for at, label in enumerate(merge.labels)]
        others = [at for at, keeper in enumerate(first) if keeper != at]
        keepers |= {merge.group.channels[at]: merge.group.channels[first[at]] for at in others}
        for name, rows in merge.group.rows.items():
            _zero_rows(made.get_submodule(name), [rows[at] for at in others])
    reads = find_ties(made, CIFAR if hasattr(made, "layer3") else SHAPE).reads
    for name, channels in reads.items():
        _sum_columns(made.get_submodule(name).weight, channels, keepers)
    return made


def _zero_rows(module: nn.Module, rows: list[int]) -> None:
    for key in ("weight", "bias", "running_mean"):
        if isinstance(getattr(module, key, None), Tensor):
            getattr(module, key)[rows] = 0


def _sum_columns(weight: Tensor, channels: tuple[int, ...], keepers: dict[int, int]) -> None:
    """Add each column of a channel that is gone to that of its keeper; a flattened channel has several columns."""
    places: dict[int, list[int]] = {}
    for column, channel in enumerate(channels):
        places.setdefault(channel, []).append(column)
    for gone, keeper in keepers.items():
        if gone in places:
            weight[:, places[keeper]] += weight[:, places[gone]]
            weight[:, places[gone]] = 0
