"""Leave those layers dense whose pairs are not faster: by the clock of the device, or by an estimate."""

from __future__ import annotations

import math
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace

from trp_export.errors import DeviceError, OptionError
from trp_export.latency.pair_costs import EstimatedCosts, PairCost, PairCosts
from trp_export.planning.curves import Curve, Layer
from trp_export.planning.plan import Decision, Plan
from trp_export.planning.rules import keep
from trp_export.rules import Macs, Params, Rule
from trp_export.steps.knowledge import Knowledge
from trp_export.steps.rules import damage_under, plan_by
from trp_export.system.progress import Progress
from trp_export.system.text import name_some

# Plans that are made and timed at most: a layer whose pair is slow may get another one.
_ROUNDS = 4
# Two profiles of one network differ as much.
_NO_SLOWER = 1.03
_SLOW = "a pair is not faster"


@dataclass(frozen=True, slots=True)
class FastPlan:
    """A plan whose pairs are faster than their layers, as far as its rule allows, and notes on the others."""

    plan: Plan
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Round:
    """A plan with the costs of its pairs, what is known without the slow ones, and the costs of those left out."""

    plan: Plan
    costs: Mapping[str, PairCost]
    knowledge: Knowledge
    left_out: Mapping[str, PairCost]

    @property
    def saved(self) -> float:
        """What the pairs save, in the unit of their costs."""
        return sum(cost.dense - cost.pair for cost in self.costs.values())


def plan_fast(rule: Rule, knowledge: Knowledge, progress: Progress) -> FastPlan:
    """The plan of a rule, with layers dense whose pairs are not faster.

    A budget is shared out again over the other layers; slow pairs stay where it is out of reach without them, or where
    that would do more damage than the time is worth. A plan that was saved or trained is carried out as it is. Where
    the device cannot time the network, costs are estimated, with a note. Raises OptionError for a rule that cannot be
    met.
    """
    try:
        return _plan_fast(rule, knowledge, progress)
    except DeviceError as error:
        reason = str(error).splitlines()[0]
        fast = _plan_fast(rule, replace(knowledge, pair_costs=EstimatedCosts()), progress)
        return replace(
            fast, notes=(*fast.notes, f"the cost of pairs is estimated, since they were not timed: {reason}")
        )


def _plan_fast(rule: Rule, knowledge: Knowledge, progress: Progress) -> FastPlan:
    plan, costs = plan_by(rule, knowledge), knowledge.pair_costs
    if costs is None or not plan.changed:
        return FastPlan(plan)
    if not rule.chooses_ranks:
        return FastPlan(plan, _kept_though_slow(costs.costs(plan)))
    rounds = _without_slow_pairs(plan, rule, knowledge, costs, progress)
    if isinstance(rule, (Macs, Params)):
        best = _best(rounds, rule, costs.whole(plan))
        return FastPlan(_explained(best.plan, best.costs, best.left_out), _kept_though_slow(best.costs))
    last = rounds[-1]
    slow = _slow(last.costs)
    plan, left_out = _faster_as_a_whole(_without(last.plan, slow), costs), {**last.left_out, **slow}
    plan = _explained(plan, costs.costs(plan), left_out)
    return FastPlan(plan, _left_out(plan, costs))


def _without_slow_pairs(
    plan: Plan, rule: Rule, knowledge: Knowledge, costs: PairCosts, progress: Progress
) -> list[_Round]:
    """Plans made again without the pairs that were slow in the one before, until none is or the rule cannot be met."""
    rounds: list[_Round] = []
    left_out: dict[str, PairCost] = {}
    while True:
        progress("time the pairs", len(rounds) / _ROUNDS)
        rounds.append(_Round(plan, costs.costs(plan), knowledge, left_out))
        slow = _slow(rounds[-1].costs)
        if not slow or len(rounds) == _ROUNDS:
            return rounds
        knowledge = replace(knowledge, layers=tuple(_below(layer, plan, slow) for layer in knowledge.layers))
        try:
            plan = plan_by(rule, knowledge)
        except OptionError:  # The budget is out of reach without these pairs.
            return rounds
        left_out = left_out | slow


def _best(rounds: Sequence[_Round], rule: Macs | Params, whole: float) -> _Round:
    """The round that does the least damage for what it saves, of those that do not make the network slower, if any.

    A budget asks for a share of the network, which the first round counts as saved; a later one, by what its pairs save
    more. It may do more damage in proportion. `whole` is the cost of the network without pairs.
    """
    asked = (1 - 1 / rule.ratio) * whole
    no_slower = [one for one in rounds if whole - one.saved <= _NO_SLOWER * one.knowledge.fewer_macs * whole]

    def damage_for_saved(one: _Round) -> float:
        saved = asked + one.saved - rounds[0].saved
        return damage_under(rule, one.knowledge) / saved if saved > 0 else math.inf

    return min(no_slower or rounds, key=damage_for_saved)


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
