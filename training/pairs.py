"""A network cut by a plan, as a network: its factors are parameters and can be trained."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from models_zoo.pairs import Sum, branches_for, replace_layer
from training.layers import kernel_of, unwrapped
from training.matrices import fold, unfold
from training.spectra import spectrum, truncate
from trp_export.errors import OptionError
from trp_export.lowrank.branches import factorise_branches
from trp_export.planning.plan import Change, Plan


@torch.no_grad()
def decompose(module: nn.Module, plan: Plan) -> nn.Module:
    """A copy of `module` in which every layer of the plan is a factor pair: `layer.reduce`, then `layer.expand`.

    The pairs are those of the exported ONNX file: truncated SVD in float64, balanced. At the rank of the
    weights nothing is lost. Raises OptionError where the plan does not fit.
    """
    model = copy.deepcopy(unwrapped(module))
    for change in plan.changed:
        _replace(model, change)
    return model


@torch.no_grad()
def low_rank_copy(module: nn.Module, plan: Plan) -> nn.Module:
    """A copy of `module` whose dense weights are the products of the plan's factors: the same function, uncut."""
    model = copy.deepcopy(unwrapped(module))
    for change in plan.changed:
        weight = kernel_of(model, change.site.name)
        total = torch.zeros_like(weight)
        for branch in change.branches:
            matrices = unfold(weight - total, branch.scheme, change.site.group)
            ranks = torch.full((len(matrices),), branch.rank, device=weight.device)
            kept = truncate(matrices, spectrum(matrices), ranks).low()
            total += fold(kept, branch.scheme, weight.shape, change.site.group)
        weight.copy_(total)
    return model


def _replace(model: nn.Module, change: Change) -> None:
    name, branches = change.site.name, change.branches
    try:
        layer = model.get_submodule(name)
        made = branches_for(layer, branches)
    except (AttributeError, TypeError) as error:
        raise OptionError(f"the plan factors {name}, which this network cannot: {error}.") from None
    factors = factorise_branches(kernel_of(model, name).detach().cpu().numpy(), branches, _group(model, name))
    for pair, own in zip(made if isinstance(made, Sum) else [made], factors, strict=True):
        for part, kernel in (("reduce", own.reduce), ("expand", own.expand)):
            weight = kernel_of(pair, part)
            weight.copy_(torch.from_numpy(kernel).reshape(weight.shape))
        bias = pair.get_submodule("expand").bias
        if isinstance(bias, Tensor):
            assert isinstance(layer.bias, Tensor)
            bias.copy_(layer.bias)
    replace_layer(model, name, made)


def _group(model: nn.Module, name: str) -> int:
    return int(getattr(model.get_submodule(name), "groups", 1))
