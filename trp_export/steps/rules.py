"""The plan of each rule."""

from __future__ import annotations

from collections.abc import Mapping
from functools import singledispatch

from trp_export.latency.search import plan_for_speedup
from trp_export.planning.budgets import (
    Budget,
    BudgetedLayers,
    layers_in_macs,
    layers_in_params,
    layers_in_time,
    least_damage,
    plan_by_macs,
    plan_by_params,
)
from trp_export.planning.plan import Plan
from trp_export.planning.rules import plan_by_choices, plan_by_rule
from trp_export.planning.saved_plan import Choice
from trp_export.rules import Macs, OwnPlan, Params, RankRule, Rule, SavedPlan, Speedup
from trp_export.steps.knowledge import Knowledge


@singledispatch
def plan_by(rule: Rule, knowledge: Knowledge) -> Plan:
    """The plan that a rule makes; budgets do the least damage.

    Raises OptionError for a rule that cannot be met, DeviceError where a speed-up can no longer be measured.
    """
    raise NotImplementedError(f"no plan is made by {type(rule).__name__}")


@plan_by.register
def _(rule: RankRule, knowledge: Knowledge) -> Plan:
    return plan_by_rule(knowledge.layers, rule, knowledge.align)


@plan_by.register
def _(rule: Macs, knowledge: Knowledge) -> Plan:
    if rule.ratio <= knowledge.fewer_macs:
        return _by_channels_alone(f"macs {rule.ratio:g}x fewer", knowledge)
    return plan_by_macs(knowledge.layers, _in_macs(rule, knowledge), knowledge.align, knowledge.damage)


@plan_by.register
def _(rule: Params, knowledge: Knowledge) -> Plan:
    if rule.ratio <= knowledge.fewer_params:
        return _by_channels_alone(f"params {rule.ratio:g}x fewer", knowledge)
    return plan_by_params(knowledge.layers, _in_params(rule, knowledge), knowledge.align, knowledge.damage)


@plan_by.register
def _(rule: Speedup, knowledge: Knowledge) -> Plan:
    return plan_for_speedup(knowledge.layers, knowledge.measured_latency, rule.ratio, knowledge.damage)


@plan_by.register
def _(rule: SavedPlan, knowledge: Knowledge) -> Plan:
    return plan_by_choices(knowledge.layers, knowledge.saved, f"plan {rule.path.name}")


@plan_by.register
def _(rule: OwnPlan, knowledge: Knowledge) -> Plan:
    if knowledge.saved:
        return plan_by_choices(knowledge.layers, knowledge.saved, "the plan inside the checkpoint")
    return _all_kept(knowledge, "no rule, so nothing is lost", "no rule")


def _in_macs(rule: Macs, knowledge: Knowledge) -> Budget:
    return Budget(knowledge.macs, rule.ratio, knowledge.fewer_macs)


def _in_params(rule: Params, knowledge: Knowledge) -> Budget:
    return Budget(knowledge.params, rule.ratio, knowledge.fewer_params)


def under_budget(rule: Rule, knowledge: Knowledge) -> BudgetedLayers:
    """The layers with what a budget leaves them together."""
    layers, align, damage = knowledge.layers, knowledge.align, knowledge.damage
    match rule:
        case Macs():
            return layers_in_macs(layers, _in_macs(rule, knowledge), align, damage)
        case Params():
            return layers_in_params(layers, _in_params(rule, knowledge), align, damage)
        case Speedup():
            latency = knowledge.measured_latency
            return layers_in_time(layers, latency.timings, latency.of_layers(latency.original / rule.ratio), damage)
        case _:
            raise NotImplementedError(f"{type(rule).__name__} has no budget")


def damage_under(rule: Rule, knowledge: Knowledge) -> float:
    """The damage predicted of the channels that went and of the best pairs under a budget; infinite out of reach."""
    return knowledge.damage_done + least_damage(under_budget(rule, knowledge))


def layer_costs(rule: Rule, knowledge: Knowledge) -> Mapping[str, float]:
    """What each layer costs as it is, by name, in the unit of the rule's budget."""
    sites = [place.site for place in knowledge.network.located]
    match rule:
        case Params():
            return {site.name: site.params for site in sites}
        case Speedup():
            return knowledge.measured_latency.layer_costs
        case _:
            return {site.name: site.macs for site in sites}


def _by_channels_alone(rule: str, knowledge: Knowledge) -> Plan:
    """A budget that is met without low rank: the network without the removed channels is small enough."""
    return _all_kept(knowledge, rule, "the removal of channels meets the budget")


def _all_kept(knowledge: Knowledge, rule: str, reason: str) -> Plan:
    choices = tuple(Choice(layer.site.name, (), reason) for layer in knowledge.layers)
    return plan_by_choices(knowledge.layers, choices, rule)
