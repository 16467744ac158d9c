"""The outcome of an evaluation: one figure before and after, and the standard error of the difference."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

# A share of 1 that is shown in percent and whose difference is in points, decibels, or a number of the user's own.
Unit = Literal["%", "dB", ""]

NAMES: Mapping[Unit, str] = {"%": "pp", "dB": "dB", "": ""}
# A difference that equals the limit but for rounding is within it.
_ROUNDING = 1e-7
_RESAMPLES = 100


@dataclass(frozen=True, slots=True)
class Detail:
    """A second figure beside the score, such as AP50 beside mAP, in the same kind of unit."""

    what: str
    before: float
    after: float
    unit: Unit = "%"


@dataclass(frozen=True, slots=True)
class Score:
    """What a metric says of the original and of a result; more is better.

    `metric` is the name in options, `what` the same in words. `error` is the standard error of the change, paired over
    images. Without labels (`labelled` false) the original's own answers stand for them. `images` counts what `counted`
    names. `remark` says what lies behind the figures.
    """

    metric: str
    what: str
    before: float
    after: float
    unit: Unit = "%"
    images: int | None = None
    counted: str = "images"
    error: float | None = None
    labelled: bool = True
    details: tuple[Detail, ...] = ()
    remark: str = ""

    @property
    def drop(self) -> float:
        """What is lost, in the unit of `--max-drop`: points of 100, dB, or the user's own."""
        return (self.before - self.after) * scale(self.unit)


def scale(unit: Unit) -> float:
    """From a value to the unit of `--max-drop`: shares of 1 become points."""
    return 100.0 if unit == "%" else 1.0


def amount(value: float, unit: Unit) -> str:
    """A value in words: 38.70%, 52.13 dB, or four digits."""
    return {"%": f"{value:.2%}", "dB": f"{value:.2f} dB", "": f"{value:.4g}"}[unit]


def part_of(share: float, images: int) -> str:
    """The share of images that agree, in words: 98.00%, or all; 19,999 where that rounds to all of 20,000."""
    agree, text = round(share * images), f"{share:.2%}"
    if agree == images:
        return "all"
    return f"{agree:,}" if text == "100.00%" else text


def of_images(share: float, images: int) -> str:
    """The same alone: 98.00%, all 128, or 19,999 of 20,000."""
    part = part_of(share, images)
    return part if part.endswith("%") else of_all_images(share, images)


def of_all_images(share: float, images: int) -> str:
    """The same with the number of images: 98.00% of 128, or all 128."""
    part = part_of(share, images)
    return f"all {images:,}" if part == "all" else f"{part} of {images:,}"


def points(drop: float, unit: Unit) -> str:
    """A difference in words, as `--max-drop` counts it: 0.5 pp, 0.5 dB, 0.00214."""
    return f"{round(drop, 2):g} {NAMES[unit]}" if unit else f"{drop:.3g}"


def change(before: float, after: float, error: float | None, unit: Unit) -> str:
    """The change with its sign, and its standard error if that is known: -0.50 ± 0.12 pp, or no change."""
    if before == after and not error:
        return "no change"
    moved = f"{(after - before) * scale(unit):{'+.2f' if unit else '+.3g'}}"
    moved = moved[1:] if float(moved) == 0 else moved
    return f"{moved} {uncertainty(error, unit) or NAMES[unit]}".rstrip()


def uncertainty(error: float | None, unit: Unit) -> str:
    """A standard error in words, or nothing: ± 0.12 pp."""
    if not error:
        return ""
    text = f"{error * scale(unit):{'.2f' if unit else '.3g'}}"
    return f"± {text if float(text) else '< 0.01'} {NAMES[unit]}".rstrip()


def holds(score: Score | None, largest_drop: float | None) -> bool:
    """True where at most `largest_drop` is lost, in points or dB; also without a limit or without an evaluation."""
    return score is None or largest_drop is None or score.drop <= largest_drop + _ROUNDING


def paired_error(before: ArrayLike, after: ArrayLike) -> float:
    """The standard error of the mean change, from one value for each image before and after."""
    change = np.asarray(after, dtype=np.float64) - np.asarray(before, dtype=np.float64)
    return float(np.std(change) / math.sqrt(len(change)))


def resamples(images: int) -> NDArray[np.float64]:
    """How often each image counts in each of 100 samples of them, drawn with replacement: (100, images).

    For scores that are no mean over images: the spread of a change over resamples is its standard error (B. Efron,
    R. Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 6). For mAP the jackknife was measured to give
    errors 1.4 to 1.6 times too large, since a class may occur in one image alone.
    """
    return np.random.default_rng(0).multinomial(images, np.full(images, 1 / images), size=_RESAMPLES).astype(np.float64)


def bootstrap_error(before: NDArray[np.float64], after: NDArray[np.float64]) -> float:
    """The standard error of a change, from both scores on the same resamples."""
    return float(np.std(after - before, ddof=1))
