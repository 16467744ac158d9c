"""How small a network becomes: the rules that a user can give, each with the plan that it makes.

Rules are plain values. The planning itself is imported when a plan is made, so that `--help` answers at once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, get_args

from trp_export.errors import OptionError
from trp_export.flags import InvalidOptionError, flag

if TYPE_CHECKING:
    from trp_export.load.source import Source
    from trp_export.planning.curves import Curve, Layer
    from trp_export.planning.frontier import Frontier
    from trp_export.planning.plan import Choice, Plan
    from trp_export.steps.knowledge import Knowledge

FIRST, SIZE = "Most used", "How small, other than --speedup and --macs (give one)"

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

    def choices(self, source: Source, *, needed: bool) -> tuple[Choice, ...]:
        """The choices of a saved plan. Raises LoadError, and OptionError where one is `needed` and there is none."""
        return ()

    def plan(self, layers: Sequence[Layer], knowledge: Knowledge) -> Plan:
        """The plan of this rule. Raises OptionError for a rule that cannot be met."""
        raise NotImplementedError

    def search(self, layers: Sequence[Layer], knowledge: Knowledge) -> tuple[Plan, Frontier | None]:
        """The plan, and all networks that were tried on the way to it, where the rule tries several."""
        return self.plan(layers, knowledge), None


class _RankRule(Rule):
    """A rule that looks at each layer alone."""

    __slots__ = ()

    def rank(self, curve: Curve) -> int:
        """The rank that a layer keeps under one scheme."""
        raise NotImplementedError

    def plan(self, layers: Sequence[Layer], knowledge: Knowledge) -> Plan:
        from trp_export.planning.rules import plan_by_rule

        return plan_by_rule(layers, self, knowledge.align)


@dataclass(frozen=True, slots=True)
class Energy(_RankRule):
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
        return int((curve.energy >= self.share - _ENERGY_SLACK).argmax()) + 1


@dataclass(frozen=True, slots=True)
class Threshold(_RankRule):
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
        "With --threshold: VALUE is the smallest singular value itself.",
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
class Rank(_RankRule):
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

    def plan(self, layers: Sequence[Layer], knowledge: Knowledge) -> Plan:
        from trp_export.planning.budgets import plan_by_macs

        return plan_by_macs(layers, knowledge.macs, self.ratio, knowledge.align, knowledge.damage)


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

    def plan(self, layers: Sequence[Layer], knowledge: Knowledge) -> Plan:
        from trp_export.planning.budgets import plan_by_params

        return plan_by_params(layers, knowledge.params, self.ratio, knowledge.align, knowledge.damage)


@dataclass(frozen=True, slots=True)
class Speedup(Rule):
    """The whole network `ratio` times as fast as the original, measured on the device of the benchmark."""

    needs_sensitivities: ClassVar[bool] = True
    ratio: float = flag(
        "--speedup",
        "Run RATIO times as fast as the model given, in --precision, measured on --device.",
        section=FIRST,
        read=float,
        metavar="RATIO",
    )

    def __post_init__(self) -> None:
        _require_ratio(self.ratio, "how many times as fast")

    @property
    def needs_latency(self) -> bool:
        return True

    def plan(self, layers: Sequence[Layer], knowledge: Knowledge) -> Plan:
        from trp_export.latency.search import plan_for_speedup

        return plan_for_speedup(layers, knowledge.measured_latency, self.ratio, knowledge.damage)


Minimise = Literal["macs", "params", "latency"]


@dataclass(frozen=True, slots=True)
class MaxDrop(Rule):
    """The smallest network that loses at most `points` percentage points of what the evaluation measures."""

    needs_sensitivities: ClassVar[bool] = True
    points: float = flag(
        "--max-drop",
        "Find the smallest network that loses at most PP percentage points on --eval.",
        section=SIZE,
        read=float,
        metavar="PP",
    )
    minimise: Minimise = flag(
        "--minimise",
        "With --max-drop: what to make small.",
        section=SIZE,
        choices=get_args(Minimise),
        default="macs",
    )

    def __post_init__(self) -> None:
        if not 0 <= self.points < 100:
            raise InvalidOptionError(f"{{points}} must lie between 0 and 100 percentage points, not {self.points:g}.")
        if self.minimise not in get_args(Minimise):
            raise InvalidOptionError(
                f"{{minimise}} must be one of {', '.join(get_args(Minimise))}, not {self.minimise}."
            )

    @property
    def needs_latency(self) -> bool:
        return self.minimise == "latency"

    @property
    def largest_drop(self) -> float | None:
        return self.points / 100

    def budget(self, ratio: float) -> Rule:
        """The rule that asks for this ratio."""
        return {"macs": Macs, "params": Params, "latency": Speedup}[self.minimise](ratio)

    def search(self, layers: Sequence[Layer], knowledge: Knowledge) -> tuple[Plan, Frontier | None]:
        from trp_export.steps.max_drop import smallest_within_drop

        return smallest_within_drop(self, layers, knowledge)


class _SavedChoices(Rule):
    """The ranks of a plan that was made before."""

    __slots__ = ()
    chooses_ranks: ClassVar[bool] = False

    @property
    def where(self) -> str:
        """How the plan names where its choices come from."""
        raise NotImplementedError

    def plan(self, layers: Sequence[Layer], knowledge: Knowledge) -> Plan:
        from trp_export.planning.rules import plan_by_choices

        saved = knowledge.saved
        return plan_by_choices(layers, saved, self.where if saved else "no rule, so every layer stays")


@dataclass(frozen=True, slots=True)
class SavedPlan(_SavedChoices):
    """A plan file, or a report that holds a plan."""

    path: Path = flag(
        "--plan", "Carry out a saved plan, or the plan in a report.", section=SIZE, read=Path, metavar="FILE"
    )

    @property
    def where(self) -> str:
        return f"plan {self.path.name}"

    def choices(self, source: Source, *, needed: bool) -> tuple[Choice, ...]:
        from trp_export.planning.plan import read_plan

        return read_plan(self.path)


@dataclass(frozen=True, slots=True)
class OwnPlan(_SavedChoices):
    """No rule at all: the plan inside the checkpoint, or every layer as it is."""

    @property
    def where(self) -> str:
        return "the plan inside the checkpoint"

    def choices(self, source: Source, *, needed: bool) -> tuple[Choice, ...]:
        from trp_export.planning.plan import parse_plan

        if source.plan is not None:
            return parse_plan(source.plan, f"the plan inside {source.name}")
        if needed:
            raise OptionError("no rule says how small the network should become; start with --energy 0.98.")
        return ()


RULES: tuple[type[Rule], ...] = (Speedup, Macs, MaxDrop, Energy, Threshold, Rank, Params, SavedPlan)
