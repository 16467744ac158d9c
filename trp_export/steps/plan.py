"""From the user's rule to a plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from trp_export.errors import OptionError
from trp_export.load import Source
from trp_export.network import Network, left_out
from trp_export.options import Macs, MaxDrop, Params, Rule, SavedPlan, Selection, Speedup
from trp_export.planning.budgets import Damage, lost_energy, plan_by_macs, plan_by_params
from trp_export.planning.curves import Layer
from trp_export.planning.plan import Choice, Plan, parse_plan, read_plan
from trp_export.planning.rules import plan_by_choices, plan_by_rule
from trp_export.system.cpu import block_size

if TYPE_CHECKING:
    from trp_export.latency.network import NetworkLatency


def saved_choices(rule: Rule | MaxDrop | None, source: Source, needed: bool = True) -> tuple[Choice, ...]:
    """The choices of --plan, or without any rule those inside the checkpoint; none under other rules.

    Raises LoadError for a plan that cannot be read, OptionError where there is neither rule nor plan and one is needed.
    """
    if isinstance(rule, SavedPlan):
        return read_plan(rule.path)
    if rule is not None:
        return ()
    if source.plan is None and not needed:
        return ()
    if source.plan is None:
        raise OptionError("no rule says which ranks to take; --energy 0.98 is a good start.")
    return parse_plan(source.plan, f"the plan inside {source.name}")


def make_plan(
    layers: Sequence[Layer],
    network: Network,
    rule: Rule | None,
    saved: Sequence[Choice],
    selection: Selection,
    damage: Damage = lost_energy,
    latency: NetworkLatency | None = None,
) -> Plan:
    """The plan that the rule makes; budgets do the least damage. A speed-up needs the network's `latency`.

    Raises OptionError for a rule that cannot be met, DeviceError where a speed-up can no longer be measured.
    """
    align = block_size() if selection.align == "auto" else selection.align
    if rule is None or isinstance(rule, SavedPlan):
        where = f"plan {rule.path.name}" if isinstance(rule, SavedPlan) else "the plan inside the checkpoint"
        where = where if saved else "no rule, so every layer stays"
        wanted = [choice if left_out(choice.name, selection) is None else keep_dense(choice) for choice in saved]
        return plan_by_choices(layers, wanted, where)
    if isinstance(rule, Macs):
        plan = plan_by_macs(layers, network.macs, rule.ratio, align, damage)
    elif isinstance(rule, Speedup):
        from trp_export.latency.search import plan_for_speedup

        assert latency is not None
        plan = plan_for_speedup(layers, latency, rule.ratio, damage)
    elif isinstance(rule, Params):
        plan = plan_by_params(layers, network.params, rule.ratio, align, damage)
    else:
        plan = plan_by_rule(layers, rule, align)
    return replace(plan, align=align)


def keep_dense(choice: Choice) -> Choice:
    return replace(choice, branches=(), reason="left out by --only or --skip")
