"""Outputs that no other metric fits, such as those of an unknown detection head: how much of them a result keeps.

The figure is the coefficient of determination (R²) to the original's outputs: 1 less the mean squared error, of every
channel in units of its own variance. Outputs and their channels count alike; an image keeps at least nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trp_export.calibration.divergence import channel_units
from trp_export.metrics.sample import Array, Outputs, Sample, Span
from trp_export.metrics.score import Score, paired_error

# What is kept of one image, for each output: (channels, positions).
Kept = list[NDArray[np.float32]]
# Of a large map this many evenly spaced positions, so that many images fit into memory.
_MOST_POSITIONS = 1024


@dataclass(frozen=True, slots=True)
class Answers:
    """R² to the original's outputs. `places` are the outputs that count, with the axis of their channels."""

    places: tuple[tuple[int, int], ...]

    def predict(self, outputs: Outputs, span: Span) -> list[Kept]:
        """The values of each image."""
        parts = [_positions(np.moveaxis(outputs[index], axis, 1)) for index, axis in self.places]
        return [list(values) for values in zip(*parts, strict=True)]

    def score(self, before: Sequence[Kept], after: Sequence[Kept]) -> Score:
        """The mean over images."""
        lost = np.mean(
            [_lost(*pair) for pair in zip(zip(*before, strict=True), zip(*after, strict=True), strict=True)], 0
        )
        kept = 1 - np.clip(np.nan_to_num(lost, nan=1.0), 0, 1)
        return Score(
            metric="outputs",
            what="likeness to the original's outputs (R²)",
            before=1.0,
            after=float(kept.mean()),
            images=len(kept),
            error=paired_error(np.ones(len(kept)), kept),
            labelled=False,
        )


def open_answers(sample: Sample) -> Answers | None:
    """The metric; None where no output has a row of numbers for each image."""
    places = tuple(
        (index, _channel_axis(output, sample.channels_last))
        for index, output in enumerate(sample.outputs)
        if output.dtype.kind == "f" and output.ndim >= 2 and len(output) == sample.count
    )
    return Answers(places) if places else None


def _channel_axis(output: Array, channels_last: bool) -> int:
    """That of maps follows the input's layout; of rows of values, channels are fewer than positions."""
    if output.ndim == 3:
        return 1 + int(np.argmin(output.shape[1:]))
    return output.ndim - 1 if channels_last else 1


def _positions(maps: Array) -> NDArray[np.float32]:
    """(n, channels, positions) of maps (n, channels, *)."""
    values = maps.reshape(*maps.shape[:2], -1)
    return np.asarray(values[:, :, :: -(-values.shape[2] // _MOST_POSITIONS) or 1], dtype=np.float32)


def _lost(before: Sequence[NDArray[np.float32]], after: Sequence[NDArray[np.float32]]) -> NDArray[np.float64]:
    """Of one output, the error of each image as a share of the variance; 1 where shapes differ."""
    everything = np.concatenate(before, axis=1, dtype=np.float64)
    units = channel_units(everything.var(axis=1))
    units = np.where(units > 0, units, 1.0)  # Nothing varies.
    return np.array(
        [
            float(np.mean(np.square(own.astype(np.float64) - truth).mean(axis=1) / units))
            if own.shape == truth.shape
            else 1.0
            for own, truth in zip(after, before, strict=True)
        ]
    )
