"""The damage to a network's output as a function of one layer's relative output error: a power law through points.

Between the points it is interpolated in log-log. Outside it goes on at the slope next to it: clamped, rank 1 would
look free.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from trp_export.lowrank.factor import Float64

# A quadratic measure of damage grows as the squared error does (slope 1); noise must not reverse it.
_LEAST_SLOPE, _LARGEST_SLOPE = 0.5, 2.0
_LEAST_DAMAGE = 1e-9


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """One layer's `errors` (squared, relative to its output's variance, ascending) and the `damage` of each.

    Damage is the divergence of the network's outputs, in nats for classifiers.
    """

    errors: tuple[float, ...]
    damage: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.errors or len(self.errors) != len(self.damage):
            raise ValueError("a sensitivity needs as many errors as damages, and at least one")
        if any(b <= a for a, b in zip((0.0, *self.errors), self.errors, strict=False)):
            raise ValueError(f"errors must ascend from above 0: {self.errors}")

    def at(self, errors: Float64) -> Float64:
        """Damage at these relative squared errors; 0 where there is no error."""
        known = np.log(self.errors)
        damage = np.log(np.maximum.accumulate(np.maximum(self.damage, _LEAST_DAMAGE)))
        slopes = np.ones(1)
        if len(known) > 1:
            slopes = np.clip(np.diff(damage) / np.diff(known), _LEAST_SLOPE, _LARGEST_SLOPE)
        x = np.log(np.maximum(errors, 1e-300))
        inside = np.interp(x, known, damage)
        below = damage[0] + slopes[0] * (x - known[0])
        above = damage[-1] + slopes[-1] * (x - known[-1])
        result = np.exp(np.where(x < known[0], below, np.where(x > known[-1], above, inside)))
        return np.asarray(np.where(errors > 0, result, 0.0))


def damage_of(layer: str, errors: Float64, sensitivities: Mapping[str, Sensitivity]) -> Float64:
    """What errors of a layer's output do to the answers; of a layer whose sensitivity is unknown, as of the others."""
    own = sensitivities.get(layer)
    laws = [own] if own is not None else list(sensitivities.values())
    return np.asarray(np.median([law.at(errors) for law in laws], axis=0) if laws else errors)
