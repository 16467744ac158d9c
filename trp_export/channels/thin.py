"""Take from a network the channels that it can lose: the model before and after, and what was decided on each group."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir as ir

from trp_export.channels.analysis import Analysis, analyse_channels
from trp_export.channels.groups import Group, find_groups
from trp_export.channels.removal import Narrowed, remove_channels, removed_channels
from trp_export.channels.search import balanced, find_removable
from trp_export.errors import OptionError
from trp_export.graph.cost import count_params
from trp_export.graph.model_files import save_model
from trp_export.graph.prepare import remove_unused
from trp_export.graph.shapes import Shape
from trp_export.planning.channels import ChannelDecision
from trp_export.runtime.measured_shapes import measure_value_shapes
from trp_export.runtime.sessions import CannotRunError

# What following channels through a graph unlike any known may raise.
UNLIKE = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
# Why the layer of a name is left out of the export; None where it is not.
LeftOut = Callable[[str], str | None]


@dataclass(frozen=True, slots=True)
class Thinned:
    """A model before and after it lost channels, in normal form: its files, and the values with fewer channels.

    `params` and `macs` are those before; `macs` is None where shapes are unknown.
    """

    wide: Path
    thin: Path
    narrowed: Mapping[str, Narrowed]
    params: int
    params_left: int
    macs: int | None = None


@dataclass(frozen=True, slots=True)
class ChannelChoice:
    """Which channels may go: those of a saved plan, or where `saved` is None all that are equal, zero or not read.

    A group stays if `left_out` gives a reason for any layer that makes or reads its channels.
    """

    saved: tuple[ChannelDecision, ...] | None
    left_out: LeftOut


def analyse_groups(
    model: ir.Model, shapes: Mapping[str, Shape], left_out: LeftOut
) -> tuple[Analysis, tuple[Group, ...]]:
    """The channels of a model and their groups; those of layers that are left out stay."""
    analysis = analyse_channels(model, shapes)
    for group in find_groups(analysis):
        reason = _why_left_out(group, left_out)
        if reason is not None:
            analysis.ties.block(group.channels, reason)
    return analysis, find_groups(analysis)


def choose_channels(
    model: ir.Model, shapes: Mapping[str, Shape], choice: ChannelChoice
) -> tuple[Analysis, dict[int, int | None], tuple[ChannelDecision, ...]]:
    """The channels that go, with what each is merged into, and the decision on every group.

    Raises OptionError for a saved plan that does not fit the network.
    """
    analysis, groups = analyse_groups(model, shapes, choice.left_out)
    decisions = find_removable(analysis, groups)
    gone = removed_channels(groups, decisions)
    saved = saved_decisions(groups, choice)
    if saved is not None:
        decisions = _replayed(analysis, groups, gone, saved)
        gone = removed_channels(groups, decisions)
    return analysis, gone, decisions


def try_channels(
    model: ir.Model, shapes: Mapping[str, Shape], choice: ChannelChoice
) -> tuple[Analysis | None, dict[int, int | None], tuple[ChannelDecision, ...], tuple[str, ...]]:
    """`choose_channels`, and a note where a network is unlike any that the analysis knows: then all channels stay."""
    try:
        return *choose_channels(model, shapes, choice), ()
    except UNLIKE as error:
        note = f"equal channels were not looked for, since this network is unlike those known ({error!r:.80})"
        return None, {}, (), (f"{note}; please report it",)


def saved_decisions(groups: Sequence[Group], choice: ChannelChoice) -> tuple[ChannelDecision, ...] | None:
    """What the saved plan decides on all groups but those that are left out; None without a plan."""
    stay = {group.name for group in groups if _why_left_out(group, choice.left_out) is not None}
    return None if choice.saved is None else tuple(one for one in choice.saved if one.name not in stay)


def _why_left_out(group: Group, left_out: LeftOut) -> str | None:
    reasons = map(left_out, (*group.producers, *group.consumers))
    return next((reason for reason in reasons if reason is not None), None)


def _replayed(
    analysis: Analysis, groups: Sequence[Group], found: Mapping[int, int | None], saved: Sequence[ChannelDecision]
) -> tuple[ChannelDecision, ...]:
    """The decisions of a saved plan, where they lose nothing on this network."""
    for decision in saved:
        for channel, other in removed_channels(groups, [decision]).items():
            is_zero = channel in found and found[channel] is None
            is_equal = other is not None and _merged(found, channel) == _merged(found, other)
            if not (is_zero if other is None else is_equal):
                what = "drops channels that are not zero" if other is None else "merges channels that are not equal"
                raise OptionError(
                    f"the plan {what} in {decision.name}. Use it with the network that it was made for, or leave it "
                    "out: equal channels are found without a plan."
                )
    wanted = removed_channels(groups, saved)
    if balanced(analysis, wanted) != wanted:
        raise OptionError("the plan leaves the groups of a conv with different numbers of channels.")
    return tuple(saved)


def _merged(found: Mapping[int, int | None], channel: int) -> int:
    """The channel that stays for this one."""
    other = found.get(channel)
    return channel if other is None else other


def thin(
    model: ir.Model, shapes: Mapping[str, Shape], choice: ChannelChoice, folder: Path
) -> tuple[tuple[ChannelDecision, ...], Thinned | None, tuple[str, ...]]:
    """Remove channels from a model in normal form, in place; the decisions, and the model before and after in `folder`.

    Where no channel goes, or the network would not run with fewer, the model stays as it is, with a note if that is
    unexpected. The multiply-adds are left to be counted.
    """
    analysis, gone, decisions, notes = try_channels(model, shapes, choice)
    if analysis is None or not gone:
        return decisions, None, notes
    wide, after = folder / "wide.onnx", folder / "thin.onnx"
    save_model(model, wide, apart=True)
    params = count_params(model)
    try:
        narrowed = remove_channels(analysis, gone)
        remove_unused(model)
        save_model(model, after, apart=True)
        _require_runs(after, wide, shapes)
    except (CannotRunError, *UNLIKE) as error:
        model.graph = ir.load(wide).graph
        note = f"all channels stay, since with fewer this network does not run ({error!r:.80}); please report it"
        stay = (
            replace(one, clusters=(), dropped=(), reason="the network does not run without them") for one in decisions
        )
        return tuple(stay), None, (*notes, note)
    return decisions, Thinned(wide, after, narrowed, params, count_params(model)), notes


def _require_runs(thinner: Path, wide: Path, shapes: Mapping[str, Shape]) -> None:
    """Raises CannotRunError for a thinner network that does not run, where the wide one does."""
    try:
        measure_value_shapes(thinner, shapes)
    except CannotRunError:
        try:
            measure_value_shapes(wide, shapes)
        except CannotRunError:
            return
        raise
