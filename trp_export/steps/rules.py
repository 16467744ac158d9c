"""The plan of each rule."""

from __future__ import annotations

from functools import singledispatch

from trp_export.latency.search import plan_for_speedup
from trp_export.planning.budgets import Budget, plan_by_macs, plan_by_params
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
    budget = Budget(knowledge.macs, rule.ratio, knowledge.fewer_macs)
    return plan_by_macs(knowledge.layers, budget, knowledge.align, knowledge.damage)


@plan_by.register
def _(rule: Params, knowledge: Knowledge) -> Plan:
    if rule.ratio <= knowledge.fewer_params:
        return _by_channels_alone(f"params {rule.ratio:g}x fewer", knowledge)
    budget = Budget(knowledge.params, rule.ratio, knowledge.fewer_params)
    return plan_by_params(knowledge.layers, budget, knowledge.align, knowledge.damage)


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


def _by_channels_alone(rule: str, knowledge: Knowledge) -> Plan:
    """A budget that is met without low rank, since channels that were removed at no loss left little enough."""
    return _all_kept(knowledge, rule, "the removal of channels meets the budget")


def _all_kept(knowledge: Knowledge, rule: str, reason: str) -> Plan:
    choices = tuple(Choice(layer.site.name, (), reason) for layer in knowledge.layers)
    return plan_by_choices(knowledge.layers, choices, rule)
