"""A saved plan, for a torch network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from training.layers import TorchLayer, find_layers
from training.targets import curve
from trp_export.errors import OptionError
from trp_export.planning.curves import Layer, schemes_for
from trp_export.planning.plan import Choice, Plan, read_plan
from trp_export.planning.rules import plan_by_choices


def saved_plan(path: Path, model: nn.Module, input_shape: Sequence[int]) -> Plan:
    """The plan in a file of trp-export or trp-search, for this network; `input_shape` is (1, c, *extents).

    Raises LoadError for a file that cannot be read, OptionError where the two do not fit or a layer becomes a sum.
    """
    changed = {choice.name: choice for choice in read_plan(path) if choice.branches}
    sums = [name for name, choice in changed.items() if len(choice.branches) > 1]
    if sums:
        raise OptionError(
            f"{path} adds up two pairs for {sums[0]}: trained apart, trp-export could not tell them apart again. "
            "Give a plan of one pair for each layer."
        )
    layers = [_layer(layer, changed.get(layer.name)) for layer in find_layers(model, input_shape)]
    return plan_by_choices(layers, tuple(changed.values()), f"plan {path.name}")


def _layer(layer: TorchLayer, choice: Choice | None) -> Layer:
    """With the curve of what the plan wants; with all where that is none of the layer's, to name them."""
    if choice is None or layer.site.refusal:
        return Layer(layer.site, ())
    offered = schemes_for(layer.site, "all")
    wanted = [scheme for scheme in offered if scheme == choice.branches[0].scheme]
    return Layer(layer.site, tuple(curve(layer, scheme) for scheme in wanted or offered))
