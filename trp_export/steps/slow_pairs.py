"""Leave those layers dense whose pairs are not faster: by the clock of the device, or by an estimate."""

from __future__ import annotations

import math
from collections.abc import Container, Mapping
from dataclasses import dataclass, replace

from trp_export.errors import OptionError
from trp_export.latency.pair_costs import PairCost, PairCosts
from trp_export.planning.curves import Curve, Layer
from trp_export.planning.plan import Decision, Plan
from trp_export.planning.rules import keep
from trp_export.rules import Rule
from trp_export.steps.knowledge import Knowledge
from trp_export.steps.rules import plan_by
from trp_export.system.progress import Progress
from trp_export.system.text import name_some

# Plans that are made and timed at most: a layer whose pair is slow may get another one.
_ROUNDS = 4
_SLOW = "a pair is not faster"


@dataclass(frozen=True, slots=True)
class FastPlan:
    """A plan whose pairs are faster than their layers, as far as its rule allows, and notes on the others."""

    plan: Plan
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Round:
    """A plan with the costs of its pairs, what is known without the slow ones, and the costs of those left out.

    `speedup` over the network without pairs, and the damage on held-out images, are measured, or None.
    """

    plan: Plan
    costs: Mapping[str, PairCost]
    knowledge: Knowledge
    left_out: Mapping[str, PairCost]
    speedup: float | None = None
    measured_damage: float | None = None

    @property
    def time(self) -> float:
        """The time of the plan's network, as a share of that with all channels and without pairs; 1 if unknown.

        Where it is not measured, layers that were timed one by one are added up.
        """
        costs = self.knowledge.pair_costs
        if costs is None:
            return 1.0
        share_left = 1 / self.speedup if self.speedup else 1 - self._share_saved(costs)
        return share_left / costs.speedup_by_channels(self.knowledge.network)

    def _share_saved(self, costs: PairCosts) -> float:
        whole = costs.whole(self.plan)
        return sum(cost.dense - cost.pair for cost in self.costs.values()) / whole if whole else 0.0

    def timed(self) -> Round:
        """The same, timed as a whole where that is possible. Raises DeviceError."""
        costs = self.knowledge.pair_costs
        return replace(self, speedup=costs.speedup(self.plan) if costs is not None else None)

    @property
    def fast_plan(self) -> FastPlan:
        """The plan, with a note on slow pairs that it needs."""
        return FastPlan(_explained(self.plan, self.costs, self.left_out), _kept_though_slow(self.costs))


def plan_fast(rule: Rule, knowledge: Knowledge, progress: Progress) -> FastPlan:
    """The plan of a rule other than a budget, with layers dense whose pairs are not faster.

    A plan that was saved or trained is carried out as it is. Raises OptionError for a rule that cannot be met,
    DeviceError where costs can no longer be measured.
    """
    costs = knowledge.pair_costs
    if not rule.chooses_ranks or costs is None:
        plan = plan_by(rule, knowledge)
        return FastPlan(plan, _kept_though_slow(costs.costs(plan)) if costs is not None else ())
    last = without_slow_pairs(rule, knowledge, progress)[-1]
    slow = _slow(last.costs)
    plan, left_out = _faster_as_a_whole(_without(last.plan, slow), costs), {**last.left_out, **slow}
    plan = _explained(plan, costs.costs(plan), left_out)
    return FastPlan(plan, _left_out(plan, costs))


def without_slow_pairs(rule: Rule, knowledge: Knowledge, progress: Progress) -> list[Round]:
    """Plans of a rule, each without the pairs that were slow in the one before, until none is or it cannot be met.

    One plan where no costs are known. Raises OptionError where the first cannot be made, DeviceError.
    """
    plan, costs = plan_by(rule, knowledge), knowledge.pair_costs
    rounds: list[Round] = []
    left_out: dict[str, PairCost] = {}
    while True:
        progress("time the pairs", len(rounds) / _ROUNDS)
        rounds.append(Round(plan, costs.costs(plan) if costs is not None else {}, knowledge, left_out))
        slow = _slow(rounds[-1].costs)
        if not slow or len(rounds) == _ROUNDS:
            return rounds
        knowledge = replace(knowledge, layers=tuple(_below(layer, plan, slow) for layer in knowledge.layers))
        try:
            plan = plan_by(rule, knowledge)
        except OptionError:  # The budget is out of reach without these pairs.
            return rounds
        left_out = left_out | slow


def _slow(costs: Mapping[str, PairCost]) -> dict[str, PairCost]:
    return {name: cost for name, cost in costs.items() if not cost.is_lower}


def _below(layer: Layer, plan: Plan, slow: Mapping[str, PairCost]) -> Layer:
    """The layer with ranks of its slow scheme only as far as they would be faster, if time follows the rank."""
    cost = slow.get(layer.site.name)
    if cost is None:
        return layer
    (branches,) = (change.branches for change in plan.changed if change.site.name == layer.site.name)
    last = branches[-1]
    rank = min(last.rank - 1, int(last.rank * cost.highest / cost.pair))

    def limited(curve: Curve) -> Curve:
        is_slow = curve.scheme == last.scheme and curve.after == branches[:-1]
        return replace(curve, break_even=min(curve.break_even, rank + 1)) if is_slow else curve

    return replace(layer, curves=tuple(map(limited, layer.curves)))


def _without(plan: Plan, names: Container[str]) -> Plan:
    decisions = (keep(decision.site, _SLOW) if decision.site.name in names else decision for decision in plan.decisions)
    return replace(plan, decisions=tuple(decisions))


def _faster_as_a_whole(plan: Plan, costs: PairCosts) -> Plan:
    """The plan, or so many of its best pairs that the whole network is faster than without low rank.

    Layers are timed one by one; what a pair costs its neighbours, such as a change of layout, shows only in the whole.
    """
    while plan.changed and (costs.speedup(plan) or math.inf) <= 1:
        known = {name: cost.pair / cost.dense for name, cost in costs.costs(plan).items()}
        worst_first = sorted((change.site.name for change in plan.changed), key=lambda name: -known.get(name, 1.0))
        plan = _without(plan, worst_first[: -(-len(worst_first) // 2)])
    return plan


def _explained(plan: Plan, costs: Mapping[str, PairCost], left_out: Mapping[str, PairCost]) -> Plan:
    """The plan with the costs of pairs among its reasons."""

    def explain(decision: Decision) -> Decision:
        cost = (costs if decision.branches else left_out).get(decision.site.name)
        if cost is None or (decision.branches and cost.unit is None):
            return decision
        return replace(decision, reason=str(cost) if decision.branches else f"{_SLOW}{_detail(cost)}")

    return replace(plan, decisions=tuple(map(explain, plan.decisions)))


def _detail(cost: PairCost) -> str:
    return f": {cost}" if cost.unit is not None else ", by estimate"


def _left_out(plan: Plan, costs: PairCosts) -> tuple[str, ...]:
    """A note on layers that are dense though the rule gives them a pair."""
    count = sum(decision.reason.startswith(_SLOW) for decision in plan.decisions)
    if not count:
        return ()
    layers = "1 layer stays" if count == 1 else f"{count} layers stay"
    advice = "--keep-slow-pairs keeps them" if plan.changed else "--speedup 1.2 looks for pairs that are"
    return (f"{layers} dense, since a pair is not faster ({costs.source}); {advice}",)


def _kept_though_slow(costs: Mapping[str, PairCost]) -> tuple[str, ...]:
    """A note on slow pairs that the plan or its budget needs."""
    slow = [name for name, cost in _slow(costs).items() if cost.unit is not None]
    if not slow:
        return ()
    pairs = "the pair of {} is" if len(slow) == 1 else "the pairs of {} are"
    return (f"{pairs.format(name_some(slow))} not faster than the layer; --speedup chooses by time",)
