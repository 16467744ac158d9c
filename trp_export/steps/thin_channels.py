"""Remove channels by images: choose them under a budget, refit what reads them, and analyse what is left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from trp_export.channels.least_squares import Reader, Thinning, find_readers, find_thinning, refitted
from trp_export.channels.thin import ChannelChoice, analyse_groups
from trp_export.errors import OptionError
from trp_export.graph.bias import add_to_bias
from trp_export.graph.rewrite import set_kernel
from trp_export.graph.shapes import infer_value_shapes
from trp_export.graph.sites import find_sites
from trp_export.network import Network, analyse
from trp_export.options import Options
from trp_export.planning.budgets import Budget, least_damage, share_out
from trp_export.planning.channels import ChannelDecision
from trp_export.planning.curves import Layer
from trp_export.planning.knapsack import Menu
from trp_export.rules import Macs, Params
from trp_export.steps.calibrate import CalibrationData
from trp_export.system.threads import map_layers
from trp_export.workspace import Workspace

Wanted = Mapping[str, Sequence[int]]
# Fewer channels must do this share of the damage of pairs alone: the prediction does not see how refits of several
# thinner layers add up, while pairs are refitted one behind the other.
_CLEARLY = 2 / 3


@dataclass(frozen=True, slots=True, eq=False)
class Wide:
    """A network as it is before channels go, and what images tell about it."""

    network: Network
    layers: tuple[Layer, ...]
    data: CalibrationData
    align: int


@dataclass(frozen=True, slots=True, eq=False)
class Thin:
    """A network that lost channels by images, and the damage that this is predicted to do."""

    network: Network
    damage: float


def requires_channels(options: Options, saved: Sequence[ChannelDecision] | None) -> bool:
    """True where channels are to go by images whatever is predicted: the user asks for it, or a saved plan did so.

    Raises OptionError for such a plan without images.
    """
    fitted = [decision.name for decision in saved or () if decision.fitted]
    if fitted and options.calibration is None:
        raise OptionError(
            f"the plan removes channels of {fitted[0]} and refits what reads them, which needs images: give --calib "
            "PATH, best those that the plan was made with."
        )
    return bool(fitted) or options.selection.channels == "on"


def channels_do_less(wide: Wide, thin: Wide, damage: float, options: Options) -> bool:
    """True where fewer channels, which do this damage, and pairs are predicted to do clearly less than pairs alone."""
    alone, together = (_damage_of_pairs(each, options) for each in (wide, thin))
    return damage + together <= _CLEARLY * alone


def _damage_of_pairs(wide: Wide, options: Options) -> float:
    in_params = isinstance(options.rule, Params)
    budget = _budget(wide.network, options)
    return least_damage(wide.layers, budget, in_params=in_params, align=wide.align, damage=wide.data.damage)


def _budget(network: Network, options: Options) -> Budget:
    rule = options.rule
    if isinstance(rule, Params):
        return Budget(network.params, rule.ratio, network.fewer_params)
    if isinstance(rule, Macs):
        return Budget(network.budget_macs, rule.ratio, network.fewer_macs)
    raise OptionError("channels go by images under a budget: give --macs or --params.")


def thin_by_images(wide: Wide, choice: ChannelChoice, options: Options, work: Workspace) -> Thin | None:
    """The network without the channels that a budget or a saved plan leaves out; None where none can go.

    Raises OptionError for a saved plan of other groups.
    """
    network, data = wide.network, wide.data
    shapes = infer_value_shapes(network.model, network.described.shapes)
    analysis, groups = analyse_groups(network.model, shapes, choice.left_out)
    readers = find_readers(analysis, groups, network.located, data.moments)
    gone, damage = (
        (_saved(readers, choice.saved), 0.0) if choice.saved is not None else _chosen(readers, wide, options, work)
    )
    if not gone:
        return None
    model = network.model.clone()
    places = {place.site.name: place for place in find_sites(model, network.shapes)}
    for reader in readers:
        if reader.group.name in gone:
            name = reader.place.site.name
            kernel, shift = refitted(reader, gone[reader.group.name], data.moments[name])
            set_kernel(places[name], kernel)
            add_to_bias(model, [places[name]], {name: shift})
    folder = work.scratch / "thin"
    folder.mkdir()
    source = replace(network.source, model=model, path=network.original)
    sample = data.samples.first if data.samples is not None else {}
    thin = analyse(source, folder, network.described, data=sample, fold=True, channels=replace(choice, saved=None))
    if thin.thinned is None:
        return None
    network = replace(
        thin,
        source=replace(thin.source, path=network.source.path),
        original=network.original,
        original_bytes=network.original_bytes,
        original_params=network.original_params,
        statistics=network.statistics,
        means={},
        notes=tuple(dict.fromkeys((*network.notes, *thin.notes))),
        channels=tuple(_decision(decision, gone) for decision in thin.channels),
        wide=network,
    )
    return Thin(network, damage)


def _saved(readers: Sequence[Reader], saved: Sequence[ChannelDecision]) -> Wanted:
    known = {reader.group.name: len(reader.group.channels) for reader in readers}
    for decision in saved:
        if decision.fitted and known.get(decision.name) != decision.channels:
            raise OptionError(
                f"the plan removes channels of {decision.name}, which is not possible in this network. Use the plan "
                "with the network that it was made for."
            )
    return {decision.name: decision.dropped for decision in saved if decision.fitted}


def _chosen(readers: Sequence[Reader], wide: Wide, options: Options, work: Workspace) -> tuple[Wanted, float]:
    """The channels of each group that go, for the least damage under the budget together with pairs; their damage."""
    data, in_params = wide.data, isinstance(options.rule, Params)
    if not readers:
        return {}, 0.0

    def thinning(reader: Reader) -> Thinning:
        own = data.moments[reader.place.site.name]
        judge = (data.judge or data.moments)[reader.place.site.name]
        return find_thinning(reader, own, judge)

    found = list(map_layers(thinning, readers, partial(work.progress, "channels")))
    menus = [_menu(one, wide, in_params=in_params) for one in found]
    budget = _budget(wide.network, options)
    options_taken = share_out(wide.layers, menus, budget, in_params=in_params, align=wide.align, damage=data.damage)
    gone = {
        one.reader.group.name: tuple(sorted(one.order[: one.counts[taken]]))
        for one, taken in zip(found, options_taken, strict=True)
        if taken
    }
    return gone, sum(float(menu.damage[taken]) for menu, taken in zip(menus, options_taken, strict=True))


def _menu(thinning: Thinning, wide: Wide, *, in_params: bool) -> Menu:
    """What each count saves, and the damage that it does."""
    reader, sensitivities = thinning.reader, wide.data.sensitivities
    per_channel = reader.params if in_params else reader.macs
    own = sensitivities.get(reader.place.site.name)
    laws = [own] if own is not None else list(sensitivities.values())
    damage = np.median([law.at(thinning.errors) for law in laws], axis=0) if laws else thinning.errors
    return Menu(-per_channel * np.array(thinning.counts, dtype=np.float64), np.asarray(damage, dtype=np.float64))


def _decision(decision: ChannelDecision, gone: Wanted) -> ChannelDecision:
    """The decision with its true reason: the analysis sees that nothing reads the channels any longer."""
    if decision.name not in gone or not decision.removed:
        return decision
    reason = f"the images miss {len(decision.dropped)} least; what reads them is refitted"
    return replace(decision, reason=reason, fitted=True)
