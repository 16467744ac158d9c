"""A network cut by a plan, as a network: its factors are parameters and can be trained."""

from __future__ import annotations

import copy

import torch
from torch import nn

from models_zoo.pairs import pair_for, replace_layer
from training.layers import unwrapped
from training.matrices import fold, unfold
from training.spectra import spectrum, truncate
from trp_export.errors import OptionError
from trp_export.lowrank.factor import factorise
from trp_export.planning.plan import Decision, Plan


@torch.no_grad()
def decompose(module: nn.Module, plan: Plan) -> nn.Module:
    """A copy of `module` in which every layer of the plan is a factor pair: `layer.reduce`, then `layer.expand`.

    The pairs are those of the exported ONNX file: truncated SVD in float64, balanced. At the rank of the
    weights nothing is lost. Raises OptionError where the plan does not fit.
    """
    model = copy.deepcopy(unwrapped(module))
    for decision in plan.changed:
        _replace(model, decision)
    return model


@torch.no_grad()
def low_rank_copy(module: nn.Module, plan: Plan) -> nn.Module:
    """A copy of `module` whose dense weights are the products of the plan's factors: the same function, uncut."""
    model = copy.deepcopy(unwrapped(module))
    for decision in plan.changed:
        assert decision.scheme is not None
        assert decision.rank is not None
        weight = model.get_submodule(decision.site.name).weight
        group = decision.site.group
        matrices = unfold(weight, decision.scheme, group)
        ranks = torch.full((len(matrices),), decision.rank, device=weight.device)
        kept = truncate(matrices, spectrum(matrices), ranks)
        weight.copy_(fold(kept, decision.scheme, weight.shape, group))
    return model


def _replace(model: nn.Module, decision: Decision) -> None:
    name, scheme, rank = decision.site.name, decision.scheme, decision.rank
    assert scheme is not None
    assert rank is not None
    try:
        layer = model.get_submodule(name)
        pair = pair_for(layer, scheme, rank)
    except (AttributeError, TypeError) as error:
        raise OptionError(f"the plan factors {name}, which this network cannot: {error}.") from None
    weight = layer.weight
    factors = factorise(weight.detach().cpu().numpy(), scheme, getattr(layer, "groups", 1), rank)
    for part, kernel in (
        (pair.get_submodule("reduce"), factors.reduce),
        (pair.get_submodule("expand"), factors.expand),
    ):
        part.weight.copy_(torch.from_numpy(kernel).reshape(part.weight.shape))
    if layer.bias is not None:
        pair.get_submodule("expand").bias.copy_(layer.bias)
    replace_layer(model, name, pair)
