"""Which channels are found to be tied, against networks in which they are merged."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tied_networks import SHAPE, Joined, Padded, Projected, Unclear, merged_in_place, randomised
from torch import nn

from models_zoo.cifar_resnet import CifarResNet
from training.channels.csgd import CSGD
from training.channels.groups import ChannelGroup, find_groups
from training.channels.settings import CSGDSettings, Widths
from trp_export.errors import OptionError
from trp_export.rules import Macs

CIFAR = (1, 3, 32, 32)


def every(name: str) -> bool:
    return True


def sgd(model: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), 0.1)


def groups_of(model: nn.Module, shape: tuple[int, ...] = SHAPE) -> tuple[ChannelGroup, ...]:
    return find_groups(model, shape, every)[1]


@pytest.mark.parametrize("build", [Projected, Joined, Padded, lambda: CifarResNet(8)])
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 1000), fraction=st.sampled_from([0.2, 0.4, 0.625]))
@torch.no_grad()
def test_equal_filters_merge_without_loss(build: Callable[[], nn.Module], seed: int, fraction: float) -> None:
    model = randomised(build(), seed)
    shape = CIFAR if isinstance(model, CifarResNet) else SHAPE
    csgd = CSGD(model, sgd(model), CSGDSettings(rule=Widths(fraction), seed=seed), shape)
    before = copy.deepcopy(model).eval()
    plan = csgd.finish()
    x = torch.randn(3, *shape[1:], generator=torch.Generator().manual_seed(seed))
    trained = model.eval()(x)
    scale = float(trained.abs().max())
    assert float((merged_in_place(model, plan)(x) - trained).abs().max()) <= 1e-5 * scale
    assert float((before(x) - trained).abs().max()) > 1e-3 * scale  # Merging filters that differ does change it.


def test_layers_that_write_into_one_sum_share_their_clusters() -> None:
    groups = {group.pacesetter: group for group in groups_of(Projected())}
    assert set(groups) == {"stem", "inner", "projection"}
    assert set(groups["projection"].layers) == {"outer", "projection", "second"}
    assert set(groups["stem"].rows) == {"stem", "norm", "depthwise"}


def test_padded_channels_are_not_merged_with_others() -> None:
    groups = groups_of(Padded())
    # Beside padding and not read by the head, beside padding, beside the stem.
    assert sorted(group.rows["inner"] for group in groups) == [(0, 1, 10, 11), (2, 9), (3, 4, 5, 6, 7, 8)]


def test_layers_that_are_not_understood_keep_their_filters_with_the_reason() -> None:
    _, groups, kept = find_groups(Unclear(), SHAPE, every)
    assert [group.layers for group in groups] == [("first",)]
    assert kept == {
        "second": "grouped is a grouped conv",
        "turned": "permute reads it",
        "head": "it is tied to an output of the network",
    }


def test_resnets_cost_what_the_paper_says() -> None:
    for depth, dense, merged in ((20, 40_551_040, 15_944_080), (56, 125_485_696, 49_121_680)):
        model = CifarResNet(depth)
        plan = CSGD(model, sgd(model), CSGDSettings(rule=Widths(0.625), clustering="even"), CIFAR).plan
        assert (plan.dense_macs, plan.macs) == (dense, merged)


@pytest.mark.parametrize(("fraction", "drop"), [(0.7, 36.4), (0.6, 46.5), (0.5, 55.4)])
def test_resnet50_with_thinner_inner_layers_costs_what_the_paper_says(fraction: float, drop: float) -> None:
    models = pytest.importorskip("torchvision").models
    model = models.resnet50(weights=None)

    def inner(name: str) -> bool:
        return name.startswith("layer") and name.endswith(("conv1", "conv2"))

    rule = CSGDSettings(rule=Widths(fraction), clustering="even", layers=inner)
    plan = CSGD(model, sgd(model), rule, (1, 3, 224, 224)).plan
    assert 100 * (1 - plan.macs / plan.dense_macs) == pytest.approx(drop, abs=0.05)


def test_a_budget_is_met_by_the_largest_share() -> None:
    model = CifarResNet(20)
    plan = CSGD(model, sgd(model), CSGDSettings(rule=Macs(2.5)), CIFAR).plan
    assert 2.5 <= plan.ratio < 2.6
    assert [merge.kept for merge in plan.merges if merge.group.pacesetter == "conv1"] == [10]


def test_what_cannot_be_done_is_refused_in_one_line() -> None:
    model = CifarResNet(8)
    with pytest.raises(OptionError, match=r"--macs 5000 is out of reach: .* the network has [\d.]+x fewer"):
        CSGD(model, sgd(model), CSGDSettings(rule=Macs(5000)), CIFAR)
    tied = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())
    with pytest.raises(
        OptionError, match=r"no filters .*: 0 keeps all of its filters, because it is tied to an output of the network"
    ):
        CSGD(tied, sgd(tied), CSGDSettings(), SHAPE)

    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv(x) if x.sum() > 0 else x

    with pytest.raises(OptionError, match=r"torch\.fx cannot trace this network"):
        CSGD(Branching(), sgd(Branching()), CSGDSettings(), SHAPE)


def test_a_shared_weight_and_a_frozen_layer_keep_their_filters() -> None:
    frozen = Projected()
    frozen.inner.requires_grad_(False)
    _, groups, kept = find_groups(frozen, SHAPE, every)
    assert kept["inner"] == "inner is frozen"
    assert "inner" not in {name for group in groups for name in group.layers}
    convs = [nn.Conv2d(inputs, 8, 1) for inputs in (3, 8, 8)]
    convs[2].weight = convs[1].weight
    with pytest.raises(OptionError, match="0 keeps all of its filters, because 1 has hooks, or shares its weight"):
        find_groups(nn.Sequential(*convs), SHAPE, every)


def test_layers_that_are_left_out_keep_their_filters_with_those_tied_to_them() -> None:
    _, groups, kept = find_groups(Projected(), SHAPE, lambda name: name != "second")
    assert {group.pacesetter for group in groups} == {"stem", "inner"}
    assert kept["projection"] == "second, to which it is tied, was left out"


def test_a_layer_that_also_reads_an_unknown_value_fixes_what_it_reads() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.third = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 6, 1)
            self.head = nn.Conv2d(6, 2, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            turned = self.third(self.second(self.first(x)).permute(0, 1, 3, 2))
            return self.head(turned + self.third(self.first(x)))

    _, groups, kept = find_groups(Twice(), SHAPE, every)
    assert [group.layers for group in groups] == [("third",)]
    assert kept["first"] == "third also reads a value whose channels are unknown"


def test_values_given_by_keyword_and_sizes_are_no_mistake() -> None:
    class Keywords(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(16, 2, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            low = nn.functional.max_pool2d(self.second(self.first(x)), 2)
            high = nn.functional.interpolate(low, size=x.shape[-2:])
            return self.head(torch.cat(tensors=[high, high], dim=1))

    _, groups, kept = find_groups(Keywords(), SHAPE, every)
    assert [group.layers for group in groups] == [("first",)]
    assert kept["second"] == "cat takes it by keyword"
