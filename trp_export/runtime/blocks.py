"""Large arrays some rows at a time, in another precision: sums of them need no copy of the whole."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

# At most 1 MB each.
_ENTRIES = 2**17


def in_blocks(*arrays: NDArray[Any], dtype: type[np.floating[Any]] = np.float64) -> Iterator[tuple[NDArray[Any], ...]]:
    """The rows of arrays (n, *) that belong together, as many at a time as make up a block of the first."""
    step = max(1, _ENTRIES * len(arrays[0]) // max(arrays[0].size, 1))
    for start in range(0, len(arrays[0]), step):
        yield tuple(array[start : start + step].astype(dtype, copy=False) for array in arrays)
