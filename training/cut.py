"""Cutting a network by a plan: into factor pairs that can be trained, or to dense weights of the same function."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from models_zoo.pairs import Sum, branches_for, replace_layer
from training.layers import TorchLayer, find_layers, kernel_of, unwrapped
from training.matrices import fold, unfold
from training.spectra import spectrum, truncate
from training.targets import curve
from trp_export.errors import OptionError
from trp_export.lowrank.branches import factorise_branches
from trp_export.planning.curves import Layer, schemes_for
from trp_export.planning.plan import Change, Plan
from trp_export.planning.rules import plan_by_choices
from trp_export.planning.saved_plan import Choice, read_plan


@torch.no_grad()
def decompose(module: nn.Module, plan: Plan) -> nn.Module:
    """A copy of `module` in which every layer of the plan is a factor pair: `layer.reduce`, then `layer.expand`.

    The pairs are those of the exported ONNX file: truncated SVD in float64, balanced. Weights that already have the
    plan's rank lose nothing. Raises OptionError where the plan does not fit.
    """
    model = copy.deepcopy(unwrapped(module))
    for change in plan.changed:
        _replace(model, change)
    return model


@torch.no_grad()
def low_rank_copy(module: nn.Module, plan: Plan) -> nn.Module:
    """A copy of `module` whose dense weights are the products of the plan's factors: the function of `decompose`."""
    model = copy.deepcopy(unwrapped(module))
    for change in plan.changed:
        weight = kernel_of(model, change.site.name)
        total = torch.zeros_like(weight)
        for branch in change.branches:
            matrices = unfold(weight - total, branch.scheme, change.site.group)
            ranks = torch.full((len(matrices),), branch.rank, device=weight.device)
            low = truncate(matrices, spectrum(matrices), ranks).low()
            total += fold(low, branch.scheme, weight.shape, change.site.group)
        weight.copy_(total)
    return model


def plan_from_file(path: Path, model: nn.Module, input_shape: Sequence[int]) -> Plan:
    """The plan in a file of trp-export or trp-search, for this network; `input_shape` is (1, c, *extents).

    Raises LoadError for a file that cannot be read, OptionError where it does not fit or a layer becomes a sum.
    """
    changed = {choice.name: choice for choice in read_plan(path).layers if choice.branches}
    sums = [name for name, choice in changed.items() if len(choice.branches) > 1]
    if sums:
        raise OptionError(
            f"{path} makes {sums[0]} the sum of two pairs. Trained pairs of a sum cannot be recovered by trp-export. "
            "Use a plan with one pair for each layer."
        )
    layers = [_layer(layer, changed.get(layer.name)) for layer in find_layers(model, input_shape)]
    return plan_by_choices(layers, tuple(changed.values()), f"plan {path.name}")


def as_trained(plan: Plan) -> Plan:
    """The same choices for weights that have exactly these ranks, so that a cut loses nothing."""
    decisions = (
        replace(decision, reason="trained rank", energy=1.0) if decision.branches else decision
        for decision in plan.decisions
    )
    return Plan(tuple(decisions), f"trained for {plan.rule}")


def _replace(model: nn.Module, change: Change) -> None:
    name, branches = change.site.name, change.branches
    try:
        layer = model.get_submodule(name)
        replacement = branches_for(layer, branches)
    except (AttributeError, TypeError) as error:
        raise OptionError(f"the plan decomposes {name}, which is not possible in this network: {error}.") from None
    pairs = replacement if isinstance(replacement, Sum) else [replacement]
    kernel = kernel_of(model, name).detach().cpu().numpy()
    factors = factorise_branches(kernel, branches, int(getattr(layer, "groups", 1)))
    for pair, values in zip(pairs, factors, strict=True):
        for part, kernel in (("reduce", values.reduce), ("expand", values.expand)):
            weight = kernel_of(pair, part)
            weight.copy_(torch.from_numpy(kernel).reshape(weight.shape))
        bias = pair.get_submodule("expand").bias
        if isinstance(bias, Tensor):
            assert isinstance(layer.bias, Tensor)
            bias.copy_(layer.bias)
    replace_layer(model, name, replacement)


def _layer(layer: TorchLayer, choice: Choice | None) -> Layer:
    """The layer with the curve of the plan's scheme, or with all its curves where that scheme is not one of them."""
    if choice is None or layer.site.refusal:
        return Layer(layer.site, ())
    offered = schemes_for(layer.site, "all")
    wanted = [scheme for scheme in offered if scheme == choice.branches[0].scheme]
    return Layer(layer.site, tuple(curve(layer, scheme) for scheme in wanted or offered))
