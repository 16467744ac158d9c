"""Recurrent gates on a feed-forward trunk: RIGNet and DIGNet, in a form of our own.

The trunk runs several times on one set of weights. After a pass, features of later stages decide how much of its input
each stage sees in the next one:

    x_l^t = f_l(x_{l-1}^t * g_l^{t-1}),   g^0 = 1

Sources: Karim, Islam and Bruce, "Recurrent Iterative Gating Networks for Semantic Segmentation", arXiv 1811.08043, and
"Distributed Iterative Gating Networks for Semantic Segmentation", arXiv 1909.12996. The formulas of the
gates follow the abstracts. The stem runs once, since nothing gates its input.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from models_zoo.trunk import Trunk

# At the start of training sigmoid(2) = 0.88 of every feature passes.
_OPEN = 2.0


class RecurrentGates(nn.Module):
    """RIGNet: the features of the last stage gate the input of each stage, or with `nearest` those of the next stage.

    g_l = sigmoid(up(conv(h))), where h comes from the last stage, or from stage l + 1 (from the last stage itself for
    the last). The conv runs before the features are enlarged, where it is cheap.
    """

    def __init__(self, channels: Sequence[int], *, nearest: bool = False) -> None:
        super().__init__()
        last = len(channels) - 1
        self.sources = [min(stage + 1, last) if nearest else last for stage in range(1, last + 1)]
        self.convs = nn.ModuleList(
            _open(nn.Conv2d(channels[source], channels[stage], 3, padding=1))
            for stage, source in enumerate(self.sources)
        )

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Features of the stem and of all stages -> the gate of each stage's input."""
        sources = zip(self.convs, self.sources, features, strict=False)
        return [torch.sigmoid(_enlarged(conv(features[source]), x)) for conv, source, x in sources]


class DistributedGates(nn.Module):
    """DIGNet: feedback in a cascade, so that what reaches a stage holds all that lies above it.

    From the last stage to the first: h_l = relu(conv([x_l, up(h_{l+1})])), the propagator, and
    g_l = sigmoid(up(conv(h_l))).
    """

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        above = [*channels[1:-1], 0]  # The channels of h_{l+1}: each h has those of the input that it gates.
        self.propagators = nn.ModuleList(
            nn.Conv2d(own + more, wanted, 3, padding=1)
            for own, more, wanted in zip(channels[1:], above, channels[:-1], strict=True)
        )
        self.convs = nn.ModuleList(_open(nn.Conv2d(wanted, wanted, 1)) for wanted in channels[:-1])

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Features of the stem and of all stages -> the gate of each stage's input."""
        gates: list[Tensor] = []
        feedback: list[Tensor] = []
        for stage in reversed(range(len(self.convs))):
            x, gated = features[stage + 1], features[stage]
            feedback = [
                functional.relu(self.propagators[stage](torch.cat([x, *(_enlarged(h, x) for h in feedback)], 1)))
            ]
            gates.append(torch.sigmoid(_enlarged(self.convs[stage](feedback[0]), gated)))
        return gates[::-1]


class Gated(nn.Module):
    """A trunk that runs `iterations` times under gates: (n, 3, h, w) -> the answer of its last pass.

    With one iteration it is the trunk. A network may run for more or fewer iterations than it was trained with.
    """

    def __init__(self, trunk: Trunk, gates: nn.Module, iterations: int) -> None:
        super().__init__()
        if iterations < 1:
            raise ValueError(f"{iterations} iterations: a network runs at least once")
        self.trunk, self.gates, self.iterations = trunk, gates, iterations

    def forward(self, x: Tensor) -> Tensor:
        *_, (features, _) = self.passes(x)
        return self.trunk.head(features[1:], x.shape[2:])

    def answers(self, x: Tensor) -> list[Tensor]:
        """The answer after each pass, to train or to compare them."""
        return [self.trunk.head(features[1:], x.shape[2:]) for features, _ in self.passes(x)]

    def passes(self, x: Tensor) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
        """Features of the stem and of all stages, and the gates that they were computed under, for each pass."""
        features = [self.trunk.stem(x)]
        for iteration in range(self.iterations):
            gates: list[Tensor] = self.gates(features) if iteration else []
            features = features[:1]
            for index, stage in enumerate(self.trunk.stages):
                features.append(stage(features[-1] * gates[index] if gates else features[-1]))
            yield features, gates


def _open(conv: nn.Conv2d) -> nn.Conv2d:
    """A conv whose sigmoid lets almost everything pass before it is trained."""
    nn.init.normal_(conv.weight, std=0.01)
    assert conv.bias is not None
    nn.init.constant_(conv.bias, _OPEN)
    return conv


def _enlarged(x: Tensor, like: Tensor) -> Tensor:
    """`x` at the height and width of `like`."""
    if x.shape[2:] == like.shape[2:]:
        return x
    return functional.interpolate(x, size=like.shape[2:], mode="nearest")
