"""Which channels stay, against a search through all thresholds."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tied_networks import SHAPE, Joined, Projected
from torch import nn

from models_zoo.cifar_resnet import CifarResNet
from training.channels.choose import Budget, Counts
from training.channels.groups import ChannelCosts, ChannelGroup, find_groups
from training.layers import find_layers, total_macs

CIFAR = (1, 3, 32, 32)
NETWORKS = {"projected": (Projected, SHAPE), "joined": (Joined, SHAPE), "resnet8": (lambda: CifarResNet(8), CIFAR)}


@cache
def costs_of(name: str) -> tuple[tuple[ChannelGroup, ...], ChannelCosts, int]:
    make, shape = NETWORKS[name]
    model: nn.Module = make()
    layers = find_layers(model, shape)
    ties, groups, _ = find_groups(model, shape, lambda name: True)
    return groups, ChannelCosts(layers, ties, groups), total_macs(layers)


def drawn_scores(groups: tuple[ChannelGroup, ...], seed: int, levels: int) -> list[np.ndarray]:
    """Scores of which several are equal."""
    random = np.random.default_rng(seed)
    return [random.integers(levels, size=len(group)) / levels for group in groups]


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 999), levels=st.integers(2, 40), share=st.floats(0.0, 1.0))
@pytest.mark.parametrize("name", NETWORKS)
def test_budget_choice_is_that_of_the_lowest_threshold_that_fits(
    name: str, seed: int, levels: int, share: float
) -> None:
    groups, costs, dense = costs_of(name)
    scores = drawn_scores(groups, seed, levels)
    least = costs.macs([1] * len(groups))
    most = least + share * (dense - least)
    chosen = Budget(costs, most).choose(scores)
    for threshold in [-1.0, *(level / levels for level in range(levels))]:
        counts = [count_left(group, threshold) for group in scores]
        if costs.macs(counts) <= most:
            break
    assert [int(stay.sum()) for stay in chosen] == counts
    for group, stay in zip(scores, chosen, strict=True):
        assert group[stay].min() >= group[~stay].max(initial=-1)


def count_left(group: np.ndarray, threshold: float) -> int:
    """How many channels are above the threshold; at least one, and whole blocks where less than an eighth would go."""
    lost = min(sum(score <= threshold for score in group), len(group) - 1)
    if 8 * lost < len(group):
        block = next(size for size in (16, 8, 4, 1) if len(group) % size == 0)
        lost = lost // block * block
    return len(group) - int(lost)


def test_counts_keep_the_highest_scores_of_each_group() -> None:
    scores = [np.array([3.0, 1.0, 2.0, 3.0]), np.array([0.0, 0.0, 0.0])]
    assert [stay.tolist() for stay in Counts((2, 1)).choose(scores)] == [
        [True, False, False, True],
        [True, False, False],
    ]


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 999))
@pytest.mark.parametrize("name", NETWORKS)
def test_expected_multiply_adds_of_whole_numbers_are_the_multiply_adds(name: str, seed: int) -> None:
    groups, costs, dense = costs_of(name)
    random = np.random.default_rng(seed)
    counts = [int(random.integers(1, len(group) + 1)) for group in groups]
    assert float(costs.expected(torch.tensor(counts, dtype=torch.float64))) == pytest.approx(costs.macs(counts), abs=9)
    assert costs.macs([len(group) for group in groups]) == dense


def test_distances_are_zero_at_the_target_and_grow_on_both_sides() -> None:
    groups, costs, _ = costs_of("projected")
    counts = torch.tensor([float(max(1, len(group) // 2)) for group in groups], dtype=torch.float64)
    budget = Budget(costs, float(costs.expected(counts)))
    wanted = Counts(tuple(int(count) for count in counts))
    for target in (budget, wanted):
        assert float(target.distance(counts)) == 0
        assert float(target.distance(2 * counts)) > float(target.distance(1.5 * counts)) > 0
        assert float(target.distance(counts / 2)) > float(target.distance(counts / 1.5)) > 0
    assert float(budget.distance(counts)) == 0
    assert float(wanted.distance(2 * counts)) == pytest.approx(np.log(2))
