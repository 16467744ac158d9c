"""Logits of the candidates of a layer, and the pairs of candidates that are drawn by them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from training.search.space import Space


@dataclass(frozen=True, slots=True, eq=False)
class Mixture:
    """The candidates of one layer in one forward pass, by index, and their weights, which sum to 1."""

    candidates: tuple[int, ...]
    weights: Tensor


class Logits(nn.Module):
    """The logits (k,) of one layer: their start, plus what is learned.

    Each of hundreds of candidates is drawn too rarely to be learned alone. What is learned is therefore a sum of three
    numbers: one of the candidate, one of its scheme and one of its size, which it shares with others.
    """

    def __init__(self, space: Space, start: Tensor) -> None:
        super().__init__()
        # In a sum the last pair counts: all candidates have the same first one.
        names = [branches[-1].scheme.name if branches else "" for branches in space.candidates]
        schemes, sizes = sorted(set(names)), sorted(set(space.shares))
        self.start: Tensor
        self._scheme: Tensor
        self._size: Tensor
        self.register_buffer("start", start)
        self.register_buffer("_scheme", torch.tensor([schemes.index(name) for name in names]))
        self.register_buffer("_size", torch.tensor([sizes.index(share) for share in space.shares]))
        self.own = nn.Parameter(torch.zeros(len(names)))
        self.by_scheme = nn.Parameter(torch.zeros(len(schemes)))
        self.by_size = nn.Parameter(torch.zeros(len(sizes)))

    def forward(self) -> Tensor:
        return self.start + self.own + self.by_scheme[self._scheme] + self.by_size[self._size]

    def draw(self, temperature: float, random: torch.Generator) -> Mixture:
        """Two candidates by their probabilities, mixed by a Gumbel-softmax over the two, or the only one."""
        logits = self()
        if len(logits) == 1:
            return Mixture((0,), torch.ones(1))
        probabilities = logits.detach().softmax(0)
        # Two must be drawn even where all but one have a probability of zero in float32.
        drawn = torch.multinomial(probabilities + 1e-12, 2, generator=random)
        noise = -torch.log(-torch.log(torch.rand(2, generator=random).clamp(1e-9, 1 - 1e-7)))
        weights = ((logits[drawn] + noise) / temperature).softmax(0)
        return Mixture(tuple(drawn.tolist()), weights)
