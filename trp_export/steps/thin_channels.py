"""Remove channels by images: choose them under a budget, refit what reads them, and learn about what is left."""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx_ir as ir

from trp_export.channels.least_squares import Thinnable, Thinning, find_thinnable, find_thinning, refitted
from trp_export.channels.thin import UNLIKE, ChannelChoice, analyse_groups, saved_decisions
from trp_export.errors import OptionError
from trp_export.graph.bias import add_to_bias
from trp_export.graph.rewrite import set_kernel
from trp_export.graph.shapes import infer_value_shapes
from trp_export.graph.sites import find_sites
from trp_export.latency.pair_costs import EstimatedCosts
from trp_export.network import Network, analyse, measure_layers
from trp_export.options import Options
from trp_export.planning.budgets import BudgetedLayers, share_out
from trp_export.planning.channels import ChannelDecision
from trp_export.planning.curves import Layer
from trp_export.planning.knapsack import Menu
from trp_export.planning.sensitivity import Sensitivity, damage_of
from trp_export.rules import Rule, Speedup
from trp_export.steps.calibrate import CalibrationData, calibrate, divergence_of
from trp_export.steps.knowledge import ChannelsByImages, Knowledge, with_clocks
from trp_export.steps.rules import damage_under, layer_costs, under_budget
from trp_export.system.threads import map_layers
from trp_export.workspace import Workspace

Wanted = Mapping[str, Sequence[int]]
# Fewer channels must do this share of the damage of pairs alone: pairs are refitted one behind the other, which their
# predicted damage does not see.
CLEARLY_LESS = 2 / 3
# A network that channels alone make faster than asked by more than this gets some of them back.
_NEAR = 0.02
_MOST_TRIES = 3
_LEAST_SPEEDUP = 1.01
# The squared relative error of a layer at which layers that read the same channels are compared.
_SMALL = np.array(0.01)


@dataclass(frozen=True, slots=True)
class _Gone:
    """Channels of each group that go, the damage that this does, and the damage predicted of them and pairs."""

    channels: Wanted
    damage: float
    predicted: float


@dataclass(frozen=True, slots=True, eq=False)
class _Removable:
    """The groups that may lose channels, which of them are to, and what images say of them."""

    groups: tuple[Thinnable, ...]
    choice: ChannelChoice
    data: CalibrationData


@dataclass(slots=True, eq=False)
class Thinner:
    """Removes channels of one network by images, for one rule after another of the same kind."""

    wide: Knowledge
    options: Options
    work: Workspace
    _removable: _Removable | None = None
    _thinnings: tuple[Thinning, ...] | None = None

    @property
    def required(self) -> bool:
        """Whether channels are to go whatever is predicted."""
        return self.wide.by_images is not None and self.wide.by_images.required

    def fewer(self, rule: Rule, layers: Sequence[Layer] | None = None) -> Knowledge:
        """What is known of the network with fewer channels, for a rule to make a plan for.

        A budget is shared out over channels and the pairs of `layers`, by default all. Where no channels may go, or
        more damage is predicted and nobody requires it, what is known already; under a speed-up, where not clearly
        less is. Raises OptionError for a saved plan of other groups.
        """
        by_images, data = self.wide.by_images, self.wide.calibration
        if by_images is None or data is None:
            return self.wide
        pairs = replace(self.wide, layers=tuple(layers)) if layers is not None else self.wide
        try:
            return self._fewer(rule, pairs, by_images, data) or self.wide
        except UNLIKE as error:
            if by_images.required:
                raise
            note = f"all channels stay, since this network is unlike those known ({error!r:.80}); please report it"
            self.wide = replace(self.wide, by_images=None, remarks=(*self.wide.remarks, note))
            return self.wide

    def _fewer(
        self, rule: Rule, pairs: Knowledge, by_images: ChannelsByImages, data: CalibrationData
    ) -> Knowledge | None:
        """What is known of the thinner network; None where it is not to be made."""
        wide = self.wide
        if self._removable is None:
            self._removable = _find_removable(wide.network, data, by_images.choice, layer_costs(rule, wide))
        share = CLEARLY_LESS if isinstance(rule, Speedup) else 1.0  # A budget's plans are compared with their times.
        allowed = math.inf if by_images.required else share * damage_under(rule, wide)
        found = self._not_too_fast(rule, pairs, self._removable, allowed)
        if found is None:
            return None
        thin = _learn_again(*found, wide, self.options, self.work)
        if thin is not None and (by_images.required or damage_under(rule, thin) <= allowed):
            return thin
        _remove_files(found[0])
        return None

    def _not_too_fast(
        self, rule: Rule, pairs: Knowledge, removable: _Removable, allowed: float
    ) -> tuple[Network, float] | None:
        """The network without the channels that go, and the damage done; little faster than a speed-up asks for.

        None where no channels go, or they and pairs do more damage than is allowed.
        """
        wide, data = self.wide.network, removable.data
        found, aim = None, rule
        for _ in range(_MOST_TRIES):
            gone = self._choose(aim, pairs, removable)
            # Channels and pairs save less together than each alone: what they cannot reach is out of reach.
            hopeless = math.isinf(gone.predicted) and not isinstance(rule, Speedup) and not self.required
            if not gone.channels or gone.predicted > allowed or hopeless:
                break
            refitted = _refitted(gone.channels, removable, wide)
            damage = divergence_of(refitted, wide, data) if data.sensitivities else gone.damage
            if gone.predicted - gone.damage + damage > allowed:
                break
            network = _without(gone.channels, refitted, wide, removable, self.work)
            if network is None:
                break
            if found is not None:
                _remove_files(found[0])
            found = network, damage
            if not (isinstance(rule, Speedup) and isinstance(aim, Speedup)):
                break
            excess = self.wide.measured_latency.speedup_of(network) / rule.ratio
            if excess <= 1 + _NEAR:
                break
            aim = Speedup(max(aim.ratio / excess, _LEAST_SPEEDUP))
        return found

    def _choose(self, rule: Rule, pairs: Knowledge, removable: _Removable) -> _Gone:
        """The channels of each group that go: those of a saved plan, or for the least damage under a budget."""
        if removable.choice.saved is not None:
            return _Gone(_saved(removable.groups, removable.choice.saved), 0.0, 0.0)
        return _share_out(self._find(removable), under_budget(rule, pairs), removable.data)

    def _find(self, removable: _Removable) -> tuple[Thinning, ...]:
        """What may go of each group; found once."""
        if self._thinnings is None:
            data = removable.data

            def thinning(one: Thinnable) -> Thinning:
                weights = {r.name: float(damage_of(r.name, _SMALL, data.sensitivities)) for r in one.readers}
                return find_thinning(one, data.moments, data.judge or data.moments, weights)

            self._thinnings = tuple(map_layers(thinning, removable.groups, partial(self.work.progress, "channels")))
        return self._thinnings


def _find_removable(
    network: Network, data: CalibrationData, choice: ChannelChoice, costs: Mapping[str, float]
) -> _Removable:
    shapes = infer_value_shapes(network.model, network.described.shapes)
    analysis, groups = analyse_groups(network.model, shapes, choice.left_out)
    thinnable = find_thinnable(analysis, groups, network.located, data.moments, costs)
    return _Removable(thinnable, replace(choice, saved=saved_decisions(groups, choice)), data)


def _saved(thinnable: Sequence[Thinnable], saved: Sequence[ChannelDecision]) -> Wanted:
    known = {one.group.name: len(one.group.channels) for one in thinnable}
    for decision in saved:
        if decision.fitted and known.get(decision.name) != decision.channels:
            raise OptionError(
                f"the plan removes channels of {decision.name}, which is not possible in this network. Use the plan "
                "with the network that it was made for."
            )
    return {decision.name: decision.dropped for decision in saved if decision.fitted}


def _share_out(thinnings: Sequence[Thinning], layers: BudgetedLayers, data: CalibrationData) -> _Gone:
    """The channels of each group that go under a budget, for the least damage."""
    menus = [_menu(one, data.sensitivities) for one in thinnings]
    taken, of_all = share_out(layers, menus)
    gone = {
        one.of.group.name: tuple(sorted(one.order[: one.counts[option]]))
        for one, option in zip(thinnings, taken, strict=True)
        if option
    }
    return _Gone(gone, sum(float(menu.damage[option]) for menu, option in zip(menus, taken, strict=True)), of_all)


def _menu(thinning: Thinning, sensitivities: Mapping[str, Sensitivity]) -> Menu:
    """What each count saves, and the damage that it does."""
    readers = zip(thinning.of.readers, thinning.errors, strict=True)
    damage = np.sum([damage_of(reader.name, errors, sensitivities) for reader, errors in readers], axis=0)
    saved = thinning.of.cost * np.array(thinning.counts, dtype=np.float64)
    return Menu(-saved, np.asarray(damage, dtype=np.float64))


def _refitted(gone: Wanted, removable: _Removable, wide: Network) -> ir.Model:
    """The wide network with all that read these channels refitted to do without."""
    model = wide.model.clone()
    places = {place.site.name: place for place in find_sites(model, wide.shapes)}
    for name, lost in _lost_inputs(gone, removable.groups).items():
        kernel, shift = refitted(places[name], lost, removable.data.moments[name])
        set_kernel(places[name], kernel)
        add_to_bias(model, [places[name]], {name: shift})
    return model


def _without(gone: Wanted, model: ir.Model, wide: Network, removable: _Removable, work: Workspace) -> Network | None:
    """The network without these channels, which nothing reads in `model`; None where nothing goes in the end."""
    folder = Path(tempfile.mkdtemp(prefix="thin", dir=work.scratch))
    source = replace(wide.source, model=model, path=wide.original)
    samples, choice = removable.data.samples, replace(removable.choice, saved=None)
    sample = samples.first if samples is not None else {}
    thin = analyse(source, folder, wide.described, data=sample, fold=True, channels=choice)
    if thin.thinned is None:
        _remove_files(thin)
        return None
    return replace(
        thin,
        source=replace(thin.source, path=wide.source.path),
        original=wide.original,
        original_bytes=wide.original_bytes,
        original_params=wide.original_params,
        statistics=wide.statistics,
        means={},
        notes=tuple(dict.fromkeys((*wide.notes, *thin.notes))),
        channels=tuple(_decision(decision, gone) for decision in thin.channels),
        wide=wide,
        rewrites=wide.rewrites,
    )


def _remove_files(thin: Network) -> None:
    """Of a network that is not kept: many may be tried, and each is large."""
    shutil.rmtree(thin.file.parent, ignore_errors=True)


def _lost_inputs(gone: Wanted, thinnable: Sequence[Thinnable]) -> dict[str, list[int]]:
    """The input channels that each layer loses: it may read several groups."""
    lost: dict[str, list[int]] = {}
    for one in thinnable:
        for reader in one.readers if one.group.name in gone else ():
            lost.setdefault(reader.name, []).extend(reader.positions[list(gone[one.group.name])].tolist())
    return lost


def _learn_again(
    network: Network, damage_done: float, wide: Knowledge, options: Options, work: Workspace
) -> Knowledge | None:
    """What images and the device say about the thinner network, which did this damage."""
    layers = measure_layers(network, options.selection, wide.saved, work.progress)
    data, layers = calibrate(network, layers, None, options, work.progress, known=wide.calibration)
    if data is None:
        return None
    thin = replace(wide, network=network, layers=layers, calibration=data, damage_done=damage_done)
    timed = with_clocks(thin, options, work)
    return replace(timed, pair_costs=wide.pair_costs) if isinstance(wide.pair_costs, EstimatedCosts) else timed


def _decision(decision: ChannelDecision, gone: Wanted) -> ChannelDecision:
    """The decision with its true reason: the analysis sees that nothing reads the channels any longer."""
    if decision.name not in gone or not decision.removed:
        return decision
    reason = f"the images miss {len(decision.dropped)} least; what reads them is refitted"
    return replace(decision, reason=reason, fitted=True)
