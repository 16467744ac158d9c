"""What the table foretold of a plan, and what the whole network then measured."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Forecast:
    """Costs of the whole network in `unit`: the `original` as measured, and under the plan as `predicted`.

    `measured` is how many times as fast as the original the network was with arbitrary factors, before the real ones
    were made. `device` is what the costs were measured on.
    """

    device: str
    unit: str
    original: float
    predicted: float
    measured: float

    @property
    def speedup(self) -> float:
        """How many times as fast as the original the plan was predicted to be."""
        return self.original / self.predicted

    @property
    def error(self) -> float:
        """How far the measured cost lies above the predicted one, as a share of it."""
        return self.speedup / self.measured - 1

    def __str__(self) -> str:
        return (
            f"The latency table predicted {self.speedup:.2f}x "
            f"({self.original:.4g} to {self.predicted:.4g} {self.unit}); "
            f"the whole network measured {self.measured:.2f}x, {abs(self.error):.1%} "
            f"{'slower' if self.error > 0 else 'faster'} than predicted."
        )
