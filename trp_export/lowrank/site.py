"""A layer as the planner sees it, and what it costs dense or as a pair."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from trp_export.lowrank.schemes import Branches, Scheme, full_rank, pair_shape


@dataclass(frozen=True, slots=True)
class Use:
    """One application of a layer: extents per spatial axis, and how often it runs in one inference.

    A matrix (Gemm, MatMul) has no spatial axes; its rows are counted in `repeats`. Where the sizes are not `known`,
    costs are per output pixel and compare only within the layer.
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
    """A node, or all nodes that share one weight, and whether it could become a factor pair.

    `kernel_shape` is (n, c/group, *k) for a conv, transposed or not, (n, c) for a matrix, and () for what has no
    such kernel. `refusal` says why the layer cannot be changed. `fixed_macs` and `fixed_params` count a site without
    a kernel, such as an LSTM; `fixed_macs` is None where its sizes are unknown.
    """

    name: str
    op: str
    kernel_shape: tuple[int, ...]
    group: int
    uses: tuple[Use, ...]
    refusal: str | None = None
    fixed_macs: int | None = 0
    fixed_params: int = 0

    def __post_init__(self) -> None:
        if self.kernel_shape and self.kernel_shape[0] % self.group:
            raise ValueError(
                f"{self.name}: {self.kernel_shape[0]} output channels do not divide into {self.group} groups"
            )

    @property
    def is_matrix(self) -> bool:
        """True where all schemes are the same: for a matrix, and for a kernel of one pixel."""
        return prod(self.kernel_shape[2:]) == 1

    @property
    def is_known(self) -> bool:
        """True where `macs` is the number of multiply-adds, False where sizes are unknown and it is per pixel."""
        return self.fixed_macs is not None and all(use.known for use in self.uses)

    @property
    def params(self) -> int:
        return prod(self.kernel_shape) if self.kernel_shape else self.fixed_params

    @property
    def macs(self) -> int:
        """Multiply-adds of the dense layer in one inference."""
        if not self.kernel_shape:
            return self.fixed_macs or 0
        return sum(self.params * prod(self._positions(use)) * use.repeats for use in self.uses)

    def full_rank(self, scheme: Scheme) -> int:
        return full_rank(scheme, self.kernel_shape, self.group)

    def macs_per_rank(self, scheme: Scheme) -> int:
        """Multiply-adds of the pair per unit of rank: a pair's cost is linear in its rank.

        Between the two convs the extent is that of the output on the axes that `reduce` covers, that of the input on
        the others. A conv multiplies once for each output position, a transposed conv for each input position.
        """
        unit = pair_shape(scheme, self.kernel_shape, self.group, 1)
        total = 0
        for use in self.uses:
            middle = prod(
                use.out_extents[axis] if axis in scheme.reduce_axes else use.in_extents[axis]
                for axis in range(len(use.out_extents))
            )
            ends = prod(self._positions(use))
            first, second = (ends, middle) if self._is_transposed else (middle, ends)
            total += (prod(unit.reduce) * first + prod(unit.expand) * second) * use.repeats
        return total

    def params_per_rank(self, scheme: Scheme) -> int:
        return pair_shape(scheme, self.kernel_shape, self.group, 1).params

    def macs_of(self, branches: Branches) -> int:
        """Multiply-adds of the pairs that the layer becomes; of the dense layer without pairs."""
        return sum(branch.rank * self.macs_per_rank(branch.scheme) for branch in branches) if branches else self.macs

    def params_of(self, branches: Branches) -> int:
        """Parameters of the pairs that the layer becomes; of the dense layer without pairs."""
        if not branches:
            return self.params
        return sum(branch.rank * self.params_per_rank(branch.scheme) for branch in branches)

    def break_even(self, scheme: Scheme, after: Branches = ()) -> int:
        """The smallest rank at which the pair, added to those before it, has as many multiply-adds as the layer."""
        left = self.macs - (self.macs_of(after) if after else 0)
        return max(1, -(-left // max(1, self.macs_per_rank(scheme))))

    @property
    def _is_transposed(self) -> bool:
        return self.op == "ConvTranspose"

    def _positions(self, use: Use) -> tuple[int, ...]:
        return use.in_extents if self._is_transposed else use.out_extents
