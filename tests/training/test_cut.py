"""A network cut by a plan: exact at full rank for any conv, equal to the numpy factors, trainable."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_networks import Tiny
from torch import nn

from models_zoo.pairs import replace_layer, with_pairs
from training.cut import decompose, low_rank_copy
from training.layers import find_layers
from trp_export.errors import OptionError
from trp_export.lowrank.branches import factorise_branches, sum_products
from trp_export.lowrank.factor import factorise, product
from trp_export.lowrank.schemes import CHANNEL_WISE, DECOUPLING, MATRIX, SPATIAL_WISE, Branch, Scheme, input_sliced
from trp_export.lowrank.space import all_schemes
from trp_export.planning.plan import Decision, Plan


def plan_for(model: nn.Module, shape: tuple[int, ...], scheme: Scheme, rank: int | None = None) -> Plan:
    sites = [layer.site for layer in find_layers(model, shape)]
    return Plan(
        tuple(Decision(site, (Branch(scheme, rank or site.full_rank(scheme)),), "test") for site in sites), "test"
    )


@st.composite
def convs(draw: st.DrawFn) -> nn.Conv2d:
    group = draw(st.sampled_from([1, 1, 2]))
    pair = st.tuples(st.integers(1, 3), st.integers(1, 3))
    padding = draw(st.one_of(st.tuples(st.integers(0, 2), st.integers(0, 2)), st.just("same")))
    return nn.Conv2d(
        group * draw(st.integers(1, 3)),
        group * draw(st.integers(1, 3)),
        draw(pair),
        stride=1 if padding == "same" else draw(pair),
        padding=padding,
        dilation=draw(st.tuples(st.integers(1, 2), st.integers(1, 2))),
        groups=group,
        bias=draw(st.booleans()),
        padding_mode=draw(st.sampled_from(["zeros", "circular"])),
    )


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@given(convs(), st.integers(0, 59), st.integers(0, 59))
def test_a_pair_of_full_rank_equals_the_conv(conv: nn.Conv2d, pick: int, other: int) -> None:
    model = nn.Sequential(conv).eval()
    x = torch.randn(2, conv.in_channels, 9, 10)
    (site,) = (layer.site for layer in find_layers(model, (1, conv.in_channels, 9, 10)))
    schemes = all_schemes(site)
    whole, first = schemes[pick % len(schemes)], schemes[other % len(schemes)]
    branches = (Branch(whole, site.full_rank(whole)),)
    if not site.is_matrix and other % 2 and first != whole:
        branches = (Branch(first, 1), *branches)
    cut = decompose(model, Plan((Decision(site, branches, "test"),), "test"))
    with torch.no_grad():
        torch.testing.assert_close(cut(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scheme", [CHANNEL_WISE, SPATIAL_WISE, DECOUPLING])
def test_pairs_equal_the_numpy_factors_and_their_product(scheme: Scheme) -> None:
    model = nn.Sequential(nn.Conv2d(6, 8, 3, padding=1)).eval()
    weight = model[0].weight.detach().numpy()
    plan = plan_for(model, (1, 6, 5, 5), scheme, rank=2)
    cut, dense = decompose(model, plan), low_rank_copy(model, plan)
    factors = factorise(weight, scheme, 1, 2)
    np.testing.assert_allclose(cut[0].reduce.weight.detach().numpy(), factors.reduce, atol=1e-6)
    np.testing.assert_allclose(cut[0].expand.weight.detach().numpy(), factors.expand, atol=1e-6)
    np.testing.assert_allclose(dense[0].weight.detach().numpy(), product(factors, scheme, weight.shape, 1), atol=1e-6)
    x = torch.randn(3, 6, 5, 5)
    torch.testing.assert_close(cut(x), dense(x), rtol=1e-5, atol=1e-5)


def test_a_sum_of_pairs_equals_its_product_and_loads_weights() -> None:
    model = nn.Sequential(nn.Conv2d(6, 8, 3, padding=1)).eval()
    (site,) = (layer.site for layer in find_layers(model, (1, 6, 5, 5)))
    branches = (Branch(SPATIAL_WISE, 2), Branch(input_sliced(3), 1))
    plan = Plan((Decision(site, branches, "test"),), "test")
    cut = decompose(model, plan)
    kernel = model[0].weight.detach().numpy()
    made = sum_products(factorise_branches(kernel, branches, 1), branches, kernel.shape, 1)
    x = torch.randn(3, 6, 5, 5)
    with torch.no_grad():
        model[0].weight.copy_(torch.from_numpy(made))
    torch.testing.assert_close(cut(x), model(x), rtol=1e-4, atol=1e-5)
    empty = with_pairs(copy.deepcopy(model), [("0", branches)])
    empty.load_state_dict(cut.state_dict())
    torch.testing.assert_close(empty(x), cut(x))
    assert [name for name in cut.state_dict() if "bias" in name] == ["0.0.expand.bias"]


def test_linear_layers_and_other_axes_are_decomposed() -> None:
    for model, shape, scheme in (
        (nn.Sequential(nn.Linear(7, 5)), (1, 7), MATRIX),
        (nn.Sequential(nn.Conv1d(4, 6, 3, padding=1)), (1, 4, 9), CHANNEL_WISE),
        (nn.Sequential(nn.Conv3d(2, 4, 3)), (1, 2, 5, 5, 5), SPATIAL_WISE),
    ):
        x = torch.randn(2, *shape[1:])
        cut = decompose(model, plan_for(model, shape, scheme))
        torch.testing.assert_close(cut(x), model(x), rtol=1e-4, atol=1e-5)


def test_decompose_copies_the_module_and_its_factors_train() -> None:
    model = Tiny()
    before = copy.deepcopy(model.state_dict())
    plan = plan_for(model, (1, 3, 8, 8), CHANNEL_WISE, rank=1)
    cut = decompose(model, plan)
    cut(torch.randn(2, 3, 8, 8)).sum().backward()
    assert all(parameter.grad is not None for parameter in cut.parameters())
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_a_layer_of_two_names_is_replaced_under_both() -> None:
    conv = nn.Conv2d(4, 4, 3, padding=1)
    model = nn.ModuleDict({"first": nn.Sequential(conv, nn.ReLU()), "again": nn.Sequential(conv)})
    replace_layer(model, "first.0", pair := nn.Sequential())
    assert model["first"][0] is model["again"][0] is pair


def test_a_plan_of_another_network_is_refused() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3))
    plan = plan_for(model, (1, 3, 5, 5), CHANNEL_WISE)
    with pytest.raises(OptionError, match="decomposes 0, which is not possible in this network"):
        decompose(nn.Sequential(nn.ReLU()), plan)
    with pytest.raises(KeyError):
        replace_layer(model, "5.conv", nn.Identity())
