"""A layer as the planner sees it, and what it costs dense or as a pair."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from trp_export.lowrank.schemes import Branches, Scheme, full_rank, pair_shape


@dataclass(frozen=True, slots=True)
class Use:
    """One application of a layer: extents per spatial axis, and how often it runs in one inference.

    A matrix (Gemm, MatMul) has no spatial axes; its rows are counted in `repeats`. Where the model does not
    tell its sizes, `known` is False and costs are per output pixel.
    """

    in_extents: tuple[int, ...] = ()
    out_extents: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    pads: tuple[int, ...] = ()
    dilations: tuple[int, ...] = ()
    repeats: int = 1
    known: bool = True


@dataclass(frozen=True, slots=True)
class Site:
    """A layer that could become a factor pair: one weight, and every place that applies it.

    `kernel_shape` is (n, c/group, *k) for a conv and (n, c) for a matrix. `refusal` says why the layer
    cannot be touched at all, where that is so.
    """

    name: str
    op: str
    kernel_shape: tuple[int, ...]
    group: int
    uses: tuple[Use, ...]
    refusal: str | None = None

    def __post_init__(self) -> None:
        if self.kernel_shape and self.kernel_shape[0] % self.group:
            raise ValueError(
                f"{self.name}: {self.kernel_shape[0]} output channels do not divide into {self.group} groups"
            )

    @property
    def is_matrix(self) -> bool:
        """True where every scheme comes to the same thing: a matrix, or a kernel of one pixel."""
        return prod(self.kernel_shape[2:]) == 1

    @property
    def params(self) -> int:
        return prod(self.kernel_shape)

    @property
    def macs(self) -> int:
        """Multiply-adds of the dense layer in one inference."""
        return sum(self.params * prod(use.out_extents) * use.repeats for use in self.uses)

    def full_rank(self, scheme: Scheme) -> int:
        return full_rank(scheme, self.kernel_shape, self.group)

    def macs_per_rank(self, scheme: Scheme) -> int:
        """Multiply-adds of the pair per unit of rank: a pair's cost is linear in its rank.

        `reduce` has the output extent on the axes it covers, the input extent on the others.
        """
        unit = pair_shape(scheme, self.kernel_shape, self.group, 1)
        total = 0
        for use in self.uses:
            middle = prod(
                use.out_extents[axis] if axis in scheme.reduce_axes else use.in_extents[axis]
                for axis in range(len(use.out_extents))
            )
            total += (prod(unit.reduce) * middle + prod(unit.expand) * prod(use.out_extents)) * use.repeats
        return total

    def params_per_rank(self, scheme: Scheme) -> int:
        return pair_shape(scheme, self.kernel_shape, self.group, 1).params

    def macs_of(self, branches: Branches) -> int:
        """Multiply-adds of the pairs that the layer becomes; of the dense layer where it becomes none."""
        return sum(one.rank * self.macs_per_rank(one.scheme) for one in branches) if branches else self.macs

    def params_of(self, branches: Branches) -> int:
        return sum(one.rank * self.params_per_rank(one.scheme) for one in branches) if branches else self.params

    def break_even(self, scheme: Scheme, after: Branches = ()) -> int:
        """The smallest rank at which the pair, added to those before it, has as many multiply-adds as the layer."""
        left = self.macs - (self.macs_of(after) if after else 0)
        return max(1, -(-left // self.macs_per_rank(scheme)))
