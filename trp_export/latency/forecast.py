"""What the table predicted for a plan, and what the whole network then measured."""

from __future__ import annotations

from dataclasses import dataclass

# Predictions for networks that fit a cache only when compressed are up to 10 % off without any disturbance.
_FAR_OFF = 0.2


@dataclass(frozen=True, slots=True)
class Forecast:
    """Costs of the whole network in `unit`: the `original` as measured, and under the plan as `predicted`.

    `measured` is how many times as fast as the original the network was with arbitrary factors, before the real ones
    were made. `device` is what the costs were measured on, `table` the file of the cache that holds them, `precision`
    what the plan was predicted and measured in; the original is as it was given.
    """

    device: str
    table: str | None
    unit: str
    original: float
    predicted: float
    measured: float
    precision: str = "fp32"

    @property
    def speedup(self) -> float:
        """How many times as fast as the original the plan was predicted to be."""
        return self.original / self.predicted

    @property
    def error(self) -> float:
        """How far the measured cost lies above the predicted one, as a share of it."""
        return self.speedup / self.measured - 1

    @property
    def remarks(self) -> tuple[str, ...]:
        """A remark if the prediction was so far off that the table cannot be trusted."""
        if abs(self.error) < _FAR_OFF:
            return ()
        return (
            f"the latency table was off by {abs(self.error):.0%}: something else ran while it was measured, or here. "
            f"The plan was corrected; remove {self.table or 'the table'} to measure again",
        )

    def __str__(self) -> str:
        in_precision = "" if self.precision == "fp32" else f" for {self.precision}"
        return (
            f"The latency table{in_precision} predicted {self.speedup:.2f}x "
            f"({self.original:.4g} to {self.predicted:.4g} {self.unit}); "
            f"the whole network measured {self.measured:.2f}x, {abs(self.error):.1%} "
            f"{'slower' if self.error > 0 else 'faster'} than predicted."
        )
