"""The frontier of size against quality, and the search for its largest point within a limit."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

START = 2.0
STEP = 1.5
# A smaller ratio is not worth an export; networks closer than this cannot be distinguished by images.
LEAST = 1.05
CLOSE = 1.02
MOST = 8


@dataclass(frozen=True, slots=True)
class Point:
    """A network that was built and evaluated: the ratio of its budget, its cost and its quality.

    `reached` is how many times smaller it is by what the budget counts; `error` is the standard error of the change to
    `after`; `holds` says whether it is within the limit; `precision` is that of the model that was evaluated.
    """

    ratio: float
    reached: float
    params: int
    macs: int | None
    after: float
    error: float | None
    holds: bool
    precision: str = "fp32"


@dataclass(frozen=True, slots=True)
class Frontier:
    """Every point that was tried, from the largest network to the smallest, and the index of the chosen one.

    `what` is measured on `images` images, or what `counted` names: `before` for the original. `unit` is that of the
    values, `%` for shares of 1; `max_drop` is the limit, in points of 100 or in that unit; `by` names the budget.
    """

    what: str
    images: int | None
    before: float
    max_drop: float
    by: str
    points: tuple[Point, ...]
    chosen: int
    unit: Literal["%", "dB", ""] = "%"
    counted: str = "images"

    @property
    def limit(self) -> float:
        """The lowest acceptable quality."""
        return self.before - self.max_drop / (100 if self.unit == "%" else 1)


def explore(see: Callable[[float], bool | None]) -> None:
    """Show `see` the ratios at which the largest that holds is looked for; it answers whether one does.

    None stands for a ratio that cannot be reached, which costs nothing. First a bracket, then halves of it on a
    logarithmic scale. That smaller networks do worse is taken as a guide, not as a rule: the caller keeps the best.
    """
    holds, fails, ratio, seen = 1.0, math.inf, START, 0
    while seen < MOST and ratio >= LEAST and fails / holds > CLOSE:
        found = see(ratio)
        seen += found is not None
        if found:
            holds = ratio
        else:
            fails = ratio
        ratio = round(holds * STEP if math.isinf(fails) else math.sqrt(holds * fails), 3)
