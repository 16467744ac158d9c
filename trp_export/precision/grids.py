"""The 8-bit grids that values are rounded to: unsigned for activations, signed and symmetric for weights.

Unsigned activations and signed weights are what the dot-product instructions of x86 take (VNNI), and what ARM takes
as well; a lower bound of zero makes a Relu before the rounding free.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

LEVELS = 255  # steps of an unsigned 8-bit grid
# x86 without VNNI adds two products in 16 bits: 255 * 64 twice fits, more would saturate. So all CPUs answer alike.
WEIGHT_LIMIT = 64
_BIAS_LIMIT = 2**30  # half of what an int32 holds: room for the sum that the bias is added to


@dataclass(frozen=True, slots=True)
class Grid:
    """An even grid of 256 values, `scale` apart, of which the one at index `zero` is 0."""

    scale: float
    zero: int

    def rounded(self, values: NDArray[Any]) -> NDArray[np.float64]:
        """Values as the grid can say them: rounded to the nearest, beyond its ends cut."""
        index = np.clip(np.rint(values / self.scale) + self.zero, 0, LEVELS)
        return np.asarray((index - self.zero) * self.scale, dtype=np.float64)


def grid_between(low: float, high: float) -> Grid:
    """The grid that spans [low, high] and holds 0 exactly; of width 1 where both are 0."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = float(np.float32((high - low) / LEVELS)) or 1.0 / LEVELS
    return Grid(scale, int(np.clip(round(-low / scale), 0, LEVELS)))


def weight_scales(
    kernel: NDArray[Any], axis: int, bias: NDArray[Any] | None = None, input_scale: float = 1.0
) -> NDArray[np.float32]:
    """A scale for each output channel, along `axis` of the kernel: (n,).

    Large enough that the bias, in steps of input scale times weight scale, fits into 32 bits.
    """
    others = tuple(other for other in range(kernel.ndim) if other != axis)
    scales = np.abs(kernel.astype(np.float64)).max(axis=others) / WEIGHT_LIMIT
    if bias is not None:
        scales = np.maximum(scales, np.abs(bias.astype(np.float64)) / (input_scale * _BIAS_LIMIT))
    # An all-zero channel takes any scale.
    return np.where(scales > 0, np.maximum(scales, np.finfo(np.float32).tiny), 1.0).astype(np.float32)


def round_weight(kernel: NDArray[Any], scales: NDArray[np.float32], axis: int) -> NDArray[np.int8]:
    spread = scales.astype(np.float64).reshape([-1 if other == axis else 1 for other in range(kernel.ndim)])
    return np.clip(np.rint(kernel / spread), -WEIGHT_LIMIT, WEIGHT_LIMIT).astype(np.int8)


def round_bias(bias: NDArray[Any], scales: NDArray[np.float32]) -> NDArray[np.int32]:
    """The bias in whole steps of `scales`, those of the products that it is added to."""
    limit = np.iinfo(np.int32).max
    return np.clip(np.rint(bias.astype(np.float64) / scales), -limit, limit).astype(np.int32)
