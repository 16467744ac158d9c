"""Recognise networks that were trained for low rank already: their singular values drop sharply."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trp_export.lowrank.factor import Float64
from trp_export.planning.curves import Curve

# A random kernel's neighbouring singular values differ by far less, except the very last ones.
_SHARP = 10.0
_SMALLEST_TAIL = 0.05


@dataclass(frozen=True, slots=True)
class LowRank:
    """How many of the layers drop sharply, and the energy at which cutting those layers loses nothing."""

    layers: int
    of_layers: int
    energy: float


def sharp_drop(singular_values: Float64) -> int | None:
    """The rank after which the singular values fall by a factor of ten or more, None where they never do.

    `singular_values` is (matrices, full rank), descending. What falls must be a twentieth of all ranks, and at
    least two: the last values of any square matrix are small by chance.
    """
    values = np.sqrt(np.sum(singular_values**2, axis=0))
    last = len(values) - max(2, int(np.ceil(_SMALLEST_TAIL * len(values))))
    if last < 1 or values[0] == 0:
        return None
    floor = values[0] * np.finfo(np.float64).eps
    drops = values[:last] / np.maximum(values[1 : last + 1], floor)
    rank = int(np.argmax(drops)) + 1
    return rank if drops[rank - 1] >= _SHARP else None


def recognise(curves: Sequence[Curve]) -> LowRank | None:
    """Whether a network has low rank already, from one curve for each layer; None where fewer than half drop."""
    dropped = [(curve, rank) for curve in curves if (rank := sharp_drop(curve.singular_values)) is not None]
    if not curves or 2 * len(dropped) < len(curves):
        return None
    return LowRank(len(dropped), len(curves), min(float(curve.energy[rank - 1]) for curve, rank in dropped))
