"""A saved plan, for a torch network."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from torch import nn

from training.layers import TorchLayer, find_layers
from training.matrices import unfold
from training.spectra import spectrum
from trp_export.errors import LoadError, OptionError
from trp_export.lowrank.schemes import Scheme
from trp_export.planning.curves import Curve, Layer, curve_of, schemes_for
from trp_export.planning.plan import Choice, Plan, parse_plan
from trp_export.planning.rules import plan_by_choices


def saved_plan(path: Path, model: nn.Module, input_shape: Sequence[int]) -> Plan:
    """The plan in a file of trp-export or trp-search, for this network; `input_shape` is (1, c, *extents).

    Raises LoadError for a file that cannot be read, OptionError where the two do not fit or a layer becomes a sum.
    """
    changed = {choice.name: choice for choice in _choices(path) if choice.branches}
    sums = [name for name, choice in changed.items() if len(choice.branches) > 1]
    if sums:
        raise OptionError(
            f"{path} adds up two pairs for {sums[0]}: trained apart, trp-export could not tell them apart again. "
            "Give a plan of one pair for each layer."
        )
    layers = [_layer(layer, changed.get(layer.name)) for layer in find_layers(model, input_shape)]
    return plan_by_choices(layers, tuple(changed.values()), f"plan {path.name}")


def _choices(path: Path) -> tuple[Choice, ...]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise LoadError(f"{path} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise LoadError(f"{path} is not JSON: {error}.") from error
    return parse_plan(document, str(path))


def _layer(layer: TorchLayer, choice: Choice | None) -> Layer:
    """With the curve of what the plan wants; with all where that is none of the layer's, to name them."""
    if choice is None or layer.site.refusal:
        return Layer(layer.site, ())
    offered = schemes_for(layer.site, "all")
    wanted = [scheme for scheme in offered if scheme == choice.branches[0].scheme]
    return Layer(layer.site, tuple(_curve(layer, scheme) for scheme in wanted or offered))


def _curve(layer: TorchLayer, scheme: Scheme) -> Curve:
    values = spectrum(unfold(layer.weight.detach(), scheme, layer.site.group)).values
    return curve_of(layer.site, scheme, values.cpu().numpy())
