"""The 8-bit grids that values are rounded to: unsigned for activations, signed and symmetric for weights.

The dot-product instructions of x86 (VNNI) and those of ARM take unsigned activations and signed weights. With a lower
bound of zero, rounding also does the work of a Relu before it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

LEVELS = 255  # the steps of an unsigned 8-bit grid
# x86 without VNNI adds two products in 16 bits: twice 255 * 64 fits, more would saturate. So all CPUs agree.
WEIGHT_LIMIT = 64
_BIAS_LIMIT = 2**30  # half of what an int32 holds: room for the sum that the bias is added to


@dataclass(frozen=True, slots=True)
class Grid:
    """256 evenly spaced values, `scale` apart; the value at index `zero` is 0."""

    scale: float
    zero: int

    def rounded(self, values: NDArray[Any]) -> NDArray[np.float64]:
        """Values rounded to the nearest value of the grid, and clipped to its ends."""
        index = np.clip(np.rint(values / self.scale) + self.zero, 0, LEVELS)
        return np.asarray((index - self.zero) * self.scale, dtype=np.float64)


def grid_between(low: float, high: float) -> Grid:
    """The grid that spans [low, high] and contains 0 exactly; it has width 1 where both are 0."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = float(np.float32((high - low) / LEVELS)) or 1.0 / LEVELS
    return Grid(scale, int(np.clip(round(-low / scale), 0, LEVELS)))


def weight_scales(
    kernel: NDArray[Any], axis: int, bias: NDArray[Any] | None = None, input_scale: float = 1.0
) -> NDArray[np.float32]:
    """One scale for each output channel, along `axis` of the kernel: (n,).

    The scales are large enough that the bias, in steps of input scale times weight scale, fits into 32 bits.
    """
    others = tuple(other for other in range(kernel.ndim) if other != axis)
    scales = np.abs(kernel.astype(np.float64)).max(axis=others) / WEIGHT_LIMIT
    if bias is not None:
        scales = np.maximum(scales, np.abs(bias.astype(np.float64)) / (input_scale * _BIAS_LIMIT))
    # Any scale suits a channel of zeros.
    return np.where(scales > 0, np.maximum(scales, np.finfo(np.float32).tiny), 1.0).astype(np.float32)


def round_weight(kernel: NDArray[Any], scales: NDArray[np.float32], axis: int) -> NDArray[np.int8]:
    spread = scales.astype(np.float64).reshape([-1 if other == axis else 1 for other in range(kernel.ndim)])
    return np.clip(np.rint(kernel / spread), -WEIGHT_LIMIT, WEIGHT_LIMIT).astype(np.int8)


def round_bias(bias: NDArray[Any], scales: NDArray[np.float32]) -> NDArray[np.int32]:
    """The bias in whole steps of `scales`, the scales of the products that it is added to."""
    limit = np.iinfo(np.int32).max
    return np.clip(np.rint(bias.astype(np.float64) / scales), -limit, limit).astype(np.int32)
