"""Layers in training for low rank, and those of one matrix shape taken together: one call decomposes them all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from training.layers import TorchLayer
from training.matrices import fold, unfold
from training.spectra import Spectrum, follow, spectrum
from trp_export.planning.curves import Curve


@dataclass(slots=True)
class Target:
    """A layer in training: its curve, the rank it was last projected to, the space it was left in where that is
    followed, and the pull for the next step."""

    layer: TorchLayer
    curve: Curve
    rank: int
    space: Tensor | None = None
    pull: Tensor | None = None

    @property
    def name(self) -> str:
        return self.layer.name

    @property
    def weight(self) -> Tensor:
        return self.layer.weight

    def matrices(self, tensor: Tensor) -> Tensor:
        return unfold(tensor.detach(), self.curve.scheme, self.layer.site.group)

    def folded(self, matrices: Tensor) -> Tensor:
        return fold(matrices, self.curve.scheme, self.layer.site.kernel_shape, self.layer.site.group)


@dataclass(frozen=True, slots=True)
class Decomposed:
    """Layers of one matrix shape: their matrices (b, rows, columns), one after the other, and the spectrum of each."""

    members: Sequence[Target]
    matrices: Tensor
    known: Spectrum

    def per_member(self, tensor: Tensor) -> Sequence[Tensor]:
        """A tensor (b, ...) in parts, one for each layer."""
        return tensor.split(len(tensor) // len(self.members))  # type: ignore[no-any-return,no-untyped-call]

    def ranks(self, ranks: Mapping[str, int]) -> Tensor:
        """The ranks of the layers as one of each matrix (b,)."""
        return _per_matrix([ranks[member.name] for member in self.members], self.matrices)


def decompose(members: Sequence[Target]) -> list[Decomposed]:
    """Decomposed in full, by shape."""
    return [_in_full(*group) for group in _by_shape(members)]


def follow_spaces(members: Sequence[Target]) -> list[Decomposed]:
    """Renewed from the spaces they were left in where that is possible, else decomposed in full."""
    found = [_followed(*group) for group in _by_shape([member for member in members if member.space is not None])]
    return found + decompose([member for member in members if member.space is None])


def _by_shape(members: Sequence[Target]) -> list[tuple[list[Target], Tensor]]:
    groups: dict[tuple[int, ...], tuple[list[Target], list[Tensor]]] = {}
    for member in members:
        matrices = member.matrices(member.weight)
        width = 0 if member.space is None else member.space.shape[1]
        together = groups.setdefault((width, *matrices.shape), ([], []))
        together[0].append(member)
        together[1].append(matrices)
    return [(own, torch.cat(matrices)) for own, matrices in groups.values()]


def _in_full(members: list[Target], matrices: Tensor) -> Decomposed:
    return Decomposed(members, matrices, spectrum(matrices))


def _followed(members: list[Target], matrices: Tensor) -> Decomposed:
    left = torch.cat([member.space for member in members if member.space is not None])
    renewed = follow(matrices, left, _per_matrix([member.rank for member in members], matrices))
    return Decomposed(members, matrices, renewed or spectrum(matrices))


def _per_matrix(ranks: Sequence[int], matrices: Tensor) -> Tensor:
    return torch.tensor(ranks, device=matrices.device).repeat_interleave(len(matrices) // len(ranks))
