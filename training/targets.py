"""Layers in training for low rank, and those of one matrix shape taken together: one call decomposes them all."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from training.layers import TorchLayer
from training.matrices import Unfolding, unfold
from training.spectra import Spectrum, Truncation, follow, spectrum, truncate
from trp_export.lowrank.schemes import Scheme
from trp_export.planning.curves import Curve, curve_of

# Weights of so many elements gain nothing by being taken together, which copies them.
_LARGE = 1 << 16


@dataclass(slots=True)
class Target:
    """A layer in training: its curve, how it becomes matrices, the rank it was last projected to, the space it was left
    in where that is followed, and the pull for the next step."""

    layer: TorchLayer
    curve: Curve
    unfolding: Unfolding
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
        """A tensor like the weight, in float32 or more: a view of it where it lies in memory as matrices do."""
        matrices = self.unfolding.unfold(tensor.detach())
        return matrices.to(torch.promote_types(matrices.dtype, torch.float32))

    def assign(self, tensor: Tensor, make: Callable[[Tensor | None], Tensor]) -> None:
        """What `make` gives, folded, into a tensor like the weight: at once where its matrices are a view."""
        matrices = self.matrices(tensor)
        if matrices.data_ptr() == tensor.data_ptr():
            make(matrices)
        else:
            tensor.copy_(self.unfolding.fold(make(None)))


@dataclass(frozen=True, slots=True)
class Decomposed:
    """Layers of one matrix shape: their matrices (b, rows, columns), one after the other, and the spectrum of each."""

    members: Sequence[Target]
    matrices: Tensor
    known: Spectrum

    @property
    def values(self) -> Sequence[Tensor]:
        """The singular values of each layer (matrices, s)."""
        return per_member(self.known.values, self.members)

    def truncated(self, ranks: Mapping[str, int]) -> list[Truncated]:
        """At these ranks by layer name; those that stay whole, which costs less, apart from those that are cut."""
        whole = [ranks[member.name] >= member.curve.full_rank for member in self.members]
        if all(whole) or not any(whole):
            return [Truncated(self.members, truncate(self.matrices, self.known, _per_matrix(self.members, ranks)))]
        return [part for kind in (False, True) for part in self._only([one is kind for one in whole]).truncated(ranks)]

    def _only(self, chosen: Sequence[bool]) -> Decomposed:
        members = [member for member, one in zip(self.members, chosen, strict=True) if one]
        own = torch.tensor(chosen, device=self.matrices.device).repeat_interleave(len(self.matrices) // len(chosen))
        return Decomposed(members, self.matrices[own], Spectrum(self.known.values[own], self.known.basis[own]))


@dataclass(frozen=True, slots=True)
class Truncated:
    """Layers of one matrix shape, at their ranks."""

    members: Sequence[Target]
    known: Truncation

    @property
    def parts(self) -> list[Truncation]:
        """One for each layer."""
        known = self.known
        bases = [None] * len(self.members) if known.basis is None else per_member(known.basis, self.members)
        rest = (per_member(tensor, self.members) for tensor in (known.coordinates, known.root))
        return [
            Truncation(basis, coordinates, root, known.tall)
            for basis, coordinates, root in zip(bases, *rest, strict=True)
        ]


def curve(layer: TorchLayer, scheme: Scheme) -> Curve:
    """The exact curve of a layer as its weight is now."""
    values = spectrum(unfold(layer.weight.detach(), scheme, layer.site.group)).values
    return curve_of(layer.site, scheme, values.cpu().numpy())


def decompose(members: Sequence[Target], *, exact: bool) -> list[Decomposed]:
    """Decomposed in full, by shape: in float64, or in the precision of the matrices, which is enough while training."""
    return [
        Decomposed(own, matrices, spectrum(matrices, torch.float64 if exact else matrices.dtype))
        for own, matrices in _by_shape(members)
    ]


def follow_spaces(members: Sequence[Target]) -> Iterator[Truncated]:
    """At the ranks they have, renewed from the spaces they were left in where that is possible."""
    ranks = {member.name: member.rank for member in members}
    for own, matrices in _by_shape(members):
        left = [member.space for member in own if member.space is not None]
        renewed = follow(matrices, torch.cat(left), _per_matrix(own, ranks)) if left else None
        if renewed is not None:
            yield Truncated(own, renewed)
        else:
            yield from Decomposed(own, matrices, spectrum(matrices, matrices.dtype)).truncated(ranks)


def per_member(tensor: Tensor, members: Sequence[Target]) -> Sequence[Tensor]:
    """A tensor (b, ...) in parts, one for each layer."""
    return tensor.split(len(tensor) // len(members))  # type: ignore[no-any-return,no-untyped-call]


def _by_shape(members: Sequence[Target]) -> Iterator[tuple[list[Target], Tensor]]:
    groups: dict[tuple[object, ...], list[Target]] = {}
    for member in members:
        width = 0 if member.space is None else member.space.shape[1]
        alike = (width, member.unfolding)
        groups.setdefault(alike if member.weight.numel() < _LARGE else (member.name,), []).append(member)
    for own in groups.values():
        matrices = [member.matrices(member.weight) for member in own]
        yield own, matrices[0] if len(matrices) == 1 else torch.cat(matrices)


def _per_matrix(members: Sequence[Target], ranks: Mapping[str, int]) -> Tensor:
    """The ranks of the layers as one of each matrix (b,)."""
    found = [ranks[member.name] for member in members for _ in member.curve.singular_values]
    return torch.tensor(found, device=members[0].weight.device)
