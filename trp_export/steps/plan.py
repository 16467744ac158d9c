"""From the rule and what is known of the network to a plan."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from trp_export.latency.forecast import Forecast
from trp_export.options import Options
from trp_export.planning.curves import Layer
from trp_export.planning.frontier import Frontier
from trp_export.planning.plan import Plan
from trp_export.planning.trained_low_rank import recognise, sharp_drop
from trp_export.rules import MaxDrop
from trp_export.steps.best_plan import best_plan
from trp_export.steps.knowledge import Knowledge
from trp_export.steps.max_drop import smallest_within_drop
from trp_export.steps.thin_channels import Thinner
from trp_export.workspace import Workspace

# Lost energy that is rounding and no more.
_ROUNDING = 1e-6


@dataclass(frozen=True, slots=True, eq=False)
class Planned:
    """The plan, the network that it is for, those tried on the way, and the speed-up that latencies predict, if any."""

    plan: Plan
    knowledge: Knowledge
    frontier: Frontier | None
    forecast: Forecast | None
    notes: tuple[str, ...]


def make_plan(knowledge: Knowledge, options: Options, work: Workspace) -> Planned:
    """The plan of the options' rule, for the network as it is or with fewer channels.

    Raises OptionError for a rule that cannot be met, DeviceError where a speed-up can no longer be measured.
    """
    rule = options.effective_rule
    frontier = None
    if isinstance(rule, MaxDrop):
        fast, knowledge, frontier = smallest_within_drop(rule, knowledge, options, work)
    else:
        fast, knowledge = best_plan(rule, Thinner(knowledge, options, work), work.progress)
    plan = replace(fast.plan, channels=knowledge.network.channels, rewrites=knowledge.network.rewrites)
    if rule.chooses_ranks:
        plan = replace(plan, align=knowledge.align)
    forecast = knowledge.latency.forecast(plan) if knowledge.latency is not None else None
    notes = (*fast.notes, *_low_rank_already(knowledge.layers), *(forecast.remarks if forecast is not None else ()))
    return Planned(plan, knowledge, frontier, forecast, notes)


def _low_rank_already(layers: Sequence[Layer]) -> tuple[str, ...]:
    """A note where the network was trained for low rank: the singular values of its layers drop sharply."""
    sharpest = [
        max(layer.curves, key=lambda curve: sharp_drop(curve.singular_values) or 0) for layer in layers if layer.curves
    ]
    found = recognise(sharpest)
    if found is None or 1 - found.energy > _ROUNDING:
        return ()
    energy = min(math.floor(found.energy * 1e6) / 1e6, 0.999999)  # 1 would keep what is only rounding.
    return (f"{found.layers} of {found.of_layers} layers have low rank already: --energy {energy:g} costs nothing",)
