"""How far outputs are from the original's, without labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Outputs = Mapping[str, Array]


def divergence(original: Outputs, other: Outputs) -> float:
    """Squared distance over the original's spread about its mean over classes or positions, averaged over outputs.

    Networks are all but certain on images they were trained on: there a divergence of probabilities sees only the few
    doubtful images, this measure sees all of them.
    """
    shares = []
    for name, reference in original.items():
        a, b = reference.astype(np.float64), other[name].astype(np.float64)
        axes = tuple(range(1, a.ndim))
        a, b = a - a.mean(axis=axes, keepdims=True), b - b.mean(axis=axes, keepdims=True)
        spread = float(np.sum(a**2))
        shares.append(float(np.sum((a - b) ** 2)) / spread if spread > 0 else 0.0)
    return float(np.mean(shares))


def agreement(original: Outputs, other: Outputs) -> float:
    """Share of the images for which the first output has the same largest entry."""
    name = next(iter(original))
    a, b = (outputs[name].reshape(len(outputs[name]), -1) for outputs in (original, other))
    return float(np.mean(a.argmax(axis=1) == b.argmax(axis=1)))
