"""Layers that are trained for low rank. Those with equal matrix shapes are decomposed together, in one call."""

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

# Weights of this many elements gain nothing from being decomposed together, since that copies them.
_LARGE = 1 << 16


@dataclass(slots=True)
class Target:
    """A layer in training: its curve, its unfolding into matrices, and the rank of its last projection.

    `space` is the subspace of the last projection where later ones follow it, `pull` the nuclear norm's sub-gradient
    for the next step.
    """

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
        """The matrices of a tensor like the weight, in float32 or more; a view where its memory order allows that."""
        matrices = self.unfolding.unfold(tensor.detach())
        return matrices.to(torch.promote_types(matrices.dtype, torch.float32))

    def assign(self, tensor: Tensor, make: Callable[[Tensor | None], Tensor]) -> None:
        """Write the matrices that `make` returns into a tensor like the weight, directly if they are a view of it."""
        matrices = self.matrices(tensor)
        if matrices.data_ptr() == tensor.data_ptr():
            make(matrices)
        else:
            tensor.copy_(self.unfolding.fold(make(None)))


@dataclass(frozen=True, slots=True)
class Decomposed:
    """Layers of one matrix shape: their matrices (b, rows, columns), concatenated, and the spectrum of each."""

    members: Sequence[Target]
    matrices: Tensor
    known: Spectrum

    @property
    def values(self) -> Sequence[Tensor]:
        """The singular values of each layer (matrices, s)."""
        return per_member(self.known.values, self.members)

    def truncated(self, ranks: Mapping[str, int]) -> list[Truncated]:
        """The layers at these ranks, given by name. Layers of full rank, which need less work, form their own group."""
        whole = [ranks[member.name] >= member.curve.full_rank for member in self.members]
        if all(whole) or not any(whole):
            return [Truncated(self.members, truncate(self.matrices, self.known, _per_matrix(self.members, ranks)))]
        return [part for kind in (False, True) for part in self._only([one is kind for one in whole]).truncated(ranks)]

    def _only(self, chosen: Sequence[bool]) -> Decomposed:
        members = [member for member, one in zip(self.members, chosen, strict=True) if one]
        mask = torch.tensor(chosen, device=self.matrices.device).repeat_interleave(len(self.matrices) // len(chosen))
        return Decomposed(members, self.matrices[mask], Spectrum(self.known.values[mask], self.known.basis[mask]))


@dataclass(frozen=True, slots=True)
class Truncated:
    """Layers of one matrix shape at their ranks."""

    members: Sequence[Target]
    known: Truncation

    @property
    def parts(self) -> list[Truncation]:
        """One truncation for each layer."""
        known = self.known
        bases = [None] * len(self.members) if known.basis is None else per_member(known.basis, self.members)
        rest = (per_member(tensor, self.members) for tensor in (known.coordinates, known.root))
        return [
            Truncation(basis, coordinates, root, known.tall)
            for basis, coordinates, root in zip(bases, *rest, strict=True)
        ]


def curve(layer: TorchLayer, scheme: Scheme) -> Curve:
    """The exact curve of a layer for its present weight."""
    values = spectrum(unfold(layer.weight.detach(), scheme, layer.site.group)).values
    return curve_of(layer.site, scheme, values.cpu().numpy())


def decompose(members: Sequence[Target], *, exact: bool) -> list[Decomposed]:
    """Decompose layers in full, by shape: `exact` in float64, else in the precision of the matrices."""
    return [
        Decomposed(group, matrices, spectrum(matrices, torch.float64 if exact else matrices.dtype))
        for group, matrices in _by_shape(members)
    ]


def follow_spaces(members: Sequence[Target]) -> Iterator[Truncated]:
    """Layers at their present ranks, by following the spaces of their last projection where that is possible."""
    ranks = {member.name: member.rank for member in members}
    for group, matrices in _by_shape(members):
        spaces = [member.space for member in group if member.space is not None]
        renewed = follow(matrices, torch.cat(spaces), _per_matrix(group, ranks)) if spaces else None
        if renewed is not None:
            yield Truncated(group, renewed)
        else:
            yield from Decomposed(group, matrices, spectrum(matrices, matrices.dtype)).truncated(ranks)


def per_member(tensor: Tensor, members: Sequence[Target]) -> Sequence[Tensor]:
    """Split a tensor (b, ...) into one part for each layer."""
    return tensor.split(len(tensor) // len(members))  # type: ignore[no-any-return,no-untyped-call]


def _by_shape(members: Sequence[Target]) -> Iterator[tuple[list[Target], Tensor]]:
    groups: dict[tuple[object, ...], list[Target]] = {}
    for member in members:
        width = 0 if member.space is None else member.space.shape[1]
        alike = (width, member.unfolding)
        groups.setdefault(alike if member.weight.numel() < _LARGE else (member.name,), []).append(member)
    for group in groups.values():
        matrices = [member.matrices(member.weight) for member in group]
        yield group, matrices[0] if len(matrices) == 1 else torch.cat(matrices)


def _per_matrix(members: Sequence[Target], ranks: Mapping[str, int]) -> Tensor:
    """The rank of each matrix (b,), from the ranks of the layers."""
    per_matrix = [ranks[member.name] for member in members for _ in member.curve.singular_values]
    return torch.tensor(per_matrix, device=members[0].weight.device)
