"""The best plan of a rule: pairs alone or beside fewer channels, whichever does less damage for the time it saves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from trp_export.errors import DeviceError, OptionError
from trp_export.latency.pair_costs import EstimatedCosts
from trp_export.options import Options
from trp_export.rules import Macs, Params, Rule
from trp_export.steps.factors import make_factors
from trp_export.steps.knowledge import Knowledge
from trp_export.steps.rules import damage_under
from trp_export.steps.slow_pairs import FastPlan, Round, plan_fast, without_slow_pairs
from trp_export.steps.thin_channels import CLEARLY_LESS, Thinner
from trp_export.system.progress import Progress

# Two profiles of one network differ as much.
_NO_SLOWER = 1.03


def best_plan(rule: Rule, thinner: Thinner, progress: Progress) -> tuple[FastPlan, Knowledge]:
    """The plan of a rule, with layers dense whose pairs are not faster, and what is known of the network it is for.

    Under a budget, slow pairs stay where it is out of reach without them, or where that would do more damage than the
    time is worth; channels go where that does clearly less damage for the time. Where the device cannot time the
    network, costs are estimated, with a note. Raises OptionError for a rule that cannot be met.
    """
    try:
        return _best_plan(rule, thinner, progress)
    except DeviceError as error:
        if thinner.wide.pair_costs is None:
            raise
        thinner.wide = replace(thinner.wide, pair_costs=EstimatedCosts())
        fast, knowledge = _best_plan(rule, thinner, progress)
        note = f"the cost of pairs is estimated, since they were not timed: {str(error).splitlines()[0]}"
        return replace(fast, notes=(*fast.notes, note)), knowledge


def _best_plan(rule: Rule, thinner: Thinner, progress: Progress) -> tuple[FastPlan, Knowledge]:
    if isinstance(rule, (Macs, Params)):
        return _under_budget(rule, thinner, progress)
    knowledge = thinner.fewer(rule)
    return plan_fast(rule, knowledge, progress), knowledge


def _under_budget(rule: Macs | Params, thinner: Thinner, progress: Progress) -> tuple[FastPlan, Knowledge]:
    """The best of the timed plans of pairs alone and of those beside fewer channels.

    Channels share the budget with all pairs, and where these save no time once more with those that the clock kept.
    The best plan for each of these networks is timed as a whole, and its damage measured, before one is taken.
    """
    rounds = [] if thinner.required else _reachable(rule, thinner.wide, progress)
    found = [thinner.fewer(rule)]
    if len(rounds) > 1 and rounds[0].time >= 1:
        found.append(thinner.fewer(rule, rounds[-1].knowledge.layers))
    known = {id(one.network): one for one in (thinner.wide, *found)}
    thin = [one for one in known.values() if one.network is not thinner.wide.network]
    for knowledge in thin if rounds or thin else [thinner.wide]:
        rounds += without_slow_pairs(rule, knowledge, progress)
    progress("time the best plans", 0)
    best = _best_of_each_network(rounds, rule)
    if len(best) > 1:
        best = [_judged(one, thinner.options, progress) for one in best]
    chosen = _best(best, rule)
    return chosen.fast_plan, known[id(chosen.knowledge.network)]


def _judged(one: Round, options: Options, progress: Progress) -> Round:
    """The same with its damage measured on held-out images: what is predicted of pairs may be far off."""
    known, calibration = one.knowledge.calibration, options.calibration
    if known is None or calibration is None:
        return one
    fitted = make_factors(one.knowledge.network, one.plan, known, replace(calibration, recover=False), progress)
    return replace(one, measured_damage=fitted.held_out.divergence if fitted.held_out is not None else None)


def _reachable(rule: Macs | Params, knowledge: Knowledge, progress: Progress) -> list[Round]:
    """Timed plans; none where the rule cannot be met."""
    try:
        return without_slow_pairs(rule, knowledge, progress)
    except OptionError:
        return []


def _best_of_each_network(rounds: Sequence[Round], rule: Macs | Params) -> list[Round]:
    """The best round for each network, timed as a whole where there are several networks."""
    groups: dict[int, list[Round]] = {}
    for one in rounds:
        groups.setdefault(id(one.knowledge.network), []).append(one)
    best = [_best(group, rule) for group in groups.values()]
    return [one.timed() for one in best] if len(best) > 1 else best


def _best(rounds: Sequence[Round], rule: Macs | Params) -> Round:
    """The round that does the least damage for what it saves, of those that do not make the network slower, if any.

    A budget asks for a share of the network, which the first round counts as saved; another, by what it saves more. It
    may do more damage in proportion.
    """
    if len(rounds) == 1:  # Nothing is timed for it.
        return rounds[0]
    first, asked = rounds[0], 1 - 1 / rule.ratio
    no_slower = [one for one in rounds if one.time <= _NO_SLOWER]

    def damage_for_saved(one: Round) -> float:
        saved = asked + first.time - one.time
        damage = one.measured_damage
        if damage is None:
            damage = damage_under(rule, one.knowledge)
            if one.knowledge.network.wide is not None:
                damage /= CLEARLY_LESS
        return damage / saved if saved > 0 else math.inf

    return min(no_slower or rounds, key=damage_for_saved)
