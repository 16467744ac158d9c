"""Rules and budgets while training."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models_zoo.cifar_resnet import CifarResNet
from training.layers import find_layers, total_macs
from training.ranks import RankChoice, choose_schemes, plan_of_ranks, projection_ranks, ramped
from training.settings import RankRule
from trp_export.errors import OptionError
from trp_export.planning.curves import Layer, make_curve, schemes_for
from trp_export.rules import Energy, Macs, Rank, Threshold


@pytest.fixture(scope="module")
def layers() -> list[Layer]:
    torch.manual_seed(0)
    found = find_layers(CifarResNet(8), (1, 3, 32, 32))
    return [
        Layer(f.site, tuple(make_curve(f.site, s, f.weight.detach().numpy()) for s in schemes_for(f.site, "spatial")))
        for f in found
    ]


@given(ratio=st.floats(1.05, 6.0))
@settings(max_examples=20)
def test_a_budget_is_kept_and_used(layers: list[Layer], ratio: float) -> None:
    total = sum(layer.site.macs for layer in layers)
    plan = plan_of_ranks(layers, RankChoice(Macs(ratio), total))
    macs = sum(decision.macs for decision in plan.decisions)
    cheapest = max(layer.site.macs_per_rank(layer.curves[0].scheme) for layer in layers)
    assert total / ratio - cheapest <= macs <= total / ratio
    ranks = projection_ranks(layers, RankChoice(Macs(ratio), total))
    for layer, decision in zip(layers, plan.decisions, strict=True):
        assert ranks[layer.site.name] == (decision.branches[0].rank if decision.branches else layer.curves[0].full_rank)


@pytest.mark.parametrize("rule", [Macs(2.5), Energy(0.9)])
def test_ranks_are_multiples_of_the_block(layers: list[Layer], rule: RankRule) -> None:
    choice = RankChoice(rule, total_macs_of(layers), align=4)
    plan, ranks = plan_of_ranks(layers, choice), projection_ranks(layers, choice)
    assert plan.changed
    assert all(change.rank % 4 == 0 == (ranks[change.site.name] - change.rank) for change in plan.changed)


def test_a_budget_out_of_reach_names_the_largest_ratio(layers: list[Layer]) -> None:
    with pytest.raises(OptionError, match="out of reach: at the lowest ranks it is"):
        plan_of_ranks(layers, RankChoice(Macs(1e6), total_macs_of(layers)))


def test_a_higher_weight_gives_a_layer_more_rank(layers: list[Layer]) -> None:
    name = layers[2].site.name
    plain = projection_ranks(layers, RankChoice(Macs(3.0), total_macs_of(layers)))
    weighted = projection_ranks(layers, RankChoice(Macs(3.0), total_macs_of(layers), {name: 100.0}))
    assert weighted[name] > plain[name]


def test_an_energy_rule_projects_even_above_break_even(layers: list[Layer]) -> None:
    ranks = projection_ranks(layers, RankChoice(Energy(0.999), total_macs_of(layers)))
    curve = layers[1].curves[0]
    assert curve.top_rank < ranks[layers[1].site.name] < curve.full_rank


def test_schemes_under_a_budget_are_the_plans(layers: list[Layer]) -> None:
    torch.manual_seed(0)
    found = find_layers(CifarResNet(8), (1, 3, 32, 32))
    many = [
        Layer(f.site, tuple(make_curve(f.site, s, f.weight.detach().numpy()) for s in schemes_for(f.site, "auto")))
        for f in found
    ]
    chosen = choose_schemes(many, RankChoice(Macs(2.0), total_macs(found)))
    plan = plan_of_ranks(many, RankChoice(Macs(2.0), total_macs(found)))
    assert set(chosen) == {f.name for f in found}
    assert all(chosen[d.site.name] == d.scheme for d in plan.changed)


def test_ramps_go_from_no_effect_to_the_full_rule() -> None:
    assert ramped(Macs(3.0), "none", 0.1) == Macs(3.0)
    assert ramped(Macs(3.0), "linear", 0.5) == Macs(2.0)
    assert ramped(Macs(3.0), "cosine", 1.0) == Macs(3.0)
    assert ramped(Energy(0.9), "linear", 0.5) == Energy(0.95)
    assert ramped(Energy(0.9), "cosine", 0.0) == Energy(1.0)
    assert ramped(Threshold(0.1), "linear", 0.5) == Threshold(0.05)
    assert ramped(Rank(4), "linear", 0.5) == Rank(4)
    with pytest.raises(OptionError, match="above 1"):
        Macs(1.0)


def total_macs_of(layers: list[Layer]) -> int:
    return sum(layer.site.macs for layer in layers)
