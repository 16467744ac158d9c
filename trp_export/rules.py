"""How small a network becomes: the rules that a user can give, as plain values. `trp_export.steps.rules` plans."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, get_args

from trp_export.flags import InvalidOptionError, flag

if TYPE_CHECKING:
    from trp_export.planning.curves import Curve

FIRST, SIZE = "Most used", "Other ways to say how small (give one)"

# Rounding in a sum of squares must not cost a rank.
_ENERGY_SLACK = 1e-12


class Rule:
    """What every rule can do.

    `needs_sensitivities` is true of rules that trade layers against one another, `chooses_ranks` of all rules but
    saved plans.
    """

    __slots__ = ()
    needs_sensitivities: ClassVar[bool] = False
    chooses_ranks: ClassVar[bool] = True

    @property
    def needs_latency(self) -> bool:
        """True where plans are made from the latency of layers on the device."""
        return False

    @property
    def largest_drop(self) -> float | None:
        """The share of the evaluation's measure that the result may lose, where the rule limits it."""
        return None


class RankRule(Rule):
    """A rule that looks at each layer alone."""

    __slots__ = ()

    def rank(self, curve: Curve) -> int:
        """The rank that a layer keeps under one scheme."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Energy(RankRule):
    """The smallest rank of each layer that keeps at least this share of the squared singular values."""

    share: float = flag(
        "--energy",
        "Keep SHARE of the squared singular values in every layer, for example 0.98.",
        section=SIZE,
        read=float,
        metavar="SHARE",
    )

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise InvalidOptionError(f"{{share}} must be above 0 and at most 1, not {self.share:g}; 0.98 is usual.")

    def __str__(self) -> str:
        return f"energy {self.share:g}"

    def rank(self, curve: Curve) -> int:
        reaches = curve.energy >= self.share - _ENERGY_SLACK
        reaches[-1] = True  # Energy that is measured on images can stay below 1 at the full rank.
        return int(reaches.argmax()) + 1


@dataclass(frozen=True, slots=True)
class Threshold(RankRule):
    """Singular values below `value` are dropped: a share of the layer's largest, or absolute as in TRP."""

    value: float = flag(
        "--threshold",
        "Drop singular values below VALUE times the layer's largest.",
        section=SIZE,
        read=float,
        metavar="VALUE",
    )
    absolute: bool = flag(
        "--absolute",
        "With --threshold: compare singular values with VALUE itself, not with a share of the largest.",
        section=SIZE,
        kind="on",
        default=False,
    )

    def __post_init__(self) -> None:
        if not 0 < self.value < math.inf:
            raise InvalidOptionError(f"{{value}} must be a number above 0, not {self.value:g}.")
        if not self.absolute and self.value > 1:
            raise InvalidOptionError(
                f"{{value}} is a share of the largest singular value, at most 1, not {self.value:g}; "
                "or add {absolute}."
            )

    def __str__(self) -> str:
        return f"threshold {self.value:g} {'absolute' if self.absolute else 'of the largest singular value'}"

    def rank(self, curve: Curve) -> int:
        floor = self.value if self.absolute else self.value * curve.singular_values.max()
        return max(1, int((curve.singular_values >= floor).sum(axis=1).max()))


@dataclass(frozen=True, slots=True)
class Rank(RankRule):
    """One rank for every layer; a layer of lower full rank keeps its own."""

    value: int = flag("--rank", "Give every layer rank R.", section=SIZE, read=int, metavar="R")

    def __post_init__(self) -> None:
        if self.value < 1:
            raise InvalidOptionError(f"{{value}} must be at least 1, not {self.value}.")

    def __str__(self) -> str:
        return f"rank {self.value}"

    def rank(self, curve: Curve) -> int:
        return min(self.value, curve.full_rank)


def _require_ratio(ratio: float, meaning: str) -> None:
    if not 1 < ratio < math.inf:
        raise InvalidOptionError(f"{{ratio}} must be a number above 1, not {ratio:g}: {meaning}.")


@dataclass(frozen=True, slots=True)
class Macs(Rule):
    """The whole network with `ratio` times fewer multiply-adds."""

    needs_sensitivities: ClassVar[bool] = True
    ratio: float = flag(
        "--macs",
        "Use RATIO times fewer multiply-adds, shared out over the layers.",
        section=FIRST,
        read=float,
        metavar="RATIO",
    )

    def __post_init__(self) -> None:
        _require_ratio(self.ratio, "how many times fewer multiply-adds")


@dataclass(frozen=True, slots=True)
class Params(Rule):
    """The whole network with `ratio` times fewer parameters."""

    needs_sensitivities: ClassVar[bool] = True
    ratio: float = flag(
        "--params",
        "Use RATIO times fewer parameters, shared out over the layers.",
        section=SIZE,
        read=float,
        metavar="RATIO",
    )

    def __post_init__(self) -> None:
        _require_ratio(self.ratio, "how many times fewer parameters")


@dataclass(frozen=True, slots=True)
class Speedup(Rule):
    """The whole network `ratio` times as fast as the original, measured on the device of the benchmark."""

    needs_sensitivities: ClassVar[bool] = True
    ratio: float = flag(
        "--speedup",
        "Make the network RATIO times as fast as the original, measured on --device.",
        section=FIRST,
        read=float,
        metavar="RATIO",
    )

    def __post_init__(self) -> None:
        _require_ratio(self.ratio, "how many times as fast")

    @property
    def needs_latency(self) -> bool:
        return True


Minimise = Literal["macs", "params", "latency"]


@dataclass(frozen=True, slots=True)
class MaxDrop(Rule):
    """The smallest network that loses at most `points` of what the evaluation measures.

    They are points of 100 where that is a share, dB for a PSNR, and the unit of a function of the user's own.
    """

    needs_sensitivities: ClassVar[bool] = True
    points: float = flag(
        "--max-drop",
        "Find the smallest network that loses at most POINTS on --eval: points of 100, dB for psnr, or the unit of "
        "your own function.",
        section=SIZE,
        read=float,
        metavar="POINTS",
    )
    minimise: Minimise = flag(
        "--minimise",
        "With --max-drop: what to make smallest.",
        section=SIZE,
        choices=get_args(Minimise),
        default="macs",
    )

    def __post_init__(self) -> None:
        if not 0 <= self.points < 100:
            raise InvalidOptionError(f"{{points}} must lie between 0 and 100 points, not {self.points:g}.")
        if self.minimise not in get_args(Minimise):
            raise InvalidOptionError(
                f"{{minimise}} must be one of {', '.join(get_args(Minimise))}, not {self.minimise}."
            )

    @property
    def needs_latency(self) -> bool:
        return self.minimise == "latency"

    @property
    def largest_drop(self) -> float | None:
        return self.points

    def budget(self, ratio: float) -> Rule:
        """The rule that asks for this ratio."""
        return {"macs": Macs, "params": Params, "latency": Speedup}[self.minimise](ratio)


@dataclass(frozen=True, slots=True)
class SavedPlan(Rule):
    """A plan file, or a report that holds a plan."""

    chooses_ranks: ClassVar[bool] = False
    path: Path = flag(
        "--plan", "Carry out a saved plan, or the plan in a report.", section=SIZE, read=Path, metavar="FILE"
    )


@dataclass(frozen=True, slots=True)
class OwnPlan(Rule):
    """No rule at all: the plan inside the checkpoint, or every layer as it is."""

    chooses_ranks: ClassVar[bool] = False


RULES: tuple[type[Rule], ...] = (Speedup, Macs, MaxDrop, Energy, Threshold, Rank, Params, SavedPlan)
